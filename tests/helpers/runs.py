"""Helpers that run a model with and without a plug, and that run other programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from hf_specplug import SpecPlug, attach, detach
from hf_specplug.drafters.contract import Drafter
from hf_specplug.hf.call import NOT_FOR_THE_MODEL, Call
from hf_specplug.hf.plan import CallPlan
from hf_specplug.session import Session


def plain(model: Any, inputs: dict[str, Any], seed: int = 0, **settings: Any) -> tuple[Any, Any]:
    """Run plain `generate`; returns (its output, the final state of the random generator)."""
    torch.manual_seed(seed)
    output = type(model).generate(model, **inputs, **settings)
    return output, torch.get_rng_state()


def plugged(
    model: Any,
    inputs: dict[str, Any],
    drafters: list[str | Drafter] | Drafter,
    nodes: int | str = 12,
    seed: int = 0,
    **settings: Any,
) -> tuple[Any, Any, SpecPlug]:
    """Run `plain` with a plug attached for this call; returns also the plug."""
    plug = attach(model, drafters=drafters, nodes=nodes)
    try:
        torch.manual_seed(seed)
        output = model.generate(**inputs, **settings)
        return output, torch.get_rng_state(), plug
    finally:
        detach(model)


class Counting:
    """Counts forward passes until `remove` is called."""

    def __init__(self, model: Any) -> None:
        self.forwards = 0
        self._hook = model.register_forward_hook(self)

    def __call__(self, *arguments: Any) -> None:
        self.forwards += 1

    def remove(self) -> None:
        self._hook.remove()


def chosen(model: Any, inputs: dict[str, Any], **settings: Any) -> CallPlan:
    """The plan of a call: its mode, and the reason if that is not a tree."""

    class Chosen(Exception):
        pass

    def run(model: Any, input_ids: torch.Tensor, **rest: Any) -> None:
        config = rest.pop("generation_config")
        kwargs = {name: value for name, value in rest.items() if name not in NOT_FOR_THE_MODEL}
        raise Chosen(Session("auto", False).plan(Call(model, input_ids, config, kwargs)))

    every = {"max_new_tokens": 9, **settings}
    try:
        type(model).generate(model, **inputs, **every, custom_generate=run)
    except Chosen as chosen:
        return chosen.args[0]  # type: ignore[no-any-return]
    raise AssertionError("generate did not come to decode")


def assert_harmless(program: str, variable: str, cache: Path) -> None:
    """Run a program that ends with `print("done")`, and check that it gets there.

    Args:
        program: Python source.
        variable: an environment variable to set to "1", such as one of numba's that checks indices.
        cache: numba's cache folder.
    """
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**os.environ, variable: "1", "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "done\n", result.stderr


def run_together(commands: list[list[str]], env: dict[str, str], timeout: float = 200) -> list[str]:
    """Run commands concurrently; returns their outputs. All must exit with code 0."""
    started = [
        subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    try:
        ended = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [output for output, _ in ended]


def new_tokens(output: torch.Tensor, count: int) -> list[int]:
    """The last `count` tokens of an output with a single row."""
    return output[0, -count:].tolist()  # type: ignore[no-any-return]
