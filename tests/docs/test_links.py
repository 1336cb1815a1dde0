"""Every relative link and anchor of README and docs/ resolves, and every page is in the navigation of the site."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SITE = yaml.safe_load((ROOT / "properdocs.yml").read_text(encoding="utf-8"))


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def links(page: Path) -> list[str]:
    """Targets of links and images, those in HTML as well; web addresses left out."""
    text = without_code(page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r'(?:href|src)="([^"]+)"', text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page: those it names, and of its headings, with a number behind those that are there already."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    found: set[str] = set(re.findall(r'<a id="([^"]+)"></a>', text))
    for title in re.findall(r"^#{1,6} +(.+)$", text, re.M):
        words = re.sub(r"[^\w\s-]", "", title.lower()).strip()
        name = re.sub(r"\s", "-", words)
        number = 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found


def problem(page: Path, target: str) -> str | None:
    """What is wrong with a link of a page, or None."""
    path, _, anchor = target.partition("#")
    other = (page.parent / path).resolve() if path else page
    if not other.exists():
        return f"{target}: no such file"
    if other.is_dir():
        return f"{target}: a folder, which is no page of the site"
    if anchor and anchor not in anchors(other):
        return f"{target}: no such heading"
    return None


def in_navigation(node: object) -> list[str]:
    if isinstance(node, str):
        return [node]
    parts = node.values() if isinstance(node, dict) else node
    return [page for part in parts for page in in_navigation(part)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    assert [found for target in links(page) if (found := problem(page, target))] == []


def test_a_broken_link_or_anchor_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One: two\n[a](page.md#one-two) [b](#three) ![c](gone.svg) `[d](code.md)` [e](https://x.org)\n")
    found = [problem(page, target) for target in links(page)]
    assert found == [None, "#three: no such heading", "gone.svg: no such file"]


def test_every_page_is_in_the_navigation_once():
    left_out = SITE["exclude_docs"].split()
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    pages = {page for page in pages if not any(page == name or page.startswith(name) for name in left_out)}
    assert sorted(in_navigation(SITE["nav"])) == sorted(pages)
