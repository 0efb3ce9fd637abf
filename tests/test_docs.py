"""The pages are true: commands and snippets run, links resolve, lists are complete.

The fenced blocks of a page run in order, in a folder with the files that they name. A block is
Python, or commands (`sh` or untagged), or `text`, which does not run. `NOT_RUN` has exceptions.
"""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.testing import CliRunner

import hf_specplug
from hf_specplug import CUSTOM_GENERATE, DEMO_MODEL, SpecPlug
from hf_specplug.cli import app
from hf_specplug.datastore.building.growing import GrowingStore
from hf_specplug.drafters import registry as registry_module
from hf_specplug.exactness import evidence
from hf_specplug.published import PUBLISHED
from tests.helpers.runs import plain, plugged
from tests.helpers.zoo import FAMILIES, make, prompt
from tests.test_imports import LAYERS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ["README.md", "CONTRIBUTING.md", "datastores/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in DOCS.glob("*.md"))
SLOW = {"README.md", "docs/datastores.md", "docs/benchmarking.md"}

NOT_RUN = {
    "pip install hf-specplug": "the package is here; tests/test_package.py installs it",
    'pip install "hf-specplug[plot]"': "the same",
    'pip install "hf-specplug[ray]"': "the same",
    "make demo": ".ci/run does",
    "make test": "it runs this test",
    'push_to_hub("my.store", "me/mine", private=True)': "the Hub; test_growing.py does",
    "hf upload me/specplug $(specplug path custom_generate) .": "the Hub",
    "specplug run transformers serve": "a server; tests/clients/test_run.py does",
    "specplug run -m lm_eval --model hf --model_args pretrained=./my-model --tasks gsm8k "
    "--batch_size 1": "a package of its own; tests/clients/test_run.py does",
    "RAY_ADDRESS=auto specplug build big.store --engine ray --tokenizer ./my-model "
    "corpus/*.parquet": "a cluster; tests/datastore/test_engines.py does on this machine",
}
"""Commands, or lines of snippets, that do not run here: the reason, or the test that runs them."""

SMALLER = {
    "audit": ["--tokens", "8", "--seeds", "1"],
    "demo": ["--tokens", "24", "--no-store"],
    "bench engine": ["--per-task", "1", "--tokens", "48", "--contexts", "64"],
}
"""Options that make a command faster, added to those of the page."""

SCRIPT = """
from transformers import pipeline

print(pipeline("text-generation", "./my-model")("def add(a, b):", max_new_tokens=24))
"""

Block = tuple[str, str]
"""(language, content)"""


def parsed(page: str) -> list[Token]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return MarkdownIt("commonmark").enable("table").parse(text)


def blocks(page: str) -> list[Block]:
    found = []
    for token in parsed(page):
        if token.type == "fence":
            found.append((token.info, token.content))
        elif token.type == "code_block":  # pictures and listings; commands would be passed over
            first = {line.split()[0] for line in token.content.splitlines() if line.strip()}
            assert not first & {"specplug", "python", "pip", "make", "import", "from"}, page
    return found


def commands(content: str) -> list[list[str]]:
    """The words of each command; newlines and semicolons separate commands."""
    found = []
    for line in content.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word != ";":
                words.append(word)
            elif words:
                found.append(words)
                words = []
    return found


def inline(text: str) -> list[str]:
    """Code in running text and tables, on one line."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


NOT_RUN_COMMANDS = {tuple(words) for key in NOT_RUN for words in commands(key)}


def is_left_out(content: str) -> bool:
    return any(line.strip() in NOT_RUN for line in content.splitlines())


class Desk:
    """A folder with the files that pages name, where the blocks of one page run."""

    def __init__(self, folder: Path, names: dict[str, Any]) -> None:
        self.names = names
        self._built: set[str] = set()
        (folder / "my-model").symlink_to(DEMO_MODEL)
        shutil.copytree(CUSTOM_GENERATE, folder / "me" / "specplug")
        (folder / "my_script.py").write_text(SCRIPT)
        (folder / "src").mkdir()
        for module in (textwrap, shlex):
            (folder / "src" / f"{module.__name__}.py").write_text(inspect.getsource(module))
        (folder / "docs" / "guide").mkdir(parents=True)
        (folder / "docs" / "guide" / "intro.md").write_text("# How to begin\n\nBegin here.\n" * 9)
        answer = "def add(one, other):\n    return one + other\n\n" * 8
        store = GrowingStore(folder / "mine.store", names["tokenizer"])
        store.add(names["tokenizer"](answer)["input_ids"])
        store.flush()
        rows = [
            {
                "task": task,
                "prompt": f"Write {what}.",
                "response": answer,
                "text": f"{what} {answer}",
            }
            for task in ("code", "mail")
            for what in ("a function that adds", "a note to a friend")
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        for name in ("my", "chats", "today", "templates", "prompts", "answers"):
            (folder / f"{name}.jsonl").write_text(lines)

    def run(self, block: Block) -> None:
        language, content = block
        content = content.replace("NAME_OR_PATH", "./my-model")
        if language == "python":
            if not is_left_out(content):
                exec(compile(content, "<page>", "exec"), self.names)
        elif language in ("sh", ""):
            for words in commands(content):
                self._command(words)
        else:
            assert language == "text", f"nobody knows how to run {language!r}"

    def _command(self, words: list[str]) -> None:
        if tuple(words) in NOT_RUN_COMMANDS:
            return
        if words[:2] == ["specplug", "build"]:  # a second one is another way to build the same
            if words[2] in self._built:
                shutil.rmtree(words[2])
            self._built.add(words[2])
        if words[:2] == ["specplug", "run"]:  # it replaces the process that runs it
            subprocess.run([sys.executable, "-m", "hf_specplug.cli", *words[1:]], check=True)
        elif words[0] == "specplug":
            quicker = SMALLER.get(words[1], SMALLER.get(" ".join(words[1:3]), []))
            result = CliRunner().invoke(app, words[1:] + quicker)
            assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"
        elif words[:2] == ["python", "-m"] and words[-1] == "--help":
            explains_itself(words[2])
        else:
            pytest.fail(f"{shlex.join(words)}: nobody knows how to run this; see NOT_RUN")


def program(module: str) -> ModuleType:
    """The module that `python -m module` runs."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no {module}"
    package = spec.submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if package else module)


