"""`tfx list`: the available choices."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tfx.config.choices import GROUPS, choices, model_settings
from tfx.errors import unknown
from tfx.terminal.arguments import Arguments
from tfx.terminal.console import plain_console
from tfx.terminal.tables import Column, Sheet


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
    # Only where models alone are asked for: it loads torch.
    exports = _exports(found["model"]) if wanted == ["model"] else {}
    if options.json:
        whole = {**found, "exports": exports} if exports else found
        print(json.dumps(whole, indent=2))
        return 0
    console = plain_console()
    for group, entries in found.items():
        columns = [Column("", wrap=False, style="cyan"), Column("")]
        table = Sheet(*columns, *([Column("")] if exports else []), title=group, lines=False)
        for name, text in entries.items():
            table.add_row(f"{group}={name}", text, *([f"exports to {', '.join(exports[name])}"] if exports else []))
        if not entries:
            table.add_row("(none)", "")
        console.print(table)
        console.print()
    return 0


def _exports(models: Iterable[str]) -> dict[str, list[str]]:
    """The libraries that `tfx export` writes each model for, as it stands."""
    from tfx.exchange.targets import exportable

    return {name: exportable(model_settings(name)) for name in models}
