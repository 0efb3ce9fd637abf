"""`specplug run`: starts an unchanged program whose models draft.

The program replaces this process, so that its arguments, `__main__`, signals, tracebacks and exit
code are its own; `program.py` is what happens inside it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_specplug.datastore.opening import HUB_SCHEME, open_all
from hf_specplug.drafters.registry import create
from hf_specplug.drafting.budget import check_nodes
from hf_specplug.entrypoints.program import SETTINGS
from hf_specplug.errors import OptionError


def run(arguments: Sequence[str], module: bool, options: dict[str, Any], report: str | None) -> int:
    """Run a program with drafting installed; on POSIX systems it replaces this process.

    Args:
        arguments: the script, module or command, and its arguments.
        module: whether it is a module, as for `python -m`.
        options: of `SpecPlug`, as JSON can hold them.
        report: the file for the statistics as JSON; None to print them.

    Returns:
        The exit code of the program.

    Raises:
        OptionError, StoreError: there is no such script or command, or an option is invalid.
    """
    command = _command(arguments, module)
    options = _checked(options)
    report = report and os.path.abspath(report)
    settings = {"options": options, "report": report, "launcher": os.getpid()}
    startup = str(Path(__file__).parent / "startup")
    paths = [startup, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        SETTINGS: json.dumps(settings),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    if os.name == "posix":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execvpe(command[0], command, environment)
    return subprocess.run(command, env=environment).returncode


def _command(arguments: Sequence[str], module: bool) -> list[str]:
    program = arguments[0]
    if module:
        return [sys.executable, "-m", *arguments]
    if Path(program).exists():  # a script, or a folder or archive with a `__main__.py`
        return [sys.executable, *arguments]
    found = shutil.which(program)
    if found is None:
        raise OptionError(
            f"{program} is neither a script nor a command on the PATH; a module is run with "
            f"`specplug run -m {program}`"
        )
    return [found, *arguments[1:]]


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options, valid wherever the program goes; without importing torch."""
    options = {**options}
    if "drafters" in options:
        create(options["drafters"])
    check_nodes(options.get("nodes", "auto"))
    stores = options.get("datastores", [])
    if stores:
        open_all(stores)
        options["datastores"] = [
            store if store.startswith(HUB_SCHEME) else os.path.abspath(store) for store in stores
        ]
    return options
