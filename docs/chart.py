"""Draw `docs/speed.svg`, the chart of the README, from a run of `specplug bench`.

    python docs/chart.py

The SVG follows the light or dark colour scheme of the reader, has no background, and needs no
library to draw. A test compares the committed file with what this script makes.
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from hf_specplug.bench import results
from hf_specplug.bench.prompts import TASKS

DOCS = Path(__file__).parent
RUN = DOCS / "bench" / "chat-code-32m.json"
CHART = DOCS / "speed.svg"

METHODS = {
    "prompt-lookup": "prompt lookup of transformers",
    "specplug:pack=no": "hf-specplug, drafting alone (pack=False)",
    "specplug": "hf-specplug (with packed weights, the default)",
}
"""The methods that are drawn, and their names in the legend."""

WIDTH, HEIGHT = 860, 345
LEFT, RIGHT, TOP, BOTTOM = 42, 856, 84, 300  # edges of the plot, in pixels
BAR = 31  # pixels

STYLE = """
.speed { --ink: #1f2328; --soft: #59636e; --rule: #d1d9e0;
--m0: #9aa4ae; --m1: #7fb2f0;
--m2: #0b5cad; --on-m2: #ffffff; }
@media (prefers-color-scheme: dark) {
.speed { --ink: #f0f6fc; --soft: #9198a1; --rule: #3d444d;
--m0: #6e7681; --m1: #2f6fb5;
--m2: #79c0ff; --on-m2: #0d1117; }
}
.speed text { fill: var(--ink);
font: 12px system-ui, -apple-system, "Segoe UI", "Noto Sans", Arial, sans-serif; }
.speed .title { font-size: 15px; font-weight: 600; }
.speed .soft { fill: var(--soft); }
.speed .on2 { fill: var(--on-m2); }
.speed .middle { text-anchor: middle; }
.speed .end { text-anchor: end; }
.speed .bold { font-weight: 600; }
.speed .rule { stroke: var(--rule); }
.speed .plain { stroke: var(--ink); stroke-dasharray: 4 3; }
.speed .m0 { fill: var(--m0); } .speed .m1 { fill: var(--m1); } .speed .m2 { fill: var(--m2); }
"""


def speeds(found: results.Results) -> dict[str, list[float]]:
    """For "all" and each task: tokens per second over plain `generate`, by method."""
    groups: dict[str, str | None] = {"All tasks": None}
    groups |= {TASKS[task]: task for task in results.tasks(found)}
    return {
        name: [results.summary(found, method, task).speed for method in METHODS]
        for name, task in groups.items()
    }


def svg(found: results.Results) -> str:
    """The chart as text."""
    groups = speeds(found)
    ceiling = max(max(values) for values in groups.values()) * 1.08
    asked = found["arguments"]
    title = "Speed over plain generate on two CPU cores"
    same = min(results.summary(found, method).identical for method in METHODS)
    note = (
        f"32 M Llama, {asked['dtype']}, greedy, {asked['tokens']} new tokens; "
        f"Spec-Bench, no datastore; {same} of {len(found['rows'])} outputs identical to plain"
    )

    def height(speed: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * speed / ceiling

    step = (RIGHT - LEFT) / len(groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="speed" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'role="img" aria-labelledby="speed-title speed-values">',
        f'<title id="speed-title">{escape(title)}</title>',
        f'<desc id="speed-values">{escape(_in_words(groups))}</desc>',
        f"<style>{STYLE}</style>",
        _text(0, 18, title, "title"),
        _text(0, 37, note, "soft"),
    ]
    at = 0.0
    for place, label in enumerate(METHODS.values()):
        parts.append(f'<rect class="m{place}" x="{at:g}" y="50" width="12" height="12" rx="2"/>')
        parts.append(_text(at + 18, 60, label))
        at += 48 + 6.5 * len(label)
    for level in range(int(ceiling) + 1):
        y = height(level)
        kind = "plain" if level == 1 else "rule"
        parts.append(f'<path class="{kind}" d="M{LEFT} {y:.1f}H{RIGHT}"/>')
        parts.append(_text(LEFT - 6, y + 4, "plain" if level == 1 else f"{level}x", "soft end"))
    for group, (name, values) in enumerate(groups.items()):
        middle = LEFT + (group + 0.5) * step
        for place, speed in enumerate(values):
            x, y = middle + (place - len(values) / 2) * (BAR + 2), height(speed)
            parts.append(
                f'<rect class="m{place}" x="{x:.1f}" y="{y:.1f}" width="{BAR}" '
                f'height="{BOTTOM - y:.1f}" rx="2"/>'
            )
            parts.append(_text(x + BAR / 2, y + 15, f"{speed:.2f}", f"middle on{place}"))
        weight = " bold" if not group else ""
        for line, word in enumerate(name.split(" ", 1)):
            parts.append(_text(middle, BOTTOM + 17 + 15 * line, word, "middle" + weight))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>'


def _in_words(groups: dict[str, list[float]]) -> str:
    """For those who do not see the chart."""
    lines = []
    for name, values in groups.items():
        pairs = zip(METHODS.values(), values, strict=True)
        lines.append(f"{name}: " + ", ".join(f"{label} {speed:.2f}x" for label, speed in pairs))
    return "; ".join(lines) + "."


def main() -> None:
    CHART.write_text(svg(results.read(str(RUN))), encoding="utf-8")


if __name__ == "__main__":
    main()
