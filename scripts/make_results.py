"""Makes every table of docs/RESULTS.md from the files under docs/results.

    python scripts/make_results.py            # writes docs/RESULTS.md again
    python scripts/make_results.py --check    # status 1 where it is not what the files give

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. Kept runs (``*.runs.jsonl``) are named as
`tfx.report.kept` says; what no kept run holds was printed by a script and lies under ``benchmarks/``, with its command,
machine and date.
"""

import argparse
import re
from pathlib import Path

from results import compression, dense, techniques, tried
from results.files import TABLES

PAGE = Path(__file__).parents[1] / "docs" / "RESULTS.md"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Importing them registers their tables.
SUBJECTS = (dense, techniques, compression, tried)


def make(page: str) -> str:
    """The page with its tables made anew; raises `KeyError` where a marker names no table, or a table has no marker."""
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
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 where the page would change")
    options = parser.parse_args(arguments)
    page = PAGE.read_text(encoding="utf-8")
    made = make(page)
    if options.check:
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
