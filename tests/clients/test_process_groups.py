"""Process groups: plain only where processes share a model, as under FSDP; not under DDP."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hf_specplug import attach, detach
from hf_specplug.hf.call_settings import left_to_transformers
from tests.clients.same import GREEDY, NEW, assert_same, tiny
from tests.helpers.runs import run_together
from tests.helpers.zoo import prompt

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="a torch without torch.distributed")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_a_group_of_one() -> None:
    model = tiny()
    inputs = prompt(model)
    assert assert_same(model, lambda **settings: model.generate(**inputs, **settings)).drafted


@pytest.mark.usefixtures("group")
def test_ddp() -> None:
    model = tiny()
    inputs = prompt(model)
    wrapped = DistributedDataParallel(model)
    outcome = assert_same(wrapped, lambda **rest: wrapped.module.generate(**inputs, **rest))
    assert outcome.drafted


class _Forwarding(torch.nn.Module):
    """As FSDP's wrapper: attributes are those of the model inside."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inside = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inside"), name)


def test_a_wrapper_that_hands_attributes_on() -> None:
    model = tiny()
    inputs = prompt(model)
    wrapped = _Forwarding(model)
    assert assert_same(wrapped, lambda **rest: wrapped.generate(**inputs, **rest)).drafted


@pytest.mark.usefixtures("group")
def test_synced_gpus_as_asked_for() -> None:
    model = tiny()
    inputs = prompt(model)
    expected = model.generate(**inputs, max_new_tokens=NEW, **GREEDY).tolist()
    plug = attach(model)
    for synced in (True, False):
        found = model.generate(**inputs, max_new_tokens=NEW, **GREEDY, synced_gpus=synced)
        assert found.tolist() == expected
    assert plug.stats.calls == 1
    (reason,) = plug.stats.fallbacks
    assert "synced_gpus" in reason
    detach(model)


class _Sharded(torch.nn.Module):
    """Stands for a layer that another framework splits over processes."""


_Sharded.__module__ = "deepspeed.module_inject.layers"


@pytest.mark.usefixtures("group")
def test_which_models_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny()
    assert not left_to_transformers(model, {})
    model.of_deepspeed = _Sharded()
    assert not left_to_transformers(model, {})  # in a group of one
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    assert "processes that share this model" in left_to_transformers(model, {})
    del model.of_deepspeed
    assert not left_to_transformers(model, {})
    model._is_fsdp_managed_module = True
    assert "processes that share this model" in left_to_transformers(model, {})
    assert not left_to_transformers(model, {"synced_gpus": False})


PROGRAM = """
    import os, sys, torch
    import torch.distributed as dist
    torch.set_num_threads(1)
    from hf_specplug import attach
    from tests.clients.same import GREEDY, NEW, assert_same, tiny
    from tests.helpers.zoo import prompt

    folder, kind, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    model = tiny()
    inputs = prompt(model, seed=rank)
    if kind == "ddp":
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        inner = wrapped.module
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        inner = model
    new = NEW if kind == "ddp" else 6
    plug = attach(wrapped)
    expected = inner.generate(**inputs, max_new_tokens=new, **GREEDY, assistant=None)
    found = inner.generate(**inputs, max_new_tokens=new, **GREEDY)
    assert found.tolist() == expected.tolist()
    print("drafted" if plug.stats.calls else list(plug.stats.fallbacks), flush=True)
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes(kind: str, tmp_path: Path) -> None:
    """Each with its own prompt; of ranks that share a model, none may make passes of its own."""
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    commands = [[sys.executable, str(program), str(tmp_path), kind, str(rank)] for rank in (0, 1)]
    outputs = run_together(commands, {**os.environ, "PYTHONPATH": os.getcwd()})
    for output in outputs:
        expected = "drafted\n" if kind == "ddp" else "share this model"
        assert expected in output
