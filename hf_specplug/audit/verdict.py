"""What a certificate says: its verdict, and its tables."""

from __future__ import annotations

from typing import Any

from hf_specplug.audit.certificate import NODES, Certificate

EXACT = frozenset({"float32", "float64"})
"""Dtypes in which every difference is an error."""

Cells = tuple[list[str], list[list[str]]]
"""(columns, rows)"""


def failures(certificate: Certificate) -> list[dict[str, Any]]:
    """The runs that rounding does not excuse.

    In float32 and float64 any difference is one. In lower precision, a difference that is not a
    near-tie is one. In all dtypes, so are an error of the drafted call, and another state of the
    random generator after the same tokens.
    """
    exact = certificate["model"]["dtype"] in EXACT
    return [run for run in certificate["runs"] if _fails(run, exact)]


def _fails(run: dict[str, Any], exact: bool) -> bool:
    if run["identical"]:
        return not run["generator"]
    return bool(run["error"]) or exact or not run["differs"]["near_tie"]


def verdict(certificate: Certificate) -> str:
    """The result in one or two sentences."""
    runs, failed = certificate["runs"], failures(certificate)
    same = sum(run["identical"] for run in runs)
    drafted = sum(run["tokens_per_forward"] is not None for run in runs)
    text = f"{same} of {len(runs)} answers are identical to plain generate's"
    if failed:
        text = f"DIFFERENT: {text}; {len(failed)} are not as they should be."
    elif same == len(runs):
        text = f"Identical: {text}, and the random generator ends in the same state."
    else:
        dtype = certificate["model"]["dtype"]
        text = f"Near-ties: {text}; the others differ where rounding in {dtype} decides."
    if drafted < len(runs):
        text += f" {len(runs) - drafted} calls were not drafted."
    return text


def title(certificate: Certificate) -> str:
    """Model, dtype, device and versions."""
    about, versions = certificate["model"], certificate["versions"]
    names = ("hf_specplug", "transformers", "torch")
    of = ", ".join(f"{name} {versions[name]}" for name in names)
    return f"{certificate['arguments']['model']}, {about['dtype']} on {about['device']}; {of}"


def by_case(certificate: Certificate) -> Cells:
    """A row for each case."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in certificate["runs"]:
        groups.setdefault(run["case"], []).append(run)
    rows = [[name, *_summary(runs)] for name, runs in groups.items()]
    rows += [[name, "", "", "", f"skipped: {why}"] for name, why in certificate["skipped"].items()]
    return ["case", "same\ntokens", "same\nRNG end", "tokens\nper pass", "served as"], rows


def _summary(runs: list[dict[str, Any]]) -> list[str]:
    same = sum(run["identical"] for run in runs)
    states = sum(run["generator"] for run in runs)
    lengths = [run["tokens_per_forward"] for run in runs if run["tokens_per_forward"] is not None]
    return [
        f"{same} of {len(runs)}",
        f"{states} of {len(runs)}",
        f"{sum(lengths) / len(lengths):.2f}" if lengths else "",
        "; ".join(dict.fromkeys(run["served"] for run in runs)),
    ]


def differences(certificate: Certificate) -> Cells:
    """A row for each run that is not identical, or ends with another state of the generator."""
    columns = ["case", "prompt", "seed", "first at", "plain", "drafted", "margin", "rounding"]
    rows = []
    for run in certificate["runs"]:
        if run["identical"] and run["generator"]:
            continue
        head = [run["case"], run["prompt"], str(run["seed"])]
        rows.append([*head, *_difference(run["differs"]), _why(run)])
    return [*columns, "what it is"], rows


def _difference(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return [""] * 5
    tokens = ["end" if found[key] is None else str(found[key]) for key in ("plain", "drafted")]
    margin = "" if found["margin"] is None else f"{found['margin']:.2g}"
    return [str(found["position"] + 1), *tokens, margin, f"{found['rounding']:.2g}"]


def _why(run: dict[str, Any]) -> str:
    if run["error"]:
        return f"raises {run['error']}"
    if run["identical"]:
        return "the generator ends in another state"
    if not run["differs"]["reproducible"]:
        return "plain generate does not repeat itself"
    return "near-tie" if run["differs"]["near_tie"] else "difference"


def lines(certificate: Certificate) -> list[str]:
    """A sentence for each row of `differences`."""
    made = []
    for run in certificate["runs"]:
        if run["identical"] and run["generator"]:
            continue
        text = f"{run['case']}, {run['prompt']}, seed {run['seed']}: {_why(run)}"
        if run["differs"] is not None:
            position, plain, drafted, margin, rounding = _difference(run["differs"])
            text += f": token {position} is {drafted} instead of {plain}, margin {margin or 'none'}"
            text += f", rounding {rounding}"
        made.append(text)
    return made


def each_run(certificate: Certificate) -> Cells:
    """A row for each run."""
    rows = []
    for run in certificate["runs"]:
        length = run["tokens_per_forward"]
        rows.append(
            [
                run["case"],
                run["prompt"],
                str(run["seed"]),
                str(run["plain"]["tokens"]),
                run["plain"]["hash"],
                run["drafted"]["hash"],
                "same" if run["generator"] else "differs",
                "" if length is None else f"{length:.2f}",
            ]
        )
    columns = ["case", "prompt", "seed", "tokens", "plain", "drafted", "generator"]
    return [*columns, "tokens per pass"], rows


def notes(certificate: Certificate) -> list[str]:
    """What a reader should know beside the tables."""
    about = certificate["model"]
    lines = [
        f"Drafted with {NODES} tokens per forward pass in every step, even if this does not pay.",
        "Margin: by how much the logit of the drafted token would have to be higher for plain "
        "generate to pick it. Rounding: twice the largest change of a logit there "
        "between decoding token by token and one forward pass over the text, or one step of the "
        "dtype. A difference with a margin up to that is a near-tie.",
    ]
    if about["dtype"] in EXACT:
        lines[-1] += f" In {about['dtype']} near-ties count as differences as well."
    lines += [f"drafter {name} was dropped: {why}" for name, why in certificate["dropped"].items()]
    return lines
