"""One thread, fixed seeds: tiny models are slower with two, and every failure must come back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from hf_specplug import DEMO_MODEL
from tests.sweep.choice import third

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start, too
settings.register_profile("suite", deadline=None, max_examples=150)
settings.load_profile("suite")
logging.set_verbosity_error()
logging.disable_progress_bar()


APART = ("sweep", "images", "clients", "bench", "test_docs.py", "test_package.py")
"""What `--quick` leaves out: other libraries, other models, pages and programs."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="one case of each test of the package itself, none marked slow; few examples",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        settings.register_profile("quick", deadline=None, max_examples=10)
        settings.load_profile("quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what one runs while editing; the rest is still run by `make test` and in CI."""
    if not config.getoption("--quick"):
        return
    by_test: dict[tuple[object, ...], list[pytest.Item]] = {}
    for item in items:
        apart = item.path.relative_to(Path(__file__).parent).parts[0] in APART
        if not apart and not any(item.iter_markers("slow")):
            by_test.setdefault((item.path, getattr(item, "originalname", item.name)), []).append(
                item
            )
    kept = {id(item) for cases in by_test.values() for item in cases[:1]}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


def pytest_report_header() -> str:
    return f"sweep: third {third()}; repeat it with SWEEP_THIRD={third()}"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def demo_model() -> Any:
    """The built-in model: real text, real tokenizer. Shared: leave it as you found it."""
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO_MODEL)
