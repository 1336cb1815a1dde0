"""docs/RESULTS.md: its tables are what the files under docs/results give, and nothing is kept that no table needs."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        import make_results

        yield make_results


@pytest.fixture(scope="module")
def files(script):
    from results import files

    return files


@pytest.fixture(scope="module")
def made(script, files):
    """The page made anew, and the names of the kept runs and printed files that its tables read."""
    read = set()
    arm, printed = files.arm, files.printed

    def reading_arm(*names):
        runs = arm(*names)
        read.update(name for name, run in files.kept_runs().items() if any(run is other for other in runs))
        return runs

    def reading_printed(name):
        read.add(name)
        return printed(name)

    with pytest.MonkeyPatch.context() as patch:
        for module in (files, *script.SUBJECTS):
            for name, reading in (("arm", reading_arm), ("printed", reading_printed)):
                if hasattr(module, name):
                    patch.setattr(module, name, reading)
        return script.make(script.PAGE.read_text(encoding="utf-8")), read


def test_the_page_is_what_the_files_give(script, made):
    assert made[0] == script.PAGE.read_text(encoding="utf-8"), "run python scripts/make_results.py"


def test_every_kept_run_and_printed_file_stands_behind_a_table(files, made):
    printed = {path.stem for path in (files.FOLDER / "benchmarks").iterdir()}
    assert {*files.kept_runs(), *printed} == made[1]


def test_what_was_printed_says_by_what_where_and_when(files):
    for path in (files.FOLDER / "benchmarks").iterdir():
        content = json.loads(path.read_text(encoding="utf-8"))
        assert {"command", "machine", "date", "source", "rows"} <= content.keys(), path


def test_kept_runs_that_others_name_are_kept(files):
    names = set(files.kept_runs())
    for name, run in files.kept_runs().items():
        teacher = run.config["technique"].get("distill", {}).get("teacher")
        for other in (run.config.get("init_from"), run.config.get("reference"), teacher):
            # Models of other libraries are named by where they would be.
            is_foreign = other is not None and ("cache/teachers" in other or other.startswith("path/to/"))
            assert other is None or other in names or is_foreign, name


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
