"""`tfx list`: the available choices."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tfx.config.describe import GROUPS, choices
from tfx.errors import unknown
from tfx.record.arguments import Arguments
from tfx.record.console import plain_console
from tfx.record.sheet import Column, Sheet


def main(arguments: Sequence[str]) -> int:
    """Prints every group's choices with one line each, or those of the groups that are named."""
    parser = Arguments("list", "The available models, data sets, techniques …")
    parser.add_argument("groups", nargs="*", help="only these: " + ", ".join(GROUPS))
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    options = parser.read(arguments)
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
        table = Sheet(Column("", wrap=False, style="cyan"), Column(""), title=group, lines=False)
        for name, text in entries.items():
            table.add_row(f"{group}={name}", text)
        if not entries:
            table.add_row("(none)", "")
        console.print(table)
        console.print()
    return 0
