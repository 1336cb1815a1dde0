"""Keeps what tables stand on, of finished runs, in one small file that `tfx report` reads.

    python scripts/keep_runs.py docs/results/small-files.runs.jsonl rate1.9/seed1=outputs/2026-11-25/10-30-05-a1b2 \\
        --named outputs/2026-11-24/09-00-00-c3d4=dense/6m/seed1

Name a run by what it was: NAME=RUN adds the run directory RUN, or replaces what has that name. A run that others
start from, or learn from, is named in their configs by a path that ends with this machine: ``--named`` says which
kept run that path is, by its path from the file's folder.
"""

import argparse
from pathlib import Path

from tfx.report.runs_file import KeptRun, keep, read_kept, write_kept


def _pair(text: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A=B")
    return left, right


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="STUDY.runs.jsonl; made where there is none")
    parser.add_argument("runs", nargs="+", type=_pair, metavar="NAME=RUN")
    parser.add_argument("--named", nargs="+", type=_pair, metavar="PATH=NAME", default=[])
    parser.add_argument("--note", default="", help="what the config cannot say of these runs")
    options = parser.parse_args(arguments)
    kept = {}
    for place, run in read_kept(options.file) if options.file.exists() else ():
        if not isinstance(run, KeptRun):
            parser.error(f"{place}: {run}")
        kept[run.name] = run
    for name, folder in options.runs:
        kept[name] = keep(Path(folder), name, options.note, dict(options.named))
    write_kept(options.file, list(kept.values()))
    print(f"{options.file}: {len(kept)} runs")


if __name__ == "__main__":
    main()
