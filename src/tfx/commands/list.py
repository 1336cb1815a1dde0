"""`tfx list`: what there is to choose from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from rich.table import Table

from tfx.config.describe import GROUPS, choices
from tfx.errors import unknown
from tfx.run.console import plain_console


def main(arguments: Sequence[str]) -> int:
    """Prints every group's choices with one line each, or those of the groups that are named."""
    parser = argparse.ArgumentParser(prog="tfx list", description="The models, data sets, techniques … there are.")
    parser.add_argument("groups", nargs="*", help="only these: " + ", ".join(GROUPS))
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    options = parser.parse_args(arguments)
    wanted = []
    for word in options.groups:
        # `tfx list models` reads better than `tfx list model`.
        name = word if word in GROUPS else word.removesuffix("s")
        if name not in GROUPS:
            raise unknown("group", word, GROUPS)
        wanted.append(name)
    found = {group: choices(group) for group in wanted or GROUPS}
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    console = plain_console()
    for group, entries in found.items():
        table = Table(title=group, title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(no_wrap=True, style="cyan")
        table.add_column()
        for name, text in entries.items():
            table.add_row(f"{group}={name}", text)
        if not entries:
            table.add_row("(none)", "")
        console.print(table)
        console.print()
    return 0