def explains_itself(module: str) -> None:
    arguments, sys.argv = sys.argv, [module, "--help"]
    try:
        with pytest.raises(SystemExit) as ended:
            program(module).main()
        assert ended.value.code == 0
    finally:
        sys.argv = arguments


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: Any, tokenizer: Any) -> Desk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(registry_module, "REGISTERED", registry_module.registry())
    inputs = tokenizer("def add(one, other):", return_tensors="pt")
    model = copy.deepcopy(demo_model)
    desk = Desk(tmp_path, {"model": model, "inputs": inputs, "tokenizer": tokenizer})
    yield desk
    desk.names.clear()
    gc.collect()  # what is recorded is written here and now, not when the process ends


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES],
)
def test_what_a_page_shows_runs(page: str, desk: Desk) -> None:
    for block in blocks(page):
        desk.run(block)


def test_what_is_not_run_is_on_a_page() -> None:
    """An exception without its page would hide a later error."""
    everything = [block for page in PAGES for block in blocks(page)]
    shell = [
        words
        for language, content in everything
        if language in ("sh", "")
        for words in commands(content)
    ]
    lines = {
        line.strip()
        for language, content in everything
        if language == "python"
        for line in content.splitlines()
    }
    for key in NOT_RUN:
        assert key in lines or commands(key)[0] in shell, key


def exists(words: list[str]) -> None:
    """Assert that a command exists, with all its options."""
    root: Any = typer.main.get_command(app)
    command, rest = root, words[1:]
    while rest and rest[0] in getattr(command, "commands", ()):
        command = command.commands[rest.pop(0)]
    assert command is not root or rest[0].startswith("--"), f"no command {shlex.join(words)}"
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    given = {word.split("=")[0] for word in rest if word.startswith("--")} - {"--help"}
    assert given <= known, f"{shlex.join(words)}: no option {', '.join(sorted(given - known))}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_exist(page: str) -> None:
    for code in inline((ROOT / page).read_text(encoding="utf-8")):
        if code.startswith("specplug "):
            exists(shlex.split(code))
        if found := re.match(r"python -m (tests\.\S+)", code):
            program(found[1])


