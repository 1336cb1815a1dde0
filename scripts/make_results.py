"""Builds every table of docs/RESULTS.md from the files in docs/results.

    python scripts/make_results.py            # rewrites docs/RESULTS.md
    python scripts/make_results.py --check    # exits with status 1 if the page is out of date

Each table is between ``<!-- table: NAME -->`` and ``<!-- end -->``. `tfx.report.runs_file` defines the names of kept
runs (``*.runs.jsonl``). Numbers that no kept run holds were printed by a script; they are in ``benchmarks/``, with
command, machine and date.
"""

import argparse
import re
from pathlib import Path

from results import codec, compression, dense, exchange, labels, scale, search, techniques, tried
from results.files import TABLES

PAGE = Path(__file__).parents[1] / "docs" / "RESULTS.md"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Importing these modules registers their tables.
SUBJECTS = (dense, scale, exchange, labels, techniques, compression, codec, search, tried)


def make(page: str) -> str:
    """The page with its tables rebuilt; raises `KeyError` if a marker names no table, or a table has no marker."""
    unused = set(TABLES)

    def replace(match: re.Match[str]) -> str:
        unused.discard(match[2])
        return f"{match[1]}{TABLES[match[2]]()}{match[3]}"

    made = MARKED.sub(replace, page)
    if unused:
        raise KeyError(f"no marker in the page names {', '.join(sorted(unused))}")
    return made


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with status 1 if the page would change"
    )
    options = parser.parse_args(arguments)
    page = PAGE.read_text(encoding="utf-8")
    made = make(page)
    if options.check:
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
