"""Every text-generating entry of transformers, plain against attached.

    python -m tests.sweep                                   # all; go on where an earlier run ended
    python -m tests.sweep --fresh --save                    # all anew, and the table of the docs
    python -m tests.sweep --only gemma4 llava --verbose     # some, with what went wrong
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.sweep.pool import Worker
from tests.sweep.recipe import ENTRIES, MAPPINGS, model_type
from tests.sweep.table import SAVED, header, save

ROWS = Path(__file__).parents[2] / "build" / "sweep.jsonl"
FAILED = ("crash", "differs")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="model_types, classes or mappings")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks and all of each row")
    parser.add_argument("--jobs", type=int, default=2, help="entries at a time (2)")
    parser.add_argument("--out", type=Path, default=ROWS, help=f"rows, one a line ({ROWS})")
    parser.add_argument("--save", action="store_true", help=f"write {SAVED.name} when all are done")
    options = parser.parse_args()

    known = {} if options.fresh or options.only else read(options.out)
    wanted = [entry for entry in ENTRIES if not options.only or named(entry, options.only)]
    if not wanted:
        parser.error(f"no entry is named {' or '.join(options.only)}")
    todo = [entry for entry in wanted if entry not in known]
    if known:
        print(f"{len(known)} of {len(wanted)} rows are in {options.out}; --fresh forgets them")
    elif not options.only:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(header()) + "\n", encoding="utf-8")
    rows = dict(known)
    with tqdm(total=len(wanted), initial=len(known), unit="model", disable=None) as bar:
        for row in answered(todo, options.jobs, options.verbose):
            rows[row["mapping"], row["model_type"]] = row
            if not options.only:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            bar.set_postfix_str(row["model_type"])
            bar.update()
            if options.only or row["outcome"] in FAILED:
                tqdm.write(shown(row, options.verbose))
    summary = Counter(row["outcome"] for row in rows.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in summary.most_common()))
    if options.save:
        save(list(rows.values()))
    return int(any(summary[outcome] for outcome in FAILED))


def named(entry: tuple[str, str], names: list[str]) -> bool:
    mapping, name = entry
    kind = model_type(name)
    return bool({mapping, name, kind, MAPPINGS[mapping][kind], f"{mapping}/{name}"} & set(names))


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of an earlier run, if it was with the same versions."""
    if not path.is_file():
        return {}
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    before, now = json.loads(first), header()
    if before != now:
        print(f"{path} is of another run ({before}); it starts anew", file=sys.stderr)
        return {}
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {(row["mapping"], row["model_type"]): row for row in rows}


def shown(row: dict[str, Any], verbose: bool) -> str:
    name = f"{row['mapping']}/{row['model_type']}"
    if verbose:
        return f"{name}\n" + "\n".join(f"    {key}: {value}" for key, value in row.items())
    return f"{name}: {row['outcome']} {row['reason']} (images: {row['images']}, {row['seconds']} s)"


def answered(
    entries: list[tuple[str, str]], jobs: int, verbose: bool
) -> Iterator[dict[str, Any]]:
    """The rows of entries, as they come."""
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    done: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for entry in entries:
        waiting.put(entry)

    def work() -> None:
        with Worker(verbose) as worker:
            while True:
                try:
                    entry = waiting.get_nowait()
                except queue.Empty:
                    return
                done.put(worker.row(*entry))

    for _ in range(min(jobs, len(entries))):
        threading.Thread(target=work, daemon=True).start()
    for _ in entries:
        yield done.get()


if __name__ == "__main__":
    sys.exit(main())
