"""What a first call costs over plain `generate`, with an empty and with a warm kernel cache.

python -m tests.benchmarks.cold_start [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

IMPORT = """
import time; start = time.perf_counter()
import hf_specplug
print(time.perf_counter() - start)
"""
CALL = """
import sys, time, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[2]).eval()
prompt = torch.arange(5, 69)[None]
settings = dict(attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False)
model.generate(prompt, **settings)  # so that only our own first call is compared
start = time.perf_counter()
model.generate(prompt, **settings)
plain = time.perf_counter() - start
start = time.perf_counter()
if sys.argv[1] == "plug":
    from hf_specplug import attach
    attach(model)
model.generate(prompt, **settings)
print(time.perf_counter() - start - plain)
"""


def seconds(code: str, *arguments: str, cache: str | None = None) -> float:
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    output = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    return float(output.split()[-1])


def main() -> None:
    from hf_specplug.demo import BUILT_IN

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each, but for the empty cache")
    runs = range(parser.parse_args().runs)
    model = str(BUILT_IN)
    imports = [seconds(IMPORT) for _ in runs]
    with tempfile.TemporaryDirectory() as cache:
        cold = seconds(CALL, "plug", model, cache=cache)
        warm = [seconds(CALL, "plug", model, cache=cache) for _ in runs]
    report = {
        "s, import hf_specplug": round(statistics.median(imports), 3),
        "s over plain, import + attach + first call, empty kernel cache": round(cold, 2),
        "s over plain, the same, warm kernel cache": round(statistics.median(warm), 3),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
