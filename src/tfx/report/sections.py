"""A page of sections, with the style and the script of the report: sentences, plots, a table."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfx.errors import UserError
from tfx.record.files import write_text
from tfx.report.plots import Plot


@dataclass(frozen=True)
class Section:
    """A heading, sentences below it, a command, plots, and a table whose first ``texts`` columns are texts."""

    title: str
    lines: Sequence[str] = ()
    code: str = ""
    plots: Sequence[Plot] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)
    texts: int = 1


def render_template(name: str, **values: Any) -> str:
    """A page from its template in this folder: with the script that sorts tables, allowed by its digest."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(name).render(script=script, script_digest=digest, **values)


def write_html(text: str, file: Path) -> None:
    """Writes a page whole or not at all; raises `UserError` where it cannot be written."""
    # A name that the locale cannot spell has its bytes escaped, which are UTF-8 as a rule.
    try:
        write_text(file, text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"the page {file} cannot be written: {error.strerror}; name another with --html") from error


def write_sections(title: str, subtitle: str, sections: Sequence[Section], file: Path) -> None:
    """Writes a page of sections; raises `UserError` where it cannot be written."""
    write_html(render_template("sections.html", title=title, subtitle=subtitle, sections=sections), file)
