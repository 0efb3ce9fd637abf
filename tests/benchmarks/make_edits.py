"""Write copy-heavy texts: a file, an instruction, and the changed file, as JSON lines.

    python -m tests.benchmarks.make_edits --out edits.jsonl

The files are parts of Python's own standard library; the edits are mechanical.
"""

from __future__ import annotations

import argparse
import json
import keyword
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path

LINES = 60
Edit = Callable[[list[str], random.Random], tuple[str, list[str]]]


def rename(lines: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """Another name for an identifier that occurs often."""
    words = Counter(re.findall(r"\b[a-z_]{4,}\b", "\n".join(lines)))
    usual = [word for word, count in words.most_common(12) if not keyword.iskeyword(word)]
    old = rng.choice(usual)
    new = f"new_{old}"
    changed = [re.sub(rf"\b{old}\b", new, line) for line in lines]
    return f"Rename `{old}` to `{new}` throughout.", changed


def without_comments(lines: list[str], rng: random.Random) -> tuple[str, list[str]]:
    return "Remove all comment lines.", [line for line in lines if not re.match(r"\s*#", line)]


def log_calls(lines: list[str], rng: random.Random) -> tuple[str, list[str]]:
    """A new line at the top of every function."""
    changed = []
    for line in lines:
        changed.append(line)
        found = re.match(r"(\s*)def (\w+)\(.*\):$", line)
        if found:
            changed.append(f'{found[1]}    logger.debug("{found[2]} was called")')
    return "Log every call of a function at debug level.", changed


def move(lines: list[str], rng: random.Random) -> tuple[str, list[str]]:
    half = len(lines) // 2
    return "Swap the first and the second half of the file.", lines[half:] + lines[:half]


EDITS: list[Edit] = [rename, without_comments, log_calls, move]
MODULES = ("textwrap", "heapq", "bisect", "shelve", "queue", "sched", "fnmatch", "glob", "cmd")
MODULES += ("csv", "copy", "string", "stat", "tempfile", "timeit", "uuid")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    rng = random.Random(0)
    library = Path(sysconfig.get_path("stdlib"))
    with open(args.out, "w", encoding="utf-8") as out:
        for number, module in enumerate(MODULES):
            source = (library / f"{module}.py").read_text(encoding="utf-8").splitlines()
            start = min(40, max(0, len(source) - LINES))
            lines = source[start : start + LINES]
            instruction, changed = EDITS[number % len(EDITS)](lines, rng)
            old, new = "\n".join(lines), "\n".join(changed)
            prompt = f"```python\n{old}\n```\n{instruction} Answer with the whole file."
            text = {"task": "edits", "prompt": prompt, "response": f"```python\n{new}\n```"}
            out.write(json.dumps(text) + "\n")


if __name__ == "__main__":
    main()
