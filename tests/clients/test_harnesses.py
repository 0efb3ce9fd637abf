"""Programs that hold a model: pipelines, LangChain, lm-eval, `transformers serve`."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from hf_specplug import DEMO_MODEL, attach, detach

CHAT = [{"role": "user", "content": "Write a function that adds two numbers."}]


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": False}, {"do_sample": True, "temperature": 0.8, "num_return_sequences": 2}],
    ids=["greedy", "two samples of each"],
)
def test_a_pipeline_of_batches(model: Any, settings: dict[str, Any]) -> None:
    """Texts and chats of different lengths, 3 in a batch, the last of which is not full."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL, padding_side="left")
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, batch_size=3)
    texts = ["def add(a, b):\n", "import os\n", "class Stack:\n    def push(self, item):\n", "x"]
    plug = None
    for prompts in (texts, [CHAT, [{"role": "user", "content": "Sort a list."}]] * 2):
        said = []
        for attached in (False, True):
            torch.manual_seed(0)
            if attached:
                plug = attach(model, nodes=8)
            said.append(pipe(prompts, max_new_tokens=40, **settings))
        detach(model)
        assert said[0] == said[1]
        assert len(said[1]) == 4
        assert plug is not None
        assert not plug.stats.fallbacks
        count = settings.get("num_return_sequences", 1)
        engines = {"tree, ragged": 2} if count > 1 else {"tree, ragged": 1, "tree, eager": 1}
        assert plug.stats.engines == engines
        assert max(plug.stats.batches) == 3 * count
        assert plug.stats.accepted > 10


def test_langchain(model: Any, tokenizer: Any) -> None:
    langchain = pytest.importorskip("langchain_huggingface")
    settings = {"max_new_tokens": 40, "do_sample": False}
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, **settings)
    chain = langchain.HuggingFacePipeline(pipeline=pipe)
    expected = chain.invoke("def add(a, b):\n"), chain.batch(["import os\n", "class A:\n"])
    streamed = list(chain.stream("def add(a, b):\n"))
    plug = attach(model)
    found = chain.invoke("def add(a, b):\n"), chain.batch(["import os\n", "class A:\n"])
    assert found == expected
    assert "".join(chain.stream("def add(a, b):\n")) == "".join(streamed)
    assert plug.stats.calls >= 2
    detach(model)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_lm_eval(model: Any, tokenizer: Any, batch_size: int) -> None:
    """Its stopping criterion keeps which rows of a batch are done, and must see every step."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    evaluated = huggingface.HFLM(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu"
    )
    texts = ["def add(a, b):\n", "import os\n", "for i in range(10):\n"]
    settings = {"until": ["\n\n\n"], "max_gen_toks": 24, "do_sample": False}
    requests = [
        instance.Instance("generate_until", {}, (text, settings), index)
        for index, text in enumerate(texts)
    ]
    expected = evaluated.generate_until(requests)
    plug = attach(model)
    assert evaluated.generate_until(requests) == expected
    assert plug.stats.calls == (len(texts) if batch_size == 1 else 2)
    assert plug.stats.accepted > 0
    assert not plug.stats.fallbacks
    scored = [instance.Instance("loglikelihood", {}, (texts[0], "    return a + b"), 0)]
    with_plug = evaluated.loglikelihood(scored)
    detach(model)
    assert evaluated.loglikelihood(scored) == with_plug


@pytest.fixture
def server() -> Iterator[Any]:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    from transformers.cli.serve import Serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = Serve(
        force_model=str(DEMO_MODEL),
        device="cpu",
        dtype="float32",
        host="127.0.0.1",
        port=port,
        log_level="error",
        non_blocking=True,
    )
    for _ in range(600):
        if serving.server.started:
            break
        time.sleep(0.05)
    yield serving, f"http://127.0.0.1:{port}/v1/chat/completions"
    serving.kill_server()


def ask(url: str, text: str, stream: bool = False) -> str:
    body = {
        "model": str(DEMO_MODEL),
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 32,
        "temperature": 0,
        "stream": stream,
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        if not stream:
            return str(json.load(answer)["choices"][0]["message"]["content"])
        parts = [json.loads(line[6:]) for line in answer if line.startswith(b"data: {")]
    deltas = [part["choices"][0]["delta"] for part in parts if part["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.slow
def test_transformers_serve(server: Any) -> None:
    """Attached inside: plain answers first, then four requests at once and a stream."""
    serving, url = server
    texts = ["Write a function that adds two numbers.", "Sort a list.", "Hello!", "Read a file."]
    expected = [ask(url, text) for text in texts]
    (timed,) = serving._model_manager.loaded_models.values()
    plug = attach(timed.model)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: ask(url, text), texts))
    assert found == expected
    assert ask(url, texts[0], stream=True) == expected[0]
    assert plug.stats.calls + sum(plug.stats.fallbacks.values()) == 5
    assert plug.stats.calls >= 2
    detach(timed.model)