BENCHMARKS = sorted(
    path.stem if path.stem != "__main__" else path.parent.name
    for pattern in ("[a-z]*.py", "*/__main__.py")
    for path in (ROOT / "tests" / "benchmarks").glob(pattern)
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_explain_themselves(name: str) -> None:
    assert "argparse" in inspect.getsource(program(f"tests.benchmarks.{name}"))
    explains_itself(f"tests.benchmarks.{name}")


def test_the_benchmarks_that_made_the_figures_are_there() -> None:
    text = (DOCS / "figures.md").read_text(encoding="utf-8")
    first, *others, last = inline(text.split("## Benchmarks")[1])
    assert first.split()[2].removeprefix("tests.benchmarks.") in BENCHMARKS
    assert set(others) <= set(BENCHMARKS)
    assert last == "specplug bench"


def test_readme_drafts(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.run(next(block for block in blocks("README.md") if block[0] == "python"))
    assert desk.names["plug"].stats.calls == 1
    assert "tokens per forward" in capsys.readouterr().out


def test_a_drafter_in_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "REGISTERED", registry_module.registry())
    names: dict[str, Any] = {}
    python = (content for language, content in blocks("CONTRIBUTING.md") if language == "python")
    exec(next(python), names)
    model, inputs = make("llama"), prompt(make("llama"))
    expected, _ = plain(model, inputs, max_new_tokens=40, do_sample=False)
    drafters = ["context", "alternate"]
    output, _, plug = plugged(model, inputs, drafters, max_new_tokens=40, do_sample=False)
    assert output.tolist() == expected.tolist()
    assert plug.stats.drafted_by["alternate"] > 0
    assert not plug.stats.dropped


def headings(page: Path) -> set[str]:
    """The anchors that mkdocs gives to headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    names = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain_names = [re.sub(r"[^\w\s-]", "", name).strip().lower() for name in names]
    return {re.sub(r"[-\s]+", "-", name) for name in plain_names}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for span in (child for token in parsed(page) for child in token.children or ()):
        target = str(span.attrs.get("href", ""))
        if span.type != "link_open" or target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), f"{page}: {target}"
        assert not anchor or anchor in headings(place), f"{page}: {target}"


def module(name: str) -> ModuleType:
    """A script in `docs`, loaded by its path, as mkdocs loads its hooks."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def hooks() -> ModuleType:
    return module("hooks")


def test_every_family_is_in_the_table() -> None:
    table = hooks().families()
    for name, family in FAMILIES.items():
        (row,) = re.findall(rf"^\| {re.escape(name)} \|.*$", table, re.MULTILINE)
        assert f"**{family.mode}**" in row
        assert row.endswith("|  |") == (family.mode == "tree"), "a reason, if there is no tree"
        for dtype in family.dtypes:
            assert str(dtype).removeprefix("torch.") in row
    listed = set(re.findall(r"`(\w+)`", table.splitlines()[-1]))
    assert listed <= evidence.PROVEN


def test_every_command_is_on_its_page() -> None:
    text = hooks().commands()
    for command in ("demo", "record", "simulate", "build", "query", "bench", "bench engine"):
        assert f"`specplug {command}`\n" in text
    examples = [code for code in inline(text) if code.startswith("specplug ")]
    assert len(examples) > 12
    for example in examples:
        exists(shlex.split(example))


def test_what_is_taken_from_files() -> None:
    pages = hooks()
    page = pages.on_page_markdown("before\n\n<!-- file CONTRIBUTING.md#How we test -->\n\nafter\n")
    assert "token identity" in page
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    further = pages.included("README.md", "Documentation")
    assert "(compared.md)" in further, "links lead to pages"
    assert "(contributing.md)" in further
    assert "`recipes`" in pages.included("datastores/README.md")
    with pytest.raises(ValueError, match="no section 'Nothing'; there are"):
        pages.included("README.md", "Nothing")


def test_pictures_follow_the_colours_of_the_site() -> None:
    page = hooks().on_page_markdown("before\n\n![words](flow.svg)\n\nafter\n")
    assert '<svg xmlns="http://www.w3.org/2000/svg" class="flow"' in page
    assert '[data-md-color-scheme="slate"] .flow {' in page
    assert "@media" not in page
    assert "\n\n" not in page[page.index("<div>") : page.index("</div>")], "one block of HTML"


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2); 4.5 is needed for text."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["flow.svg", "speed.svg"])
def test_pictures_are_legible_in_light_and_dark(name: str) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert root.find("{*}title") is not None
    dark = re.search(r"@media \(prefers-color-scheme: dark\) \{([^}]+)\}", text)
    assert dark is not None
    light = text[: dark.start()]
    for scheme, papers in ((light, ["#ffffff"]), (dark[1], ["#0d1117", "#1e2129"])):
        colours = dict(re.findall(r"(--[\w-]+): (#\w+)", scheme))
        assert set(colours) == set(re.findall(r"var\((--[\w-]+)\)", text)), "one for each scheme"
        for paper in papers:  # the pages of GitHub and of the site
            assert contrast(colours["--ink"], paper) > 7
            assert contrast(colours["--soft"], paper) > 4.5
        if name == "speed.svg":  # figures stand on their bars
            assert contrast(colours["--ink"], colours["--m0"]) > 4
            assert contrast(colours["--ink"], colours["--m1"]) > 4
            assert contrast(colours["--on-m2"], colours["--m2"]) > 4.5
    rest = text.replace(dark[1], "").replace(light, "")
    assert not re.search(r"#[0-9a-f]{3,6}\b", rest), "a colour that is the same in both"
    boxes = [box.get("class") for box in root.iter("{*}rect") if box.get("x") in (None, "0")]
    assert None not in boxes, "a background would be a white box in the dark"


