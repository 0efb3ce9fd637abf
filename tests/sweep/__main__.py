"""Every text-generating entry of transformers, plain against attached.

python -m tests.sweep                                   # all; go on where an earlier run ended
python -m tests.sweep --fresh --save                    # all anew, and the file for the docs
python -m tests.sweep --only gemma4 llava --verbose     # some again, with what went wrong
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from tests.sweep.pool import answered
from tests.sweep.recipe import ENTRIES, MAPPINGS, model_type
from tests.sweep.table import FAILED, ROOT, SAVED, Row, header, save

ROWS = ROOT / "build" / "sweep.jsonl"
Rows = dict[tuple[str, str], Row]


def main() -> int:
    options = _options()
    known = {} if options.fresh else read(options.out, any_commit=bool(options.only))
    if not known:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(header()) + "\n", encoding="utf-8")
    wanted = [entry for entry in ENTRIES if not options.only or named(entry, options.only)]
    todo = [entry for entry in wanted if options.only or entry not in known]
    if len(todo) < len(wanted):
        print(f"{len(known)} of {len(wanted)} rows are in {options.out}; --fresh forgets them")
    rows = dict(known)
    done: Rows = {} if options.only else dict(known)
    with (
        tqdm(total=len(wanted), initial=len(wanted) - len(todo), unit="model", disable=None) as bar,
        options.out.open("a", encoding="utf-8") as file,
    ):
        for row in answered(todo, options.jobs, options.verbose):
            file.write(json.dumps(row) + "\n")
            file.flush()
            rows[row["mapping"], row["model_type"]] = done[row["mapping"], row["model_type"]] = row
            bar.set_postfix_str(row["model_type"])
            bar.update()
            if options.only or row["outcome"] in FAILED:
                bar.write(shown(row, options.verbose))
    counts = Counter(row["outcome"] for row in done.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()))
    if options.save:
        save(rows, json.loads(options.out.read_text(encoding="utf-8").split("\n")[0]))
    return int(any(counts[outcome] for outcome in FAILED))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="mappings, model_types, mapping/model_type, classes",
    )
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and whole rows")
    parser.add_argument("--jobs", type=int, default=2, help="entries at a time (default: 2)")
    parser.add_argument("--out", type=Path, default=ROWS, help=f"rows, one a line ({ROWS})")
    parser.add_argument("--save", action="store_true", help=f"then write {SAVED.relative_to(ROOT)}")
    options = parser.parse_args()
    unknown = [
        name for name in options.only or () if not any(named(entry, [name]) for entry in ENTRIES)
    ]
    if unknown:
        parser.error(f"no entry is named {' or '.join(unknown)}")
    return options


def named(entry: tuple[str, str], names: list[str]) -> bool:
    mapping, name = entry
    kind = model_type(name)
    return bool({mapping, name, kind, MAPPINGS[mapping][kind], f"{mapping}/{name}"} & set(names))


def read(path: Path, any_commit: bool) -> Rows:
    """The rows of an earlier run, if it was with the same versions and of the same code."""
    if not path.is_file():
        return {}
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    before, now = json.loads(first), header()
    if any_commit:
        before["commit"] = now["commit"]
    if before != now:
        print(f"{path} is of another run, {first}: starting anew", file=sys.stderr)
        return {}
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {(row["mapping"], row["model_type"]): row for row in rows}


def shown(row: Row, verbose: bool) -> str:
    name = f"{row['mapping']}/{row['model_type']}"
    if verbose:
        return f"{name}\n" + "\n".join(f"    {key}: {value}" for key, value in row.items())
    reason = f": {row['reason']}" if row["reason"] else ""
    return f"{name}: {row['outcome']}{reason} (images: {row['images']}, {row['seconds']} s)"


if __name__ == "__main__":
    sys.exit(main())
