"""Programs that hold a model: LangChain, lm-eval, `transformers serve`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from hf_specplug import attach, detach
from hf_specplug.demo import BUILT_IN

CHAT = [{"role": "user", "content": "Write a function that adds two numbers."}]


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(BUILT_IN, dtype=torch.float32).eval()


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


def test_lm_eval(model: Any, tokenizer: Any) -> None:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance")
    evaluated = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    texts = ["def add(a, b):\n", "import os\n", "for i in range(10):\n"]
    settings = {"until": ["\n\n\n"], "max_gen_toks": 24, "do_sample": False}
    requests = [
        instance.Instance("generate_until", {}, (text, settings), index)
        for index, text in enumerate(texts)
    ]
    expected = evaluated.generate_until(requests)
    plug = attach(model)
    assert evaluated.generate_until(requests) == expected
    assert plug.stats.calls == len(texts)
    assert not plug.stats.fallbacks
    scored = [instance.Instance("loglikelihood", {}, (texts[0], "    return a + b"), 0)]
    with_plug = evaluated.loglikelihood(scored)
    detach(model)
    assert evaluated.loglikelihood(scored) == with_plug
