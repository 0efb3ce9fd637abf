"""Model-free tree drafting for `model.generate`: one added line, the same output, faster.

from hf_specplug import attach
plug = attach(model)
model.generate(**inputs, max_new_tokens=256)
print(plug.stats)
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_specplug.datastore.store import Datastore
    from hf_specplug.drafters.contract import Context, Drafter, Frontier, Step, TopK
    from hf_specplug.drafters.registry import register
    from hf_specplug.entrypoints.attachment import attach, detach
    from hf_specplug.entrypoints.installation import install, plug_of, uninstall
    from hf_specplug.errors import SpecPlugError
    from hf_specplug.plug import SpecPlug
    from hf_specplug.telemetry.stats import Stats
    from hf_specplug.tree import DraftTree

__version__ = "0.1.0"

DEMO_MODEL = Path(__file__).parent / "demo_model"
"""The built-in model of `specplug demo`: a folder in the format of `save_pretrained`."""

CUSTOM_GENERATE = Path(__file__).parent / "entrypoints" / "custom_generate"
"""A folder for `generate(custom_generate=...)`, which is also a repository for the Hub."""

_HOME = {
    "Context": "drafters.contract",
    "Datastore": "datastore.store",
    "DraftTree": "tree",
    "Drafter": "drafters.contract",
    "Frontier": "drafters.contract",
    "SpecPlug": "plug",
    "SpecPlugError": "errors",
    "Stats": "telemetry.stats",
    "Step": "drafters.contract",
    "TopK": "drafters.contract",
    "attach": "entrypoints.attachment",
    "detach": "entrypoints.attachment",
    "install": "entrypoints.installation",
    "plug_of": "entrypoints.installation",
    "register": "drafters.registry",
    "uninstall": "entrypoints.installation",
}

__all__ = [
    "CUSTOM_GENERATE",
    "DEMO_MODEL",
    "Context",
    "Datastore",
    "DraftTree",
    "Drafter",
    "Frontier",
    "SpecPlug",
    "SpecPlugError",
    "Stats",
    "Step",
    "TopK",
    "attach",
    "detach",
    "install",
    "plug_of",
    "register",
    "uninstall",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use. The package itself imports neither torch nor numba."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
