"""The cost of a first call over plain `generate`, with an empty and with a filled kernel cache.

python -m tests.benchmarks.cold_start [--runs 3] [--model PATH] [--out FILE]

Each figure is the smallest of several processes, which take turns. CPU seconds vary less than wall
time on a shared machine. A call waits for no other process, so on idle cores its wall time is about
the CPU time of its process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from hf_specplug import DEMO_MODEL
from hf_specplug.bench import environment

IMPORT = """
import time; start = time.perf_counter()
import hf_specplug
print(time.perf_counter() - start)
"""
CALL = """
import json, os, resource, sys, time, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
how, path = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(path).eval()
prompt = torch.arange(5, 69)[None]
settings = dict(attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False)

def cpu():
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in both)

def timed(act):
    start = time.perf_counter()
    act()
    return time.perf_counter() - start

def call():
    model.generate(prompt, **settings)

def begin():
    from hf_specplug import attach
    from hf_specplug.drafting import precompile
    if how == "alone":
        precompile.start = lambda names: None
    attach(model)
    if how == "ahead":
        for process in precompile._processes:
            process.wait()

first_plain, plain = timed(call), min(timed(call) for _ in range(3))
before, own = cpu(), time.process_time()
waited = timed(begin)
first = timed(call) + (0.0 if how == "ahead" else waited)
own = time.process_time() - own
from hf_specplug.drafting import precompile
for process in precompile._processes:
    process.wait()
spent = cpu() - before
print(json.dumps({
    "s, first plain call over the next": first_plain - plain,
    "s, import + attach + first call over plain": first - plain,
    "CPU s, the same, the process that calls": own - plain,
    "CPU s, the same, all processes": spent - plain,
    "s, second call over plain": timed(call) - plain,
    "load before": os.getloadavg()[0],
}))
"""
KINDS = {
    "empty cache": "plug",
    "empty cache, the call alone compiles": "alone",
    "empty cache, attached well before (the call only)": "ahead",
    "filled cache": "plug",
}


def output(code: str, *arguments: str, cache: str | None = None) -> str:
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout.splitlines()[-1]


def once(model: str) -> dict[str, Any]:
    """Each kind of process once; the last one uses the kernels that the first one compiled."""
    report = {}
    with tempfile.TemporaryDirectory() as filled:
        for name, how in KINDS.items():
            with tempfile.TemporaryDirectory() as empty:
                cache = empty if how != "plug" else filled
                report[name] = json.loads(output(CALL, how, model, cache=cache))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--model", default=str(DEMO_MODEL))
    parser.add_argument("--out")
    options = parser.parse_args()
    runs = [once(options.model) for _ in range(options.runs)]
    report: dict[str, Any] = {
        "s, import hf_specplug": round(min(float(output(IMPORT)) for _ in range(3)), 3)
    }
    for name in KINDS:
        figures = [run[name] for run in runs]
        report[name] = {key: round(min(f[key] for f in figures), 2) for key in figures[0]}
    print(json.dumps(report, indent=1))
    if options.out:
        environment.write(options.out, vars(options), smallest=report, runs=runs)


if __name__ == "__main__":
    main()
