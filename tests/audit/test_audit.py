"""`specplug audit`: it passes where nothing is wrong, and notices what is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM
from typer.testing import CliRunner, Result

from hf_specplug.audit.cases import cases
from hf_specplug.audit.near_ties import explain
from hf_specplug.cli import app
from hf_specplug.plug import SpecPlug
from hf_specplug.tree import DraftTree
from hf_specplug.verify.acceptance import Verifier
from tests.helpers.runs import new_tokens, plain
from tests.helpers.zoo import make, prompt

PROMPT = {"prompt": "Write a Python class for a stack with push and pop."}


@pytest.fixture
def audit(tmp_path: Path) -> Callable[..., tuple[Result, dict[str, Any], str]]:
    """Run the command; returns its result, the certificate and the page."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps(PROMPT))

    def run(*arguments: str) -> tuple[Result, dict[str, Any], str]:
        out, page = tmp_path / "audit.json", tmp_path / "audit.html"
        asked = ["audit", "--prompts", str(prompts), "--seeds", "1", "--tokens", "24"]
        asked += ["--json", str(out), "--page", str(page)]
        result = CliRunner().invoke(app, [*asked, *arguments])
        return result, json.loads(out.read_text() or "{}"), page.read_text()

    return run


def test_nothing_differs(audit: Any) -> None:
    result, found, page = audit()
    assert result.exit_code == 0, result.output
    assert "Identical:" in result.output
    assert "Identical:" in page
    assert found["model"]["dtype"] == "float32"
    assert found["versions"]["torch"] == torch.__version__
    assert not found["skipped"]
    assert len(found["runs"]) > 30
    hashes = {run["case"]: run["plain"]["hash"] for run in found["runs"]}
    for run in found["runs"]:
        assert run["identical"]
        assert run["generator"]
        assert run["plain"] == run["drafted"]
        assert run["served"] in ("tree, eager", "tree, static")
        assert run["tokens_per_forward"] >= 1
        assert run["case"] in page
    assert {run["case"] for run in found["runs"] if run["served"] == "tree, static"} == {
        "static cache",
        "static cache, sampled",
    }
    assert hashes["greedy"] == hashes["static cache"] == hashes["remove_invalid_values"]
    changed = {name for name, hashed in hashes.items() if hashed != hashes["greedy"]}
    assert len(changed) > 24, "a processor that changes nothing shows nothing"


def causal(patch: pytest.MonkeyPatch) -> None:
    right = DraftTree.ancestors

    def ancestors(self: DraftTree) -> Any:
        seen, depths = right(self)
        return np.tril(np.ones_like(seen)), depths

    patch.setattr(DraftTree, "ancestors", ancestors)


