"""docs/RESULTS.md: its tables are what the files under docs/results give, and nothing is kept that no table needs."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_results", ROOT / "scripts" / "make_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(script):
    """The page made anew, and the names of the kept runs and printed files that its tables read."""
    read = set()
    arm, printed = script.arm, script.printed

    def reading_arm(*names):
        runs = arm(*names)
        read.update(name for name, run in script.kept_runs().items() if any(run is other for other in runs))
        return runs

    def reading_printed(name):
        read.add(name)
        return printed(name)

    script.arm, script.printed = reading_arm, reading_printed
    try:
        return script.make(script.PAGE.read_text(encoding="utf-8")), read
    finally:
        script.arm, script.printed = arm, printed


def test_the_page_is_what_the_files_give(script, made):
    assert made[0] == script.PAGE.read_text(encoding="utf-8"), "run python scripts/make_results.py"


def test_every_kept_run_and_printed_file_stands_behind_a_table(script, made):
    printed = {path.stem for path in (script.FOLDER / "benchmarks").iterdir()}
    assert {*script.kept_runs(), *printed} == made[1]


def test_what_was_printed_says_by_what_where_and_when(script):
    for path in (script.FOLDER / "benchmarks").iterdir():
        content = json.loads(path.read_text(encoding="utf-8"))
        assert {"command", "machine", "date", "source", "rows"} <= content.keys(), path


def test_kept_runs_that_others_name_are_kept(script):
    names = set(script.kept_runs())
    for name, run in script.kept_runs().items():
        teacher = run.config["technique"].get("distill", {}).get("teacher")
        for other in (run.config.get("init_from"), run.config.get("reference"), teacher):
            assert other is None or other in names or "cache/teachers" in other, name


def test_a_table_that_no_marker_names_and_a_marker_that_names_no_table_are_errors(script):
    with pytest.raises(KeyError, match="no marker in the page names"):
        script.make("nothing")
    with pytest.raises(KeyError, match="none-such"):
        script.make("<!-- table: none-such -->\n<!-- end -->")


def anchors(page: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([\w-]+)">', page))


def test_links_to_the_results_end_at_a_section(script):
    found = anchors(script.PAGE.read_text(encoding="utf-8"))
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for anchor in re.findall(r"RESULTS\.md#([\w-]+)", page.read_text(encoding="utf-8")):
            assert anchor in found, f"{page} links to #{anchor}"