def test_the_chart_is_made_from_the_committed_run() -> None:
    chart = module("chart")
    assert chart.CHART.read_text(encoding="utf-8") == chart.svg(chart.results.read(str(chart.RUN)))
    values = chart.speeds(chart.results.read(str(chart.RUN)))["All tasks"]
    figures = (DOCS / "figures.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| tokens per second \| (.+) \|$", figures, re.MULTILINE)
    assert re.findall(r"\d\.\d\d", row) == [f"{value:.2f}" for value in values]


def test_the_readme_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 700, "code included; what is longer belongs on a page"
    assert text.count("![") == 1, "one chart"
    assert text.count("docs/speed.svg") == 1


SEVERAL = {
    "Llama 2/3/4": {"llama", "llama4_text"},
    "Gemma 1\u20133": {"gemma", "gemma2", "gemma3_text"},
    "Mamba": {"mamba2"},
    "Qwen2-VL": {"qwen2_vl_text"},
    "Falcon (RoPE)": {"falcon"},
    "Falcon (ALiBi)": {"falcon"},
    "dynamic NTK scaling beyond its limit": {"llama"},
}
"""Names on the page that are not spelled like a `model_type`."""


def test_the_page_lists_the_families_of_the_tests() -> None:
    text = (DOCS / "supported.md").read_text(encoding="utf-8")
    spelled = {re.sub(r"\W|_", "", name): {name} for name in evidence.PROVEN}
    types: dict[str, set[str]] = {mode: set() for mode in ("tree", "chain", "plain")}
    for name, family in FAMILIES.items():
        kind = make(name).config.get_text_config(decoder=True).model_type
        types[family.mode].add(kind)
        spelled[re.sub(r"\W|_", "", kind)] = {kind}
    for mode, tested in types.items():
        (row,) = re.findall(rf"^\| \*\*{mode}\*\* \| [^|]+ \| (.+) \|$", text, re.MULTILINE)
        labels = re.split(r", | and ", re.split("[;:] ", row)[0])
        found = {
            label: SEVERAL.get(label, spelled.get(re.sub(r"\W|_", "", label).lower(), set()))
            for label in labels
        }
        named = set().union(*found.values())
        assert tested <= named, f"{mode}: the page does not name {tested - named}"
        if mode != "plain":  # which lists other things, too
            assert all(found.values()), f"nobody knows {[k for k in found if not found[k]]}"
            assert named <= tested | evidence.PROVEN, "it names what is not tested"


