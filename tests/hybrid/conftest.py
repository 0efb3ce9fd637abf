"""These tests are of chains by kept states, which all families can draft: no trees here."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _chains_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_specplug.verify.recurrent_tree.switches", lambda model: [])
