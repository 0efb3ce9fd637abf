"""`specplug run`: unchanged programs, whose arguments, exit codes and signals stay their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_specplug import CUSTOM_GENERATE, DEMO_MODEL

GENERATES = f"""
    import sys, torch
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained({str(DEMO_MODEL)!r}, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained({str(DEMO_MODEL)!r})
    inputs = tokenizer("def add(a, b):", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    print(tokenizer.decode(output[0]))
"""


def settings(**environment: str) -> dict[str, Any]:
    return {
        "env": {**os.environ, "TRANSFORMERS_VERBOSITY": "error", **environment},
        "capture_output": True,
        "text": True,
        "timeout": 300,
        "check": False,
    }


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


def specplug(*arguments: Any, **changes: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hf_specplug.cli", "run", *map(str, arguments)]
    return subprocess.run(command, **{**settings(), **changes})


def python(*arguments: Any, **changes: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], **{**settings(), **changes})


def test_a_script_drafts(script: Any, tmp_path: Path) -> None:
    path, report = script(GENERATES), tmp_path / "stats.json"
    expected = python(path)
    found = specplug(path)
    assert (found.returncode, found.stdout) == (0, expected.stdout)
    assert "specplug run: LlamaForCausalLM\ncalls              1" in found.stderr
    found = specplug("--drafters", "context", "--nodes", "8", "--json", report, path, "--nodes", 3)
    assert (found.returncode, found.stdout) == (0, expected.stdout)
    assert "specplug" not in found.stderr
    (model,) = json.loads(report.read_text())["models"]
    assert (model["model"], model["calls"], list(model["drafted_by"])) == (
        "LlamaForCausalLM",
        1,
        ["context"],
    )
    assert max(map(int, model["widths"])) <= 8


def test_programs_stay_themselves(script: Any, tmp_path: Path) -> None:
    """Arguments, `__main__`, the path of modules, tracebacks and exit codes."""
    path = script("""
        import json, os, sys
        print(json.dumps([sys.argv, __name__, __file__, sys.path[0], sys.flags.optimize]))
        print(json.dumps([path for path in sys.path if "startup" in path]))
        print(os.getcwd(), sys.stdin.read(), sorted(set(sys.modules) & {"torch", "transformers"}))
        sys.exit(int(sys.argv[1]))
    """)
    for arguments in (["0", "-m", "--json"], ["7"]):
        expected = python(path, *arguments, input="typed", cwd=tmp_path)
        found = specplug(path, *arguments, input="typed", cwd=tmp_path)
        assert (found.stdout, found.returncode) == (expected.stdout, expected.returncode)
        assert found.stderr == "specplug run: no model generated in this process\n"
    failing = script("def f():\n    raise ValueError('wrong')\nf()\n")
    expected, found = python(failing), specplug(failing)
    assert found.returncode == expected.returncode == 1
    assert found.stderr.startswith(expected.stderr)


def test_modules_and_commands(script: Any, tmp_path: Path) -> None:
    script("import sys; print(sys.argv[1:], __name__, __spec__.name)")
    found = specplug("-m", "script", "--nodes", "x", cwd=tmp_path)
    assert found.stdout == "['--nodes', 'x'] __main__ script\n"
    command = tmp_path / "bin" / "greet"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho hello $1\nexit 3\n")
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
    found = specplug("greet", "you", **settings(PATH=path))
    assert (found.stdout, found.returncode) == ("hello you\n", 3)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
def test_signals(script: Any) -> None:
    path = script("""
        import os, signal, sys
        print("ready", flush=True)
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        signal.pause()
    """)
    for name in ("SIGTERM", "SIGKILL"):
        assert specplug(path, name).returncode == -getattr(signal, name)
    interrupted = specplug(path, "SIGINT")
    assert interrupted.returncode == python(path, "SIGINT").returncode
    assert "KeyboardInterrupt" in interrupted.stderr


def test_processes_that_the_program_starts(script: Any, tmp_path: Path) -> None:
    """They draft, too, and report only if they generated; forks do not report twice."""
    script(GENERATES)
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import os, subprocess, sys\n"
        "subprocess.run([sys.executable, 'script.py'], check=True)\n"
        "subprocess.run([sys.executable, '-c', 'pass'], check=True)\n"
        "child = os.fork()\n"
        "if child: os.waitpid(child, 0)\n"
    )
    report = tmp_path / "stats.json"
    found = specplug("--json", report, parent, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert json.loads(report.read_text()) == {"models": []}
    (child,) = tmp_path.glob("stats-*.json")
    assert json.loads(child.read_text())["models"][0]["calls"] == 1


def test_the_environments_own_start(script: Any, tmp_path: Path) -> None:
    """An environment may have a sitecustomize module; Python must still run it."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import builtins\nbuiltins.own = 'started'\n")
    path = script("import sitecustomize; print(own, sitecustomize.__file__)")
    found = specplug(path, **settings(PYTHONPATH=str(own)))
    assert found.stdout == f"started {own / 'sitecustomize.py'}\n"


def test_wrong_use_is_said_before_the_program_starts(script: Any, tmp_path: Path) -> None:
    path = script("print('started')")
    for arguments, words in (
        (["--drafters", "contxt", path], "'contxt'"),
        (["--nodes", "many", path], "nodes must be"),
        (["--datastore", "nowhere", path], "nowhere"),
        (["missing.py"], "neither a script nor a command"),
    ):
        found = specplug(*arguments, cwd=tmp_path)
        assert (found.returncode, found.stdout) == (1, "")
        assert found.stderr.startswith("specplug run: ")
        assert words in found.stderr
        assert found.stderr.count("\n") == 1


def test_path() -> None:
    found = python("-m", "hf_specplug.cli", "path", "custom_generate")
    assert found.stdout == f"{CUSTOM_GENERATE}\n"
    assert (CUSTOM_GENERATE / "custom_generate" / "generate.py").exists()
    found = python("-m", "hf_specplug.cli", "path", "elsewhere")
    assert (found.returncode, found.stdout) == (1, "")
