"""What pages include from the code and from other files when they are built.

<!-- families -->                   the table of model families, from the tests' zoo
<!-- sweep -->                      the result for every text-generating entry of transformers
<!-- commands -->                   every command of the command line, with its options
<!-- trees -->                      a trace, as notebooks show it
<!-- bench docs/bench/x.json -->    the tables of what `specplug bench --out` wrote
<!-- rivals docs/bench/x.json -->   a table of what `tests.benchmarks.rivals --out` wrote
<!-- papers docs/bench/papers.json -->   the table of what `tests.benchmarks.papers --out` wrote
<!-- answers docs/bench/papers.json -->  of the same, single drafters on own and others' answers
<!-- sequence docs/bench/papers.json --> of the same, how often Hierarchy Drafting asks each level
<!-- file CHANGELOG.md -->           a file, or with `#Heading` a section of it
![words](picture.svg)               the picture itself, so that it follows the page's colours
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "datastores/README.md": "format.md",
    "CHANGELOG.md": "changelog.md",
}
"""The page of each file that the site includes."""

DIRECTIVE = re.compile(r"^<!-- (\w+)(?: (\S+?)(?:#(.+))?)? -->$", re.MULTILINE)
PICTURE = re.compile(r"^!\[[^\]]*\]\((\w+\.svg)\)$", re.MULTILINE)
SCHEME = re.compile(r"@media \(prefers-color-scheme: dark\) \{\n([^{}]+\{[^{}]*\})\n\}")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace directives and pictures of a page; mkdocs calls this for every page."""

    def text(found: re.Match[str]) -> str:
        what, *arguments = found.groups()
        return SOURCES[what](*(argument for argument in arguments if argument))

    return PICTURE.sub(lambda found: inlined(found[1]), DIRECTIVE.sub(text, markdown))


def inlined(name: str) -> str:
    """An SVG of this folder as part of the page. It follows the page's colour scheme.

    As a file the picture follows the reader's system. The site has a switch of its own.
    """
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    text = SCHEME.sub(r'[data-md-color-scheme="slate"] \1', text)
    return "<div>\n" + re.sub(r"\n{2,}", "\n", text).strip() + "\n</div>"


def included(name: str, heading: str | None = None) -> str:
    """A file of the repository without its title, or one section of it; links lead to pages."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if heading is None:
        body = re.sub(r"^# .+\n", "", text)
    else:
        parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        if heading not in sections:
            raise ValueError(f"{name} has no section {heading!r}; there are {sorted(sections)}")
        body = sections[heading]
    return re.sub(r"\[([^\]]+)\]\((?!https?:)([^)]+)\)", lambda f: _link(name, *f.groups()), body)


def _link(file: str, label: str, target: str) -> str:
    """A link to a file as a link to its page; if the file has no page, its label as code."""
    path, _, anchor = target.partition("#")
    place = (Path(file).parent / path).as_posix() if path else file
    if place.startswith("docs/"):
        return f"[{label}]({place.removeprefix('docs/')}{'#' + anchor if anchor else ''})"
    if place not in PAGES:
        return f"`{label.strip('`')}`"
    return f"[{label}]({PAGES[place]}{'#' + anchor if anchor else ''})"


def families() -> str:
    """One row per tested family: its mode, and the reason if the mode is not tree."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from transformers.utils import logging

    from hf_specplug.exactness import evidence
    from tests.helpers.runs import chosen
    from tests.helpers.zoo import FAMILIES, make, prompt

    logging.set_verbosity_error()
    rows = ["| tested as | class | mode | identical in | reason, if not a tree |", 5 * "|---" + "|"]
    tested: set[str] = set()
    for name, family in FAMILIES.items():
        model = make(name)
        found = chosen(model, prompt(model))
        exact = ",&nbsp;".join(str(dtype).removeprefix("torch.") for dtype in family.dtypes)
        kind = type(model).__name__
        rows.append(f"| {name} | `{kind}` | **{found.mode}** | {exact} | {found.reason} |")
        tested |= {model.config.model_type, model.config.get_text_config(decoder=True).model_type}
    others = ", ".join(f"`{name}`" for name in sorted(evidence.PROVEN - tested))
    return "\n".join([*rows, "", f"Trees were also measured to be exact for {others}."])


