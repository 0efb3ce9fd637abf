"""What is built and installed: wheel and sdist from a clean copy, an environment of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_specplug

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

slow = pytest.mark.slow
ROOT = Path(__file__).parent.parent
STEM = f"hf_specplug-{hf_specplug.__version__}"
MEGABYTE = 1 << 20


def run(*command: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    settings = {"capture_output": True, "text": True, "check": False, **settings}
    return subprocess.run(list(map(str, command)), **settings)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy: what git tracks, or would track."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", "-z", cwd=ROOT)
    if listed.returncode:
        pytest.skip("git says what belongs to the package, and this is no checkout")
    folder = tmp_path_factory.mktemp("source")
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    result = run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


def make_environment(folder: Path) -> Path:
    """An environment without the package: what it requires comes from this one."""
    environment, borrowed = folder / "venv", folder / "borrowed"
    venv.create(environment, symlinks=True)
    borrowed.mkdir()
    for place in {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}:
        for each in Path(place).iterdir():
            if "hf_specplug" not in each.name:
                (borrowed / each.name).symlink_to(each)
    (packages,) = environment.glob("lib/*/site-packages")
    (packages / "borrowed.pth").write_text(f"{borrowed}\n")
    return environment


def inside(environment: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment for a user who has nothing cached."""
    home = environment.parent / "home"
    home.mkdir(exist_ok=True)
    caches = ("PYTHON", "NUMBA", "HF_", "XDG_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(caches)}
    name, *arguments = command
    return run(environment / "bin" / name, *arguments, env={**kept, "HOME": str(home)}, cwd=home)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel."""
    environment = make_environment(tmp_path_factory.mktemp("installed"))
    pip = (sys.executable, "-m", "pip", "--python", environment / "bin" / "python")
    result = run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert result.returncode == 0, result.stderr
    return environment


def files(source: Path, below: str = "") -> set[str]:
    """Relative names of files, without hidden ones and what Python wrote."""
    names = {path.relative_to(source) for path in (source / below).rglob("*") if path.is_file()}
    hidden = re.compile(r"\.|__pycache__$")
    return {name.as_posix() for name in names if not any(map(hidden.match, name.parts))}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"{STEM}.dist-info/METADATA").decode())


@slow
def test_the_wheel_holds_the_package_and_nothing_else(source: Path, wheel: Path) -> None:
    assert wheel.name == f"{STEM}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        licence = archive.read(f"{STEM}.dist-info/licenses/LICENSE")
    assert licence == (source / "LICENSE").read_bytes()
    package = {name for name in names if not name.startswith(f"{STEM}.dist-info/")}
    assert package == files(source, "hf_specplug")
    model = {f"demo_model/{name}" for name in ("config.json", "tokenizer.json", "README.md")}
    for name in (*model, "demo_model/model.safetensors", "drafters/priors.json", "py.typed"):
        assert f"hf_specplug/{name}" in package
    assert wheel.stat().st_size < 8 * MEGABYTE


@slow
def test_the_sdist_holds_what_its_tests_need(source: Path, built: Path, tmp_path: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    assert path.name == f"{STEM}.tar.gz"
    assert path.stat().st_size < 12 * MEGABYTE
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / STEM
    assert files(unpacked) == files(source) | {"PKG-INFO"}
    for name in ("datastores/sample.store/specplug.json", "constraints.txt", "Makefile"):
        assert (unpacked / name).exists()
    wanted = "test_hub_repository and (card or datastores) or test_public_names_exist"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    result = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", wanted),
        # of its own: sessions side by side clear away each other's numbered ones
        *("--basetemp", str(tmp_path / "temporary")),
        cwd=unpacked,  # all are collected, those run that read files from elsewhere
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert "3 passed" in result.stdout


@slow
def test_metadata(source: Path, wheel: Path) -> None:
    said, project = metadata(wheel), tomllib.loads((source / "pyproject.toml").read_text())
    about = project["project"]
    assert (said["Name"], said["Version"]) == ("hf-specplug", hf_specplug.__version__)
    assert said["Requires-Python"] == about["requires-python"]
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Description-Content-Type"] == "text/markdown"
    assert said.get_payload() == (source / "README.md").read_text()
    assert set(said.get_all("Provides-Extra", [])) == set(about["optional-dependencies"])
    needed = [each for each in said.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert {_project(each) for each in needed} == {_project(each) for each in about["dependencies"]}


def _project(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


@slow
def test_the_repository_of_the_hub_says_what_is_missing(source: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path)
    result = inside(environment, "python", "-c", HUB, source / FOLDER)
    assert "ImportError" in result.stderr
    assert "hf_specplug. Run `pip install hf_specplug`" in result.stderr


FOLDER = "hf_specplug/entrypoints/custom_generate"
HUB = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
small = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
model = LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2, eos_token_id=None))
ids = torch.arange(3, 9)[None]
settings = dict(max_new_tokens=12, do_sample=False)
expected = model.generate(ids, **settings)
settings |= dict(custom_generate=sys.argv[1], trust_remote_code=True)
print(model.generate(ids, **settings).equal(expected))
"""


@slow
def test_the_wheel_runs_where_nothing_else_is(installed: Path, source: Path) -> None:
    where = "import hf_specplug; print(hf_specplug.__file__)"
    path = Path(inside(installed, "python", "-c", where).stdout.strip())
    assert path.is_relative_to(installed), path
    result = inside(installed, "specplug", "--version")
    assert result.stdout.split() == ["hf-specplug", hf_specplug.__version__]
    prompt = "Write a loop over a list."
    arguments = ("--tokens", "24", "--no-store", "--threads", "1", "--prompt", prompt)
    result = inside(installed, "specplug", "demo", *arguments)
    assert result.returncode == 0, result.stderr
    assert "identical" in result.stdout
    assert "DIFFERENT" not in result.stdout
    assert "accept length" in result.stdout
    result = inside(installed, "python", "-c", HUB, source / FOLDER)
    assert result.stdout == "True\n", result.stderr


@slow
def test_installed_metadata(installed: Path, source: Path) -> None:
    code = """
import json
from importlib.metadata import distribution, entry_points
package = distribution("hf-specplug")
scripts = [each for each in entry_points(group="console_scripts") if each.name == "specplug"]
told = {"version": package.version, "python": package.metadata["Requires-Python"]}
print(json.dumps({**told, "scripts": [each.value for each in scripts]}))
"""
    told = json.loads(inside(installed, "python", "-c", code).stdout)
    about = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    assert told == {
        "version": hf_specplug.__version__,
        "python": about["requires-python"],
        "scripts": [about["scripts"]["specplug"]],
    }


def test_changelog_and_citation_agree() -> None:
    """The newest version is the package's; a date is said by both, once it is released."""
    changes = (ROOT / "CHANGELOG.md").read_text()
    version, date = re.findall(r"^## \[?([\d.]+)\]? - (.+)$", changes, re.MULTILINE)[0]
    assert version == hf_specplug.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == version
    assert str(citation.get("date-released", "unreleased")) == date
    assert date == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date)
    assert citation["cff-version"] == "1.2.0"
    for field in ("message", "title", "authors", "license"):
        assert citation[field]
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["title"], citation["license"]) == (about["name"], about["license"])
    for paper in citation["references"]:
        assert paper["title"]
        assert all(author["family-names"] for author in paper["authors"])
        year = re.fullmatch(r"10\.48550/arXiv\.(\d\d)\d\d\.\d{5}", paper["doi"])
        assert year
        assert paper["year"] == 2000 + int(year[1])


def test_every_paper_that_the_readme_names_is_cited() -> None:
    named = set(re.findall(r"arXiv[ :](\d{4}\.\d{5})", (ROOT / "README.md").read_text()))
    cited = set(re.findall(r"arXiv\.(\d{4}\.\d{5})", (ROOT / "CITATION.cff").read_text()))
    assert named
    assert named <= cited
