"""The results of `specplug bench` as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from hf_specplug.bench import figures
from hf_specplug.bench.methods import PLAIN
from hf_specplug.bench.results import Results, methods, middle_length, names, notes, summary
from hf_specplug.bench.tables import overall, spec_bench, title, worth
from hf_specplug.telemetry import plots

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2429; --paper: #fff; --line: #d5d9de; --soft: #5c6670; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ea; --paper: #15191d; --line: #3a4249; --soft: #9aa5ae; }
}
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, li, footer { color: var(--soft); } p strong { color: var(--ink); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } code { font-size: 0.9em; }
""".strip()


def write(path: str, found: Results) -> None:
    """Write the report of what was measured, be it all or a part.

    Raises:
        PlotError: there is no matplotlib.
        OSError: the file cannot be written.
    """
    parts = [_head(found), _table(*overall(found))]
    parts += [f"<p>{escape(line)}</p>" for line in notes(found)]
    parts += ["<h2>As Spec-Bench counts</h2>", _table(*spec_bench(found))]
    parts.append(_figure(figures.by_task(found), "Speed by task, as a multiple of plain decoding"))
    parts.append(_figure(figures.by_answer(found), "Speed of single answers"))
    if found["milliseconds"]:
        parts.append("<h2>What a forward pass costs, and what each drafter is worth</h2>")
        if found["ablation"]:
            parts.append(_table(*worth(found)))
        parts.append(_figure(figures.cost_and_worth(found), "Cost by width, and worth by drafter"))
    for method, stats in found["stats"].items():
        parts.append(f"<h2>What <code>{escape(method)}</code> drafted</h2>")
        parts.append(_figure(plots.stats_figure(stats), f"What {method} drafted and accepted"))
    parts.append(_differences(found))
    parts.append(_how(found))
    name = escape(found["arguments"]["model"])
    text = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>specplug bench: {name}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )
    Path(path).write_text(text, encoding="utf-8")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _figure(figure: object, name: str) -> str:
    return f"<figure>{plots.svg(figure, name)}</figure>"  # type: ignore[arg-type]


def _head(found: Results) -> str:
    asked, rows = found["arguments"], found["rows"]
    best = max(methods(found), key=lambda method: summary(found, method).speed)
    of = summary(found, best)
    said = "Nothing here is faster than plain decoding."
    if best != PLAIN:
        said = (
            f"<strong>{escape(best)} generates {of.speed:.2f} times as many tokens per second as "
            f"plain <code>generate</code>; {of.identical} of {of.answers} answers are the same to "
            "the last token.</strong>"
        )
    datastores = f", datastores {', '.join(asked['datastores'])}" if asked["datastores"] else ""
    return (
        f"<h1>{escape(asked['model'])}</h1>\n<p>{escape(title(found))}; {len(names(found))} "
        f"prompts from {escape(asked['prompts'])}, {len(rows)} answers{escape(datastores)}</p>\n"
        f"<p>{said}</p>"
    )


def _differences(found: Results) -> str:
    rows = [
        [method, row["name"], str(row["turn"] + 1), str(run["differs_at"] + 1), str(run["tokens"])]
        for row in found["rows"]
        for method, run in row["runs"].items()
        if run["differs_at"] is not None
    ]
    if not rows:
        return "<h2>Not identical</h2>\n<p>None: every answer is plain decoding's.</p>"
    columns = ["method", "prompt", "turn", "first other token", "of tokens"]
    return (
        "<h2>Not identical</h2>\n<p>Every token was picked from the model's own scores; over many "
        "tokens at once they are rounded differently, and near-ties can fall the other way.</p>\n"
        + _table(columns, rows)
    )


def _how(found: Results) -> str:
    asked, versions = found["arguments"], found["versions"]
    machine = found["machine"]
    return (
        "<h2>How it was measured</h2>\n<ul>"
        "<li>All methods answer each prompt in turn, in another order at each; none is asked "
        "twice, as what is learned from an answer would make its repetition too easy. In later "
        "turns of a conversation all see what plain decoding answered.</li>"
        "<li>x plain: all tokens by all seconds, the prompt's forward pass included, beside plain "
        "<code>generate</code>. Spec-Bench's figures are means over questions of tokens per second "
        "(arXiv 2401.07851); its accepted tokens are those per forward pass, the model's own and "
        "the prompt's pass included.</li>"
        f"<li>The cost of a forward pass is the median of ten after {middle_length(found)} tokens. "
        "What a drafter is worth: the answers replayed without the model, with fresh drafters, and "
        "priced with that cost.</li>"
        f"<li>{escape(machine['cpu'])}, {machine['cores']} cores, {machine['threads']} threads, "
        f"GPU {escape(machine['gpu'] or 'none')}; "
        f"{escape(', '.join(f'{name} {version}' for name, version in versions.items()))}; commit "
        f"{escape(found['commit'][:9] or 'unknown')}; methods {escape(', '.join(asked['methods']))}"
        "</li></ul>"
    )