def sweep() -> str:
    """Counts by mapping and outcome, and the families of each outcome, from `docs/sweep.json`."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.sweep.table import tables

    return tables()


def bench(name: str) -> str:
    """The speed of each method, and Spec-Bench's table."""
    from hf_specplug.bench import results, tables

    found = results.read(str(ROOT / name))
    parts = [_table(*tables.overall(found)), _table(*tables.spec_bench(found))]
    return "\n\n".join([tables.title(found) + ".", *parts])


def rivals(name: str) -> str:
    """Tokens per forward pass of each method by tree size, and the time for drafting."""
    sizes = [8, 16, 32, 64]
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in json.loads((ROOT / name).read_text(encoding="utf-8"))["methods"]:
        found.setdefault(row["method"], {})[row["nodes"]] = row
    middles = {name: of.get(16) or next(iter(of.values())) for name, of in found.items()}
    rows = []
    for method, middle in sorted(middles.items(), key=lambda of: -of[1]["tokens_per_forward"]):
        by_size = found[method]
        lengths = [f"{by_size[n]['tokens_per_forward']:.2f}" if n in by_size else "" for n in sizes]
        if not any(lengths):  # one size, its own
            lengths[1] = f"{middle['tokens_per_forward']:.2f}"
        cost = [f"{middle['us_median']:.0f}", f"{middle['us_p99']:.0f}"]
        rows.append([f"`{method}`", *lengths, *cost])
    columns = [f"{n} nodes" for n in sizes]
    return _table(["method", *columns, "µs per step at 16", "p99"], rows)


CLAIMS = {
    "rest": "REST (2311.08252)|1.62 to 2.36x on 7B and 13B models",
    "dresd": "DReSD (2502.15572)|87 % more accepted than REST, 19 % faster",
    "token-recycling": "Token Recycling (2408.08696)|about 2x; 30 % more than train-free methods",
    "aded": "ADED (2407.12021)|up to 2.5x",
    "hierarchy": "Hierarchy Drafting (2502.05609)|ahead of other databases (no figure in abstract)",
    "stand": "STAND (2506.04708)|60 to 65 % less latency with 16 samples of a question",
    "rasd": "RASD (2503.03434)|best on document QA and code (no figure in abstract)",
}
"""Each paper and what it claims, on GPUs and with large models."""

PAPERS_SIZE = {
    "rest": 65,
    "dresd": 101,
    "token-recycling": 81,
    "aded": 65,
    "hierarchy": 29,
    "stand": 81,
}
"""Tokens that a forward pass of each paper checks, as far as it is known."""


WHOSE = {"own": "own", "others": "others'"}


def papers(name: str) -> str:
    """By paper: its claim, and tokens per forward pass as published / ours."""
    results = json.loads((ROOT / name).read_text(encoding="utf-8"))["results"]
    sizes = [("own", 16), ("own", 32), ("others", 16), ("others", 32), ("own", 0)]
    rows = []
    for paper, claim in CLAIMS.items():
        cells = claim.split("|")
        for whose, nodes in sizes:
            forms = [row for row in results[whose]["forms"] if row["paper"] == paper]
            pair = [row for row in forms if row["nodes"] == (nodes or PAPERS_SIZE.get(paper))]
            shown = " / ".join(f"{row['tokens_per_step']:.2f}" for row in pair)
            cells.append(shown if nodes or not pair else f"{shown} ({pair[0]['nodes']})")
        rows.append(cells)
    for label, found in _mixed(results).items():
        cells = [f"**{found[of]:.2f}**" if of in found else "" for of in sizes]
        rows.append([label, "", *cells])
    columns = [f"{WHOSE[whose]} answers, {nodes} nodes" for whose, nodes in sizes[:-1]]
    return _table(["paper", "claims", *columns, "own answers, the paper's size"], rows)


