"""What a run found, as a file of one line a row, and as tables for the documentation."""

from __future__ import annotations

import json
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
SAVED = ROOT / "docs" / "sweep.json"
OUTCOMES = ("tree", "chain", "plain", "crash", "differs", "not built")
FAILED = ("crash", "differs")


def header() -> dict[str, str]:
    """What a run is made with."""
    import torch
    import transformers

    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "commit": commit.strip(),
    }


def save(rows: dict[tuple[str, str], Row], made_with: dict[str, str]) -> None:
    """Write the file that the documentation and the tests read: one line a row, in order."""
    kept = ("mapping", "model_type", "kind", "outcome", "reason", "images", "notes")
    lines = [
        json.dumps({key: row[key] for key in kept if row[key]})
        for _, row in sorted(rows.items(), key=lambda item: item[0])
    ]
    body = ",\n".join(lines)
    head = json.dumps(made_with)[1:-1]
    SAVED.write_text(f'{{{head}, "rows": [\n{body}\n]}}\n', encoding="utf-8")


def load() -> dict[str, Any]:
    """What was saved."""
    return dict(json.loads(SAVED.read_text(encoding="utf-8")))


def tables() -> str:
    """Counts by mapping and outcome, then the families of each outcome and reason."""
    saved = load()
    rows = saved["rows"]
    variants = sum("+" in row["model_type"] for row in rows)
    made = f"transformers {saved['transformers']}, torch {saved['torch']}, CPU, float32"
    said = f"{len(rows) - variants} entries and {variants} further configurations; {made}."
    return "\n\n".join([said, _counts(rows), _families(rows)])


def _counts(rows: list[Row]) -> str:
    mappings = list(dict.fromkeys(row["mapping"] for row in rows))
    images = [row for row in rows if row.get("images", "").split(":")[0] in (*OUTCOMES, "always")]
    groups = [(name, [row for row in rows if row["mapping"] == name]) for name in mappings]
    groups += [("all", rows), ("with images or sound", images)]
    lines = [["entries", "", *OUTCOMES], ["---"] + ["---:"] * (len(OUTCOMES) + 1)]
    for name, group in groups:
        counts = [sum(row["outcome"] == outcome for row in group) for outcome in OUTCOMES]
        lines.append([name, str(len(group)), *map(str, counts)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _families(rows: list[Row]) -> str:
    """A row for each outcome and reason; families that several mappings have are named once."""
    groups: dict[tuple[int, str], dict[str, None]] = defaultdict(dict)
    for row in rows:
        reason = general(row.get("reason", ""))
        groups[OUTCOMES.index(row["outcome"]), reason][row["model_type"]] = None
    lines = ["| run as | why not a tree | families |", "|---|---|---|"]
    for (outcome, reason), names in sorted(groups.items(), key=lambda g: (g[0][0], -len(g[1]))):
        listed = ", ".join(f"`{name}`" for name in sorted(names))
        lines.append(f"| **{OUTCOMES[outcome]}** | {reason.replace('|', '/')} | {listed} |")
    return "\n".join(lines)


def general(reason: str) -> str:
    """A reason without what is of one family only, so that others have the same."""
    reason = re.sub(r"^[\w-]+ (takes|has|is|with) ", r"it \1 ", reason)
    reason = re.sub(r"^a probe of [\w-]+ ", "a probe ", reason)
    reason = re.sub(r" off by [\d.e+-]+ deviations", " off", reason)
    reason = re.sub(r" \(\S+\.py:\d+\)$", "", reason)
    return reason if len(reason) < 160 else reason[:150].rsplit(" ", 1)[0] + " ..."
