"""The results of `specplug bench` as one self-contained HTML file."""

from __future__ import annotations

from html import escape
from typing import Any

from hf_specplug.bench import figures, html
from hf_specplug.bench.methods import PLAIN
from hf_specplug.bench.results import Results, methods, middle_length, names, notes, summary
from hf_specplug.bench.tables import by_rows, contributions, overall, spec_bench, title
from hf_specplug.telemetry import plots


def check(path: str) -> None:
    """Check before a long run that a report can be drawn and written.

    Raises:
        PlotError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    plots.style()
    open(path, "a", encoding="utf-8").close()


def write(path: str, results: Results) -> None:
    """Write the report of a run, finished or not.

    Raises:
        PlotError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    noted = [f"<p>{escape(line)}</p>" for line in notes(results)]
    parts = _batches(results, noted) if results["batches"] else _answers(results, noted)
    parts.append(_how(results))
    html.write(path, f"specplug bench: {results['arguments']['model']}", parts)


def _answers(results: Results, noted: list[str]) -> list[str]:
    """All about single answers."""
    parts = [_head(results), html.table(*overall(results)), *noted]
    parts += ["<h2>As Spec-Bench counts</h2>", html.table(*spec_bench(results))]
    parts.append(
        _figure(figures.by_task(results), "Speed by task, as a multiple of plain decoding")
    )
    parts.append(_figure(figures.by_answer(results), "Speed of single answers"))
    if results["milliseconds"]:
        parts.append("<h2>Cost of a forward pass, and what each drafter contributes</h2>")
        if results["ablation"]:
            parts.append(html.table(*contributions(results)))
        parts.append(
            _figure(
                figures.cost_and_contributions(results),
                "Cost by width, and contribution by drafter",
            )
        )
    parts += _drafted(results["stats"])
    return [*parts, _differences(results)]


def _batches(results: Results, noted: list[str]) -> list[str]:
    """All about batches."""
    asked = results["arguments"]
    parts = [
        f"<h1>{escape(asked['model'])}</h1>\n<p>{escape(title(results))}; batches of prompts from "
        f"{escape(asked['prompts'])}</p>",
        html.table(*by_rows(results)),
        "<p>A row counts in a forward pass until its answer ends. Time in the tail: the share of "
        "the time in which fewer than half of a batch's rows were generating.</p>",
        *noted,
        _figure(figures.by_rows(results), "Speed and tokens per forward pass by rows"),
    ]
    for part in results["batches"]:
        parts += _drafted(part["stats"], f" in batches of {part['rows']}")
    return parts


def _drafted(stats: dict[str, Any], where: str = "") -> list[str]:
    """What each plug drafted and accepted, by its counters."""
    parts = []
    for method, of_plug in stats.items():
        parts.append(f"<h2>What <code>{escape(method)}</code> drafted{where}</h2>")
        parts.append(_figure(plots.stats_figure(of_plug), f"What {method} drafted{where}"))
    return parts


def _figure(figure: object, name: str) -> str:
    return f"<figure>{plots.svg(figure, name)}</figure>"  # type: ignore[arg-type]


def _head(results: Results) -> str:
    asked, rows = results["arguments"], results["rows"]
    best = max(methods(results), key=lambda method: summary(results, method).speed)
    fastest = summary(results, best)
    headline = "No method is faster than plain decoding."
    if best != PLAIN:
        headline = (
            f"<strong>{escape(best)} generates {fastest.speed:.2f} times as many tokens per second "
            f"as plain <code>generate</code>; {fastest.identical} of {fastest.answers} answers are "
            "identical.</strong>"
        )
    datastores = f", datastores {', '.join(asked['datastores'])}" if asked["datastores"] else ""
    return (
        f"<h1>{escape(asked['model'])}</h1>\n<p>{escape(title(results))}; {len(names(results))} "
        f"prompts from {escape(asked['prompts'])}, {len(rows)} answers{escape(datastores)}</p>\n"
        f"<p>{headline}</p>"
    )


def _differences(results: Results) -> str:
    rows = [
        [method, row["name"], str(row["turn"] + 1), str(run["differs_at"] + 1), str(run["tokens"])]
        for row in results["rows"]
        for method, run in row["runs"].items()
        if run["differs_at"] is not None
    ]
    if not rows:
        return "<h2>Not identical</h2>\n<p>None: every answer is identical to plain decoding's.</p>"
    columns = ["method", "prompt", "turn", "first token that differs", "of tokens"]
    return (
        "<h2>Not identical</h2>\n<p>Every token is chosen from the model's own scores. A forward "
        "pass over several tokens rounds them differently, which can decide near-ties.</p>\n"
        + html.table(columns, rows)
    )


def _how(results: Results) -> str:
    asked, versions = results["arguments"], results["versions"]
    machine = results["machine"]
    of_kind = _HOW_BATCHES if results["batches"] else _how_answers(results)
    return (
        f"<h2>How it was measured</h2>\n<ul>{of_kind}"
        f"<li>{escape(machine['cpu'])}, {machine['cores']} cores, {machine['threads']} threads, "
        f"GPU {escape(machine['gpu'] or 'none')}; "
        f"{escape(', '.join(f'{name} {version}' for name, version in versions.items()))}; commit "
        f"{escape(results['commit'][:9] or 'unknown')}; "
        f"methods {escape(', '.join(asked['methods']))}"
        "</li></ul>"
    )


_HOW_BATCHES = (
    "<li>The methods generate each batch in turn, in another order at each batch, with the same "
    "seed. The rows of a batch are neighbours in the list of prompts, where each prompt stands "
    "once for each sample. Each number of rows begins with plugs that have learned nothing.</li>"
    "<li>x plain: all tokens divided by all seconds, the prompts' forward pass included, as a "
    "multiple of plain <code>generate</code> of the same batches. A batch is identical if all its "
    "rows are.</li>"
)


def _how_answers(results: Results) -> str:
    return (
        "<li>The methods answer each prompt in turn, in another order at each prompt. No method "
        "answers a prompt twice, because drafters learn from answers. In later turns of a "
        "conversation all methods see plain decoding's answers.</li>"
        "<li>x plain: all tokens divided by all seconds, the prompt's forward pass included, as a "
        "multiple of plain <code>generate</code>. Spec-Bench's figures are means over questions of "
        "tokens per second (arXiv 2401.07851). Its accepted tokens are tokens per forward pass, "
        "with the model's own token and the prompt's forward pass included.</li>"
        "<li>The cost of a forward pass is the median of ten after "
        f"{middle_length(results)} tokens. What a drafter contributes: the answers are replayed "
        "without the model, with new drafters, at that cost.</li>"
    )