def _mixed(results: dict[str, Any]) -> dict[str, dict[tuple[str, int], float]]:
    """By label, tokens per forward pass of several drafters mixed, by answers and size."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for whose, of in results.items():
        for row in of["forms"]:
            if row["paper"] is None:
                names = row["form"].split("+")
                label = f"ours, {', '.join(f'`{name}`' for name in names)}"
                key = whose, row["nodes"]
                found.setdefault(label, {})[key] = row["tokens_per_step"]
    return found


def answers(name: str) -> str:
    """Tokens per forward pass on the model's own answers beside others', of one drafter each."""
    results = json.loads((ROOT / name).read_text(encoding="utf-8"))["results"]
    sizes = [(whose, nodes) for whose in results for nodes in (16, 32)]
    found: dict[str, dict[tuple[str, int], float]] = {}
    for whose, nodes in sizes:
        for row in results[whose]["forms"]:
            if row["nodes"] == nodes:
                label = f"`{row['form']}` alone"
                if row["published"]:
                    label = CLAIMS[row["form"]].split(" (")[0] + ", as published"
                if "+" not in label:
                    found.setdefault(label, {})[whose, nodes] = row["tokens_per_step"]
    rows = [[label, *(f"{of[size]:.2f}" for size in sizes)] for label, of in found.items()]
    rows += [
        [f"**{label}**", *(f"**{of[size]:.2f}**" for size in sizes)]
        for label, of in _mixed(results).items()
    ]
    columns = [f"{WHOSE[whose]} answers, {nodes} nodes" for whose, nodes in sizes]
    return _table(["tokens per forward pass", *columns], rows)


def sequence(name: str) -> str:
    """How often Hierarchy Drafting asks each level at 32 nodes, and the time that this saves."""
    results = json.loads((ROOT / name).read_text(encoding="utf-8"))["results"]
    rows = []
    for whose, of in results.items():
        forms = [row for row in of["forms"] if row["form"] == "hierarchy" and row["nodes"] == 32]
        asked = forms[0]["share of steps that asked each level"]
        shares = [f"{100 * share:.0f} %" for share in asked]
        spent, whole = forms[0]["us_per_step"], forms[0]["us_per_step if all were asked"]
        rows.append([f"{WHOSE[whose]} answers", *shares, f"{spent / whole:.2f}"])
    levels = ["this text", "the model's 5-grams", "the corpus"]
    return _table(["steps that ask", *levels, "time of look-ups, relative to asking all"], rows)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def commands() -> str:
    """The help of every command, as typer writes it."""
    import typer
    from typer.cli import get_docs_for_click

    from hf_specplug.cli import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="specplug")
    text = get_docs_for_click(obj=command, ctx=context, name="specplug", indent=1)
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .+\n)+", "", text)  # they follow, in full
    text = re.sub(r"^Example: (.+)$", r"Example: `\1`", text, flags=re.MULTILINE)
    option = re.compile(r"^(\* `[^`]+`)(.+)$", re.MULTILINE)
    return option.sub(lambda found: found[1] + found[2].replace("[", "\\["), text)


def trees() -> str:
    """Four forward passes as a notebook draws them, with a fixed tree size for reproducibility."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from hf_specplug import DEMO_MODEL, attach

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL)
    plug = attach(model, nodes=12)
    text = "def merge(one, other):\n    merged = []\n    for value in one:\n        merged.append("
    model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=60, do_sample=False)
    return str(plug.trace(tokenizer)[24:28]._repr_html_())


SOURCES: dict[str, Callable[..., str]] = {
    "families": families,
    "sweep": sweep,
    "commands": commands,
    "trees": trees,
    "bench": bench,
    "rivals": rivals,
    "papers": papers,
    "answers": answers,
    "sequence": sequence,
    "file": included,
}
