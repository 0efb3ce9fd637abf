"""Unchanged programs under `specplug run`: the same results, and drafted."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hf_specplug import CUSTOM_GENERATE, DEMO_MODEL
from tests.clients.test_harnesses import ask

MODEL = str(DEMO_MODEL)
RUN = [sys.executable, "-m", "hf_specplug.cli", "run"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="replaces a process")]


def both(command: list[str], folder: Path) -> tuple[str, str, list[dict[str, Any]]]:
    """(standard output without drafts, with drafts, the statistics of each model)"""
    report = folder / "stats.json"
    settings: dict[str, Any] = {
        "cwd": folder,
        "env": {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        "capture_output": True,
        "text": True,
        "timeout": 500,
    }
    expected = subprocess.run([sys.executable, *command], **settings)
    assert expected.returncode == 0, expected.stderr[-3000:]
    # a fixed number of nodes: drafts do not depend on what else the machine does
    found = subprocess.run([*RUN, "--nodes", "16", "--json", str(report), *command], **settings)
    assert found.returncode == 0, found.stderr[-3000:]
    return expected.stdout, found.stdout, json.loads(report.read_text())["models"]


def write(folder: Path, text: str) -> list[str]:
    (folder / "script.py").write_text(textwrap.dedent(text))
    return ["script.py"]


def test_a_pipeline(tmp_path: Path) -> None:
    script = write(
        tmp_path,
        f"""
        import torch
        from transformers import pipeline

        pipe = pipeline("text-generation", {MODEL!r}, dtype=torch.float32)
        chat = [{{"role": "user", "content": "Write a function that adds two numbers."}}]
        print(pipe("def add(a, b):", max_new_tokens=40, do_sample=False))
        print(pipe(chat, max_new_tokens=40, do_sample=False))
        torch.manual_seed(0)
        print(pipe(chat, max_new_tokens=40, do_sample=True), torch.rand(1))
        """,
    )
    expected, found, (stats,) = both(script, tmp_path)
    assert found == expected
    assert stats["calls"] == 3
    assert stats["accept_length"] > 1.5


TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: PATH}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 32, do_sample: false}
metric_list: [{metric: exact_match}]
"""


def test_lm_eval(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("datasets")
    rows = [{"question": f"def add_{n}(x):\n", "answer": f"return x + {n}"} for n in range(4)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sums.yaml").write_text(TASK.replace("PATH", str(tmp_path / "sums.jsonl")))
    arguments = f"--model hf --model_args pretrained={MODEL},dtype=float32 --device cpu"
    arguments += " --tasks sums --include_path . --batch_size 1 --log_samples --output_path out"
    _, _, (stats,) = both(["-m", "lm_eval", *arguments.split()], tmp_path)
    plain, drafted = sorted((tmp_path / "out").rglob("samples_sums*.jsonl"))
    answers = [
        [json.loads(line)["resps"] for line in path.read_text().splitlines()]
        for path in (plain, drafted)
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 4
    assert stats["calls"] == 4


def test_lm_eval_by_an_argument(tmp_path: Path) -> None:
    """The folder of `specplug path custom_generate`, which lm-eval hands to `generate`."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    evaluated = huggingface.HFLM(pretrained=MODEL, batch_size=1, device="cpu", dtype="float32")
    settings = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    answers = []
    for extra in ({}, {"custom_generate": str(CUSTOM_GENERATE), "trust_remote_code": True}):
        arguments = ("def add(a, b):\n", {**settings, **extra})
        request = instance.Instance("generate_until", {}, arguments, 0)
        answers.append(evaluated.generate_until([request], disable_tqdm=True))
    assert answers[0] == answers[1]
    _, attached = vars(evaluated.model)["_specplug_custom_generate"]
    assert attached.plug.stats.calls == 1


def test_langchain(tmp_path: Path) -> None:
    pytest.importorskip("langchain_huggingface")
    script = write(
        tmp_path,
        f"""
        from langchain_huggingface import HuggingFacePipeline

        settings = {{"max_new_tokens": 40, "do_sample": False}}
        chain = HuggingFacePipeline.from_model_id(
            {MODEL!r}, task="text-generation", pipeline_kwargs=settings
        )
        print(chain.invoke("def add(a, b):"), list(chain.stream("import os")))
        """,
    )
    expected, found, (stats,) = both(script, tmp_path)
    assert found == expected
    assert stats["calls"] == 2


def test_trl(tmp_path: Path) -> None:
    """Rollouts, which are batches, are drafted while the weights change; so is a single answer."""
    pytest.importorskip("trl")
    script = write(
        tmp_path,
        f"""
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        model = AutoModelForCausalLM.from_pretrained({MODEL!r}, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained({MODEL!r}, padding_side="left")
        config = GRPOConfig(
            output_dir="out", max_steps=2, num_generations=2, per_device_train_batch_size=2,
            max_completion_length=12, report_to=[], use_cpu=True, bf16=False, seed=0,
            disable_tqdm=True, logging_steps=10, save_strategy="no",
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
            args=config,
            train_dataset=Dataset.from_dict({{"prompt": ["def add(a, b):", "import os"] * 4}}),
            processing_class=tokenizer,
        )
        trainer.train()
        total = sum(float(weight.double().sum()) for weight in model.parameters())
        inputs = tokenizer("def add(a, b):", return_tensors="pt")
        model.eval()
        print("sum", total, model.generate(**inputs, max_new_tokens=30, do_sample=False).tolist())
        """,
    )
    expected, found, (stats,) = both(script, tmp_path)
    line = re.compile("^sum .*", re.MULTILINE)
    assert line.search(found)[0] == line.search(expected)[0]  # type: ignore[index]
    assert stats["calls"] == 3
    assert stats["batches"]
    assert not stats["fallbacks"]


TEXTS = ["Write a function that adds two numbers.", "Sort a list.", "Hello!", "Read a file."]


def served(command: list[str], folder: Path) -> list[str]:
    """The answers of `transformers serve` to four requests at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--device", "cpu", "--dtype", "float32", "--port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, *arguments], stdout=log, stderr=log)
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.2)
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            with ThreadPoolExecutor(4) as pool:
                return list(pool.map(lambda text: ask(url, text), TEXTS))
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def test_transformers_serve(tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package)
    command = [str(Path(sys.executable).with_name("transformers")), "serve", MODEL]
    report = tmp_path / "stats.json"
    expected = served(command, tmp_path)
    found = served([*RUN, "--json", str(report), *command], tmp_path)
    assert found == expected
    (stats,) = json.loads(report.read_text())["models"]
    assert stats["calls"] == 4
