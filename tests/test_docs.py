"""The code in README and CONTRIBUTING runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hf_specplug import SpecPlug, detach
from hf_specplug.drafters import base
from tests.helpers import plain, plugged
from tests.zoo import make, prompt

ROOT = Path(__file__).parent.parent


def snippets(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_readme(capsys: pytest.CaptureFixture[str]) -> None:
    model = make("llama")
    names: dict[str, Any] = {"model": model, "inputs": prompt(model), "SpecPlug": SpecPlug}
    first, ways = snippets("README.md")
    try:
        exec(first, names)
        assert names["plug"].stats.calls == 1
        assert "tokens per forward" in capsys.readouterr().out
        exec("from hf_specplug import detach\n" + ways, names)
        assert "generate" not in vars(model)
    finally:
        detach(model)


def test_a_drafter_in_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_registry", dict(base._registry))
    names: dict[str, Any] = {}
    exec(snippets("CONTRIBUTING.md")[0], names)
    model, inputs = make("llama"), prompt(make("llama"))
    expected, _ = plain(model, inputs, max_new_tokens=40, do_sample=False)
    drafters = ["context", "alternate"]
    output, _, plug = plugged(model, inputs, drafters, max_new_tokens=40, do_sample=False)
    assert output.tolist() == expected.tolist()
    assert plug.stats.drafted_by["alternate"] > 0
    assert not plug.stats.dropped