def test_a_wrong_mask_is_noticed(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    causal(monkeypatch)
    result, found, page = audit()
    assert result.exit_code == 1
    assert "DIFFERENT" in result.output
    assert "DIFFERENT" in page
    different = [run["differs"] for run in found["runs"] if not run["identical"]]
    assert different
    for differs in different:
        assert differs["reproducible"]
        assert differs["plain"] != differs["drafted"]
        assert differs["margin"] > 100 * differs["rounding"]


@pytest.mark.slow
def test_bfloat16_excuses_near_ties_only(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result, found, _ = audit("--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert all(run["identical"] or run["differs"]["near_tie"] for run in found["runs"])
    causal(monkeypatch)
    result, found, _ = audit("--dtype", "bfloat16")
    assert result.exit_code == 1
    assert any(not run["identical"] and not run["differs"]["near_tie"] for run in found["runs"])


def test_an_additional_draw_is_noticed(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pick = Verifier._pick

    def twice(self: Verifier, *args: Any) -> int:
        token = pick(self, *args)
        torch.rand(1)
        return token

    monkeypatch.setattr(Verifier, "_pick", twice)
    result, found, _ = audit()
    assert result.exit_code == 1
    by_name = {run["case"]: run for run in found["runs"]}
    assert by_name["greedy"]["generator"]  # without processors nothing is picked by this method
    assert by_name["repetition_penalty"]["identical"]
    assert not by_name["repetition_penalty"]["generator"]
    assert not by_name["sampled"]["identical"]
    assert "another state" in result.output


def test_an_error_is_noticed(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: SpecPlug, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken [on purpose]")

    monkeypatch.setattr(SpecPlug, "run", broken)
    result, found, page = audit()
    assert result.exit_code == 1
    assert "broken [on purpose]" in result.output
    assert "broken [on purpose]" in page
    assert all(run["error"] for run in found["runs"])


def test_what_is_not_drafted_is_said(audit: Any, tmp_path: Path, tokenizer: Any) -> None:
    config = Mamba2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_heads=8,
        head_dim=8,
        state_size=8,
        n_groups=2,
        chunk_size=8,
        initializer_range=0.3,
    )
    Mamba2ForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    result, found, _ = audit("--model", str(tmp_path / "mamba"))
    assert result.exit_code == 0, result.output
    count = len(found["runs"])
    assert f"{count} calls were not drafted" in " ".join(result.output.split())
    assert all("plain: the model has a recurrent state" in run["served"] for run in found["runs"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nowhere"], "nowhere cannot be loaded"),
        (["--dtype", "int8"], "dtype must be"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--tokens", "100000"], "use shorter prompts or fewer tokens"),
        (["--page", "nowhere/audit.html"], "nowhere/audit.html"),
        (["--tokens", "x"], "--tokens"),
    ],
)
def test_bad_input(audit: Any, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["audit", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("rank", [1, 2, 9])
def test_the_margin_of_a_greedy_token(rank: int) -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"max_new_tokens": 20, "do_sample": False}
    answer = new_tokens(plain(model, inputs, **settings)[0], 20)
    text = torch.cat([inputs["input_ids"], torch.tensor([answer[:7]])], 1)
    order = model(text).logits[0, -1].sort(descending=True)
    other = [*answer[:7], int(order.indices[rank]), *answer[8:]]
    found = explain(model, inputs, settings, 0, (answer, other))
    assert found.reproducible
    assert (found.position, found.plain, found.drafted) == (7, answer[7], other[7])
    gap = float((order.values[0] - order.values[rank]).detach())
    assert found.margin is not None
    assert found.margin == pytest.approx(gap, rel=1e-3)
    assert found.rounding < 1e-4
    assert not found.near_tie


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 4}])
def test_the_margin_of_a_sampled_token(settings: dict[str, Any]) -> None:
    """Logits changed by a little more than the margin change the pick of plain `generate`."""
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"top_k": 0, **settings, "max_new_tokens": 12, "do_sample": True}
    answer = new_tokens(plain(model, inputs, seed=3, **settings)[0], 12)
    other = [*answer[:5], (answer[5] + 1) % 90, *answer[6:]]
    found = explain(model, inputs, settings, 3, (answer, other))
    assert found.margin is not None

    def pushed(gap: float) -> int:
        start = inputs["input_ids"].shape[1] + 5
        calls = []

        def push(module: Any, args: Any, output: Any) -> Any:
            calls.append(1)
            if len(calls) == 6:
                output.logits[..., other[5]] += gap
            return output

        hook = model.register_forward_hook(push)
        try:
            return int(plain(model, inputs, seed=3, **settings)[0][0, start])
        finally:
            hook.remove()

    assert pushed(0.0) == answer[5]
    assert pushed(0.99 * found.margin) != other[5]
    assert pushed(1.01 * found.margin) == other[5]


def test_a_plain_call_that_does_not_repeat_itself() -> None:
    model, inputs = make("llama"), prompt(make("llama"))
    settings = {"max_new_tokens": 10, "do_sample": False}
    answer = new_tokens(plain(model, inputs, **settings)[0], 10)
    wrong = [(token + 1) % 90 for token in answer]
    found = explain(model, inputs, settings, 0, (wrong, answer))
    assert not found.reproducible
    assert not found.near_tie


def test_the_cases_cover_what_transformers_offers(demo_model: Any, tokenizer: Any) -> None:
    """Each setting of GenerationConfig that changes scores is in a case."""
    offered = set(demo_model.generation_config.to_dict())
    asked = {key for case in cases(demo_model, tokenizer, range(40, 80)) for key in case.settings}
    named = {name for name in offered if name.endswith(("_p", "_k", "_h", "cutoff", "penalty"))}
    named |= {name for name in offered if name.startswith(("bad_", "min_", "no_", "forced_"))}
    named |= {name for name in offered if "suppress" in name or "ngram_size" in name}
    named |= {"temperature", "sequence_bias", "guidance_scale", "watermarking_config"}
    of_beams = {"length_penalty", "diversity_penalty"}
    of_other_loops = {"max_matching_ngram_size"}
    of_empty_prompts = {"forced_bos_token_id", "min_length"}  # min_new_tokens is in a case
    assert named - of_beams - of_other_loops - of_empty_prompts <= asked
