"""What installing and importing costs: seconds of imports, and bytes of wheel and sdist by part.

python -m tests.benchmarks.package --out package.json
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

from hf_specplug.bench.environment import write

ROOT = Path(__file__).parent.parent.parent
IMPORTS = (
    "pass",
    "import hf_specplug",
    "import hf_specplug.cli",
    "import torch, transformers",
    "from transformers import AutoModelForCausalLM, GenerationMixin",
    "from hf_specplug import attach",
    "from transformers import AutoModelForCausalLM; from hf_specplug import attach",
)


def seconds(code: str) -> float:
    """Wall time of a fresh interpreter that runs `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def imports(rounds: int) -> dict[str, float]:
    """Median seconds by statement, over what an interpreter alone takes; taken in turns."""
    for code in IMPORTS:
        seconds(code)  # so that all files are in the system's cache
    timed: dict[str, list[float]] = {code: [] for code in IMPORTS}
    for _ in range(rounds):
        for code in IMPORTS:
            timed[code].append(seconds(code))
    medians = {code: statistics.median(values) for code, values in timed.items()}
    alone = medians.pop("pass")
    return {code: round(value - alone, 3) for code, value in medians.items()}


def sizes() -> dict[str, dict[str, int]]:
    """Bytes of wheel and sdist, and of their parts: compressed in the wheel, plain in the sdist."""
    with tempfile.TemporaryDirectory() as folder:
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, str(ROOT)]
        subprocess.run(build, check=True, capture_output=True)
        (wheel,) = Path(folder).glob("*.whl")
        (sdist,) = Path(folder).glob("*.tar.gz")
        with zipfile.ZipFile(wheel) as archive:
            packed = {each.filename: each.compress_size for each in archive.infolist()}
        with tarfile.open(sdist) as archive:
            plain = {each.name.partition("/")[2]: each.size for each in archive if each.isfile()}
        return {
            "wheel": {"all": wheel.stat().st_size, **parts(packed)},
            "sdist": {"all": sdist.stat().st_size, **parts(plain)},
        }


def parts(files: dict[str, int]) -> dict[str, int]:
    """Bytes by folder below the top, largest first."""
    by_part: Counter[str] = Counter()
    for name, size in files.items():
        folders = name.split("/")[:-1]
        by_part["/".join(folders[:2]) or "top"] += size
    return dict(by_part.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", help="JSON to write")
    args = parser.parse_args()
    measured = sizes()
    for kind, by_part in measured.items():
        print(f"{kind}, kB")
        for part, size in by_part.items():
            print(f"  {size / 1000:8.1f}  {part}")
    timed = imports(args.rounds)
    print("import, s (median over an interpreter alone)")
    for code, value in timed.items():
        print(f"  {value:8.3f}  {code}")
    if args.out:
        write(args.out, vars(args), imports=timed, bytes=measured)


if __name__ == "__main__":
    main()
