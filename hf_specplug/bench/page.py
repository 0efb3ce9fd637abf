"""The results of `specplug bench` as one self-contained HTML file."""

from __future__ import annotations

from html import escape

from hf_specplug.bench import figures, html
from hf_specplug.bench.methods import PLAIN
from hf_specplug.bench.results import Results, methods, middle_length, names, notes, summary
from hf_specplug.bench.tables import contributions, overall, spec_bench, title
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
    parts = [_head(results), html.table(*overall(results))]
    parts += [f"<p>{escape(line)}</p>" for line in notes(results)]
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
    for method, stats in results["stats"].items():
        parts.append(f"<h2>What <code>{escape(method)}</code> drafted</h2>")
        parts.append(_figure(plots.stats_figure(stats), f"What {method} drafted and accepted"))
    parts.append(_differences(results))
    parts.append(_how(results))
    html.write(path, f"specplug bench: {results['arguments']['model']}", parts)


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
    return (
        "<h2>How it was measured</h2>\n<ul>"
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
        f"<li>{escape(machine['cpu'])}, {machine['cores']} cores, {machine['threads']} threads, "
        f"GPU {escape(machine['gpu'] or 'none')}; "
        f"{escape(', '.join(f'{name} {version}' for name, version in versions.items()))}; commit "
        f"{escape(results['commit'][:9] or 'unknown')}; "
        f"methods {escape(', '.join(asked['methods']))}"
        "</li></ul>"
    )
