"""What earlier versions wrote stays readable; `tests/data` holds files that 0.1 made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hf_specplug import SpecPlug
from hf_specplug.drafters.registry import create
from hf_specplug.replay.recording import load
from hf_specplug.replay.simulate import simulate

DATA = Path(__file__).parent / "data"


def test_a_saved_state() -> None:
    """`luck`, as `gumbel` was called, learned from 120 sampled tokens."""
    plug = SpecPlug(drafters=["context", "recycling", "gumbel"])
    plug.load_state(DATA / "state-0.1.safetensors")
    weights = plug.drafters[2].state_dict()["weights"]
    assert weights.shape == (96,)
    assert weights.sum() == pytest.approx(259.6799817880616, rel=1e-12)
    assert plug.mixer.weights[:, 6:9].sum() == pytest.approx(9.74993098620643, rel=1e-12)
    assert plug.mixer.weights.sum() == pytest.approx(17.542625422382173, rel=1e-12)


def test_a_recording() -> None:
    recording = load(DATA / "recording-0.1.safetensors")
    assert [len(text.tokens) for text in recording] == [48, 48]
    result = simulate(recording, ["context", "recycling", "stand"], 8)
    assert result.total.accept_length == 6.75


def test_an_old_name_of_a_drafter() -> None:
    with pytest.warns(FutureWarning, match="'luck' is called 'gumbel' now"):
        (drafter,) = create(["luck"])
    assert drafter.name == "gumbel"
    with pytest.warns(FutureWarning), np.errstate(all="raise"):
        assert [d.name for d in SpecPlug(drafters=["context", "luck"]).drafters][1] == "gumbel"
