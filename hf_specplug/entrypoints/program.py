"""Inside a program of `specplug run`: drafting is installed, and statistics reported at the end.

Python runs `startup/sitecustomize.py` when it starts, which calls `prepare`; the processes that the
program starts do so, too. Nothing here imports torch or transformers.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_specplug.entrypoints.installation import Plugs, use

if TYPE_CHECKING:
    from hf_specplug.plug import SpecPlug
    from hf_specplug.telemetry.stats import Stats

SETTINGS = "HF_SPECPLUG_RUN"
"""Environment variable: JSON with the options of the plugs, the report, and the main process."""


def prepare() -> None:
    """Install drafting as soon as this process imports transformers; report at its end."""
    settings = json.loads(os.environ.get(SETTINGS, "null"))
    if settings is None:
        return
    launcher = os.getpid() if os.name == "posix" else os.getppid()
    report = Report(settings["report"], main=launcher == settings["launcher"])
    atexit.register(report.write)  # the first registered is the last to run
    sys.meta_path.insert(0, _AfterTransformers(Plugs(settings["options"], report.add)))


class _AfterTransformers(MetaPathFinder):
    """Installs plugs when transformers' `generate` has been imported."""

    def __init__(self, plugs: Plugs) -> None:
        self._plugs = plugs

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "transformers.generation.utils":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def execute_and_install(module: Any) -> None:
                execute(module)
                use(self._plugs)

            loader.exec_module = execute_and_install
        return spec


class Report:
    """The statistics of all models of one process, printed or written at its end.

    Args:
        path: a JSON file; processes other than the main one add their number to its name. None to
            print to stderr.
        main: whether this is the program's main process, which reports even if nothing was drafted.
    """

    def __init__(self, path: str | None, main: bool) -> None:
        self._path = path
        self._main = main
        self._process = os.getpid()
        self._models: list[tuple[str, Stats]] = []

    def add(self, model: Any, plug: SpecPlug) -> None:
        """Include the statistics of a new plug."""
        self._models.append((type(model).__name__, plug.stats))

    def write(self) -> None:
        """Print or write the report, unless this is a fork of the process that it belongs to."""
        if os.getpid() != self._process or not (self._main or self._models):
            return
        if self._path is None:
            print(self._text(), file=sys.stderr)
        else:
            path = Path(self._path)
            if not self._main:
                path = path.with_stem(f"{path.stem}-{self._process}")
            models = [{"model": name, **stats.to_dict()} for name, stats in self._models]
            path.write_text(json.dumps({"models": models}, indent=1) + "\n")

    def _text(self) -> str:
        if not self._models:
            return "specplug run: no model generated in this process"
        totals: dict[str, Stats] = {}
        for name, stats in self._models:
            totals.setdefault(name, type(stats)()).add(stats)
        return "\n".join(f"specplug run: {name}\n{stats}" for name, stats in totals.items())