def test_pages_are_complete() -> None:
    """Every option, drafter, paper and public name has a line on its page."""
    read = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}
    for name in inspect.signature(SpecPlug).parameters:
        assert f"| `{name}`" in read["options"]
    builtin = {
        name
        for name, drafter in registry_module.registry().items()
        if drafter.__module__.startswith("hf_specplug.drafters.")
    }
    assert builtin <= headings(DOCS / "drafters.md")
    for paper in PUBLISHED:
        assert f'| `"{paper}"` |' in read["drafters"]
    for name in hf_specplug.__all__:
        home = "errors" if name == "SpecPlugError" else name
        assert f"::: hf_specplug.{home}\n" in read["api"]


FOLDERS = {path.parent.name for path in (ROOT / "hf_specplug").glob("*/__init__.py")}


def listings() -> list[str]:
    """The `text` blocks of CONTRIBUTING.md: the folders, and the import rule."""
    return [content for language, content in blocks("CONTRIBUTING.md") if language == "text"]


def test_every_folder_of_the_package_is_explained() -> None:
    tree = listings()[0]
    assert set(re.findall(r"^  (\w+)/ +\S", tree, re.MULTILINE)) == FOLDERS | {"demo_model"}
    for path in (ROOT / "hf_specplug").glob("*.py"):
        if path.name in ("plug.py", "session.py", "decode.py", "tree.py"):
            assert re.search(rf"^  {path.name} +\S", tree, re.MULTILINE)


def test_the_import_rule_is_the_tested_one() -> None:
    said = [set(line.split()) & FOLDERS for line in listings()[1].splitlines()]
    tested = [set(names) & FOLDERS for names in LAYERS]
    assert [names for names in said if names] == [names for names in tested if names]
    assert len(listings()[1].splitlines()) <= 14


def test_where_a_change_goes() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Where does it go")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| a")][1:]
    assert len(rows) == 10
    for row in rows:
        paths = [code for code in inline(row) if code.startswith(("hf_specplug/", "tests/"))]
        assert any(path.startswith("hf_specplug/") for path in paths), row
        assert any(path.startswith("tests/") for path in paths), row
        for path in paths:
            assert (ROOT / path).exists(), path


def test_reasons_are_those_of_the_code() -> None:
    package = "".join(path.read_text() for path in (ROOT / "hf_specplug").rglob("*.py"))
    package = re.sub(r'"\s*f?"', "", package)  # texts that go over several lines
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    reasons = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    reasons += re.findall(r"^\*\*`([^`]+)`\*\*", page, re.MULTILINE)[1:]  # not transformers' own
    assert len(reasons) > 12
    for reason in reasons:
        assert reason in package, reason


def test_figures_are_those_of_their_page() -> None:
    """Measurements have one page; pages that repeat them must agree with it."""
    home = (DOCS / "figures.md").read_text(encoding="utf-8")
    first = (DOCS / "index.md").read_text(encoding="utf-8")
    last = (DOCS / "compared.md").read_text(encoding="utf-8").split("## What we measured")[1]
    figures = re.findall(r"\d+\.\d+", first.split("## First figures")[1] + last)
    assert len(figures) > 20
    for figure in figures:
        assert figure in home, figure


@pytest.mark.parametrize("page", [*PAGES, "docs/bench/index.md"])
def test_drafting_alone_stands_beside_packed_weights(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    figures = (DOCS / "figures.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (\d\.\d\dx)[^|]* \| \*\*(\d\.\d\dx)\*\*", figures)
    assert len(rows) == 5
    for part in re.split(r"\n(?:\n|(?=[|-]))", text):  # paragraphs, rows of tables, items of lists
        for alone, packed in rows:
            assert packed not in part or alone in part, part


class Page(HTMLParser):
    """The links and anchors of a built page, and the files that it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = {"", "__skip"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        self.ids |= {given.get("id", "")}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and "src" in given:
            self.loads.append(given["src"])
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loads.append(given["href"])


@pytest.mark.slow
def test_the_site_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason='needs pip install "hf-specplug[docs]"')
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= len(list(DOCS.glob("*.md")))
    for path, page in pages.items():
        for load in page.loads:
            assert (path.parent / load.partition("?")[0]).is_file(), f"{path.name} loads {load}"
        for link in page.links:
            if re.match(r"https?:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), f"{path.name}: {link}"
            assert target not in pages or anchor in pages[target].ids, f"{path.name}: {link}"
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", styles)
    assert "specplug bench engine" in (site / "cli.html").read_text()
    assert "llama-dynamic-rope" in (site / "supported.html").read_text()
