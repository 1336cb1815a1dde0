"""A report as its user meets it: grouping, warnings, broken neighbours, hostile text, the page in a browser."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from tfx.cli import main
from tfx.report.comparison import compare_runs, verdict


def facts(capsys, *arguments) -> dict:
    capsys.readouterr()
    assert main(["report", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_runs_are_grouped_by_config_without_seed_and_compared_with_the_plain_arm(sweep, capsys):
    (family,) = facts(capsys, sweep)["families"]
    assert family["baseline"] == "no technique"
    assert [(arm["arm"], arm["seeds"]) for arm in family["arms"]] == [("no technique", [1, 2, 3]), ("prune", [1, 2, 3])]
    base, prune = family["arms"]
    assert base["difference"] is None
    assert prune["difference"] == pytest.approx(prune["mean"] - base["mean"])
    assert prune["difference_low"] < prune["difference"] < prune["difference_high"]
    assert base["on_front"]["bytes"]
    assert not (sweep / "report.html").exists()


def test_runs_that_start_from_the_seeds_of_one_config_are_seeds_of_one_arm(tmp_path, run_writer, capsys):
    origins = [run_writer(tmp_path / f"dense{seed}", seed=seed) for seed in (1, 2)]
    other = run_writer(tmp_path / "other", techniques=("shuffle",))
    for number, origin in enumerate([*origins, other, tmp_path / "gone1", tmp_path / "gone2"]):
        run = run_writer(tmp_path / "runs" / f"{number}", techniques=("prune",), seed=number)
        chain = run_writer(tmp_path / "runs" / f"again{number}", techniques=("prune",), seed=number)
        for folder, start in ((run, origin), (chain, run)):
            (folder / "config.yaml").write_text(f"init_from: {start}\n{(folder / 'config.yaml').read_text()}")
    (family,) = facts(capsys, tmp_path / "runs")["families"]
    assert sorted(arm["seeds"] for arm in family["arms"]) == [[0, 1], [0, 1], [2], [2], [3], [3], [4], [4]]


def test_a_start_from_another_seed_is_no_difference_to_name(tmp_path, run_writer, capsys):
    origins = [run_writer(tmp_path / f"dense{seed}", seed=seed) for seed in (1, 2)]
    for share, seeds in ((1, (0, 1)), (2, (1,))):
        for seed in seeds:
            folder = run_writer(tmp_path / "runs" / f"{share}-{seed}", seed=seed)
            words = f"init_from: {origins[seed]}\nshare: {share}\n"
            (folder / "config.yaml").write_text(words + (folder / "config.yaml").read_text())
    (family,) = facts(capsys, tmp_path / "runs")["families"]
    assert [arm["arm"] for arm in family["arms"]] == ["no technique", "share=2"]


def test_runs_that_start_from_themselves_or_each_other_end_the_chain(tmp_path, run_writer, capsys, monkeypatch):
    from tfx.report import runs

    read, files = runs._read_config, []
    monkeypatch.setattr(runs, "_read_config", lambda file: files.append(file) or read(file))
    names = ("init_from", "reference")
    for number in range(20):
        folder = run_writer(tmp_path / str(number))
        others = "".join(f"{name}: {tmp_path / str(number + i)}\n" for i, name in enumerate(names))
        (folder / "config.yaml").write_text(others + (folder / "config.yaml").read_text())
    (family,) = facts(capsys, tmp_path)["families"]
    assert sum(len(arm["seeds"]) for arm in family["arms"]) == 20
    assert len(files) <= 20 * 21


def test_a_name_that_the_locale_cannot_spell_is_on_the_page(sweep):
    (sweep / "base1").rename(sweep / "größe")
    code = "import sys; from tfx.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code, "report", "."], cwd=sweep, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "größe" in (sweep / "report.html").read_text(encoding="utf-8")


def test_a_home_that_is_not_there_is_nothing_to_say(sweep):
    code = "import sys; from tfx.cli import main; sys.exit(main(sys.argv[1:]))"
    unset = ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": "/dev/null"}
    words = ["report", ".", "--json", "--html", "page.html"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=sweep, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_baseline_can_be_named_by_label_or_by_run(sweep, capsys):
    for name in ("prune", sweep / "prune2"):
        (family,) = facts(capsys, sweep, "--baseline", name)["families"]
        assert family["baseline"] == "prune"
    assert main(["report", str(sweep), "--baseline", "prun"]) == 2
    assert "did you mean 'prune'" in capsys.readouterr().err


def test_the_page_is_self_contained_and_has_every_part(sweep, capsys):
    assert main(["report", str(sweep), "--margin", "0.1"]) == 0
    assert "worse" in capsys.readouterr().out
    page = (sweep / "report.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert page.count("<script>") == 1  # the one that sorts, which the policy names by its digest
    assert "script-src 'sha256-" in page
    for part in (
        "Differences to the baseline",
        "Learning curves",
        "stage cost",
        "Sparsity and bits",
        "differs most from",
    ):
        assert part in page, part
    ids = re.findall(r'\bid="([^"]+)"', page)
    svgs = page.count("<svg")
    assert svgs == page.count('role="img"') == page.count("<desc")
    assert svgs >= 7
    titles = [name for name in ids if name.endswith(("-t", "-d"))]
    assert len(set(titles)) == len(titles) == 2 * svgs
    assert not re.search(r"#010[ab]", page)  # every colour is a variable


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}


def test_nothing_from_a_run_becomes_markup(run_writer, tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>[bold]{{ 7*7 }}--> $\\frac{1$"
    rows = [
        {"source": f"{evil}{i}", "reference": [evil], "hypothesis": f"{evil} {i % 2}", "nll": 3.0 + i, "targets": 2,
         "exact_match": float(i % 2)}
        for i in range(10)
    ]  # fmt: skip
    other = [row | {"hypothesis": evil, "nll": 1.0} for row in rows]
    run_writer(tmp_path / "a", rows=rows, summary={"dataset": evil, "model": evil})
    run = run_writer(
        tmp_path / "b", rows=other, techniques=("t",), summary={"dataset": evil, "techniques": [evil, "u"]}
    )
    tensors = [{"name": evil, "shape": [2, 2], "codec": evil, "bits_per_weight": 1, "sparsity": 0, "bytes": 1}]
    (run / "tensors.json").write_text(json.dumps(tensors))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "summary.json").write_text(json.dumps({"status": "failed", "error": evil}))
    assert main(["report", str(tmp_path)]) == 0
    tags = Tags()
    page = (tmp_path / "report.html").read_text()
    tags.feed(page)
    assert not {"img", "image", "iframe"} & tags.tags
    assert page.count("<script") == 1  # our own
    assert not any(name.startswith("on") for name in tags.attributes)
    assert "{{ 7*7 }}" in page


# Services that the browser itself asks for, whatever page it shows.
_BROWSERS_OWN = re.compile(r"https?://[^/]*(google|gvt1|googleapis|gstatic)[^/]*/")

BROKEN = {
    "no summary": {"summary.json": None},
    "not JSON": {"summary.json": "{"},
    "a list": {"summary.json": "[]"},
    "failed": {"summary.json": '{"status": "failed", "error": "out of memory"}'},
    "no config": {"config.yaml": None},
    "a program for a config": {"config.yaml": "!!python/object/apply:os.system ['touch hacked']"},
    "a config without end": {"config.yaml": "a: &a {x: 1, y: 2}\n" + "".join(
        f"{new}: &{new} {{{', '.join(f'k{j}: *{old}' for j in range(9))}}}\n"
        for old, new in pairwise("abcdefghijkl"))},
    "binary": {"summary.json": "\x00\x01"},
    "numbers that are none": {"summary.json": '{"status": "completed", "primary_metric": "f1", "test": {"f1": "x"}}'},
    "not a number": {"summary.json": '{"status": "completed", "primary_metric": "bleu", "test": {"bleu": NaN}}'},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_named_and_left_out(name, run_writer, sweep, capsys, monkeypatch):
    monkeypatch.chdir(sweep)
    broken = run_writer(sweep / "stranger")
    for file, content in BROKEN[name].items():
        (broken / file).unlink()
        if content is not None:
            (broken / file).write_text(content)
    found = facts(capsys, sweep)
    assert [item["path"] for item in found["left_out"]] == [str(broken)]
    assert found["left_out"][0]["reason"]
    assert sum(arm["runs"] for arm in found["families"][0]["arms"]) == 6
    assert not (sweep / "hacked").exists()


@pytest.mark.parametrize("file", ["predictions.jsonl", "metrics.jsonl", "tensors.json", "attention.json"])
@pytest.mark.parametrize("content", ["", "[1, 2]\n", '{"split": "valid"}\n', "\x00"])
def test_a_damaged_side_file_costs_only_what_it_held(file, content, sweep):
    (sweep / "base1" / file).write_text(content)
    assert main(["report", str(sweep)]) == 0


def test_unfair_comparisons_are_warned_of(run_writer, sweep, capsys):
    row = {"source": "x", "reference": "y", "hypothesis": "y", "nll": 1.0, "targets": 1, "exact_match": 1.0}
    run_writer(sweep / "other", techniques=("quantize",), fingerprint="b", tokens=5000, rows=[row])
    (family,) = facts(capsys, sweep)["families"]
    assert family["warnings"] == [
        "no sentences in common with the baseline (1 of 3 configs): only seeds are resampled.",
        "other data (1 of 3 configs): the quality is not comparable.",
        "different budget (1 of 3 configs): the difference is not due to the techniques alone.",
    ]
    assert len(family["details"]) == 3
    assert all("quantize" in line for line in family["details"])
    assert "different budget: quantize (5,000 training tokens; baseline: 1,000)" in family["details"]


def test_other_data_with_the_same_test_sentences_differ_in_training_alone(run_writer, sweep, capsys):
    run_writer(sweep / "rewritten", techniques=("distill",), fingerprint="b")
    run_writer(sweep / "unlike", techniques=("mixup",), fingerprint="c", sentences=30)
    (family,) = facts(capsys, sweep)["families"]
    warnings = {arm["arm"]: arm["warnings"] for arm in family["arms"]}
    assert [warning.split(":")[0] for warning in warnings["distill"]] == ["other training data"]
    assert [warning.split(" (")[0] for warning in warnings["mixup"]][-1] == "other data"


def test_the_same_texts_with_another_tokenizer_are_no_other_data(run_writer, tmp_path, capsys):
    for name, techniques, tokens in (("base", (), "a"), ("small", ("quantize",), "b")):
        folder = run_writer(tmp_path / name, techniques=techniques, fingerprint=tokens)
        environment = json.loads((folder / "environment.json").read_text())
        environment["fingerprints"] |= {"corpus": "same", "tokenizer": tokens}
        (folder / "environment.json").write_text(json.dumps(environment))
    (family,) = facts(capsys, tmp_path)["families"]
    kinds = [warning.partition(" (")[0] for warning in family["warnings"]]
    assert "different tokenizer" in kinds
    assert not [kind for kind in kinds if "data" in kind]


def test_a_verdict_says_that_the_texts_were_decoded_otherwise(run_writer, tmp_path):
    for name, techniques, beam in (("base", (), 1), ("small", ("quantize",), 5)):
        for seed in (1, 2, 3):
            folder = run_writer(tmp_path / f"{name}{seed}", techniques=techniques, seed=seed)
            with open(folder / "config.yaml", "a") as file:
                file.write(f"evaluation: {{method: beam, beam: {beam}}}\n")
    (family,) = compare_runs([tmp_path]).families
    assert [", decoded otherwise" in verdict(arm, family) for arm in family.arms] == [False, True]


def test_a_run_is_reported_from_inside_its_folder(sweep, monkeypatch, capsys):
    monkeypatch.chdir(sweep / "base1")
    assert main(["report", "."]) == 0
    monkeypatch.chdir(sweep / "base2")
    assert main(["report", "../base1", "."]) == 0


def test_a_teacher_that_cost_the_run_nothing_is_warned_of(run_writer, sweep, capsys):
    spent = {"steps": 10, "tokens": 1000, "seconds": 5.0, "flops": 1e12}
    # A second went into the outputs of the one that was given: of its training nobody knows.
    for name, seconds, tokens in (("paid", 9.0, 500), ("given", 1.0, 0)):
        summary = {"train": spent | {"teacher_seconds": seconds, "teacher_tokens": tokens}}
        run = run_writer(sweep / name, techniques=(name,), summary=summary)
        environment = json.loads((run / "environment.json").read_text())
        environment["fingerprints"]["teacher of distill"] = "f"
        (run / "environment.json").write_text(json.dumps(environment))
    (family,) = facts(capsys, sweep)["families"]
    assert [warning for warning in family["warnings"] if "teacher" in warning] == [
        "a teacher of unknown cost (1 of 4 configs): it is not in the cost of training."
    ]
    assert {arm["arm"]: arm["seconds"] for arm in family["arms"]}["paid"] == 14.0


def test_settings_that_only_record_more_tell_no_configs_apart(run_writer, sweep, capsys):
    for seed, maps in ((4, 0), (5, 2)):
        run = run_writer(sweep / f"maps{maps}", techniques=("mixup",), seed=seed)
        with open(run / "config.yaml", "a") as file:
            file.write(f"evaluation: {{attention_maps: {maps}}}\n")
    (family,) = facts(capsys, sweep)["families"]
    assert [arm["seeds"] for arm in family["arms"] if arm["arm"] == "mixup"] == [[4, 5]]


def test_a_run_that_starts_from_a_model_pays_for_that_models_training_too(run_writer, sweep, capsys):
    for seed, (name, cost) in enumerate({"init_from": 105.0, "reference": 5.0, "teacher": 5.0}.items()):
        reference = {"name": name, "train": {"seconds": 100.0, "flops": 4e12, "steps": None}}
        run_writer(sweep / name, techniques=("quantize",), seed=seed, summary={"reference": reference})
        (family,) = facts(capsys, sweep / name)["families"]
        assert family["arms"][0]["seconds"] == cost
        assert family["arms"][0]["flops"] == (5e12 if name == "init_from" else 1e12)


def test_csv_has_a_line_for_each_config(sweep, capsys):
    capsys.readouterr()
    assert main(["report", str(sweep), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["arm"] for row in rows] == ["no technique", "prune"]
    assert float(rows[1]["difference"]) < 0


def test_a_single_run_has_a_page(run_writer, tmp_path):
    run = run_writer(tmp_path / "run", techniques=("prune",))
    assert main(["report", str(run)]) == 0
    assert "stage cost" in (run / "report.html").read_text()


@pytest.mark.parametrize("arguments", [["nowhere"], ["."], [".", "--margin", "-1"]])
def test_wrong_input_is_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_report_imports_no_torch(sweep):
    code = "import sys; from tfx.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code, "report", str(sweep)], check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["0", "1"], ids=["dark", "light"])
def test_a_browser_shows_the_page_without_an_error_or_a_request(scheme, sweep, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome on PATH")
    assert main(["report", str(sweep)]) == 0
    log, shot = tmp_path / "net.json", tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--enable-logging=stderr",
             f"--log-net-log={log}", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,4000",
             f"--blink-settings=preferredColorScheme={scheme}"]  # fmt: skip
    page = (sweep / "report.html").as_uri()
    done = subprocess.run([browser, *flags, f"--screenshot={shot}", page], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert shot.stat().st_size > 20_000
    requests = [
        url for url in re.findall(r'"(?:url|original_url)":"([^"]+)"', log.read_text(errors="replace"))
        if url.startswith(("file:", "http")) and not url.startswith(page) and not _BROWSERS_OWN.search(url)
    ]  # fmt: skip
    assert not requests


def test_every_text_under_the_pointer_is_of_one_part_of_a_plot_and_a_curve_has_the_name_of_its_run(sweep):
    assert main(["report", str(sweep)]) == 0
    page = (sweep / "report.html").read_text()
    tips = re.findall(r"(<\w+>)<title>([^<]*)</title>", page.split("<main>")[1])
    assert {tag for tag, _ in tips} == {"<g>"}
    assert f"no technique: {sweep / 'base1'}, seed 1" in [text for _, text in tips]
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(svg)
        names = set(re.findall(r'\bid="([^"]+)"', svg))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= names


def test_warnings_of_several_tables_are_one_line_a_kind(sweep, run_writer, tmp_path, capsys):
    row = {"source": "x", "reference": "y", "hypothesis": "y", "nll": 1.0, "targets": 1, "exact_match": 1.0}
    run_writer(sweep / "other", techniques=("quantize",), fingerprint="b", rows=[row])
    for seed in (1, 2):
        run_writer(sweep / f"elsewhere{seed}", seed=seed, summary={"dataset": "elsewhere"})
    run_writer(
        sweep / "elsewhere3", techniques=("prune",), fingerprint="b", rows=[row], summary={"dataset": "elsewhere"}
    )
    capsys.readouterr()
    assert main(["report", str(sweep), "--details"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "other data" in line]
    assert lines == [
        "read with care: other data (2 of 5 configs, 2 of 2 tables): the quality is not comparable.",
        "  made-up: exact_match: other data: quantize (b; baseline: a)",
        "  elsewhere: exact_match: other data: prune (b; baseline: a)",
    ]
    assert (sweep / "report.html").read_text().count("Read with care") == 1


def test_links_to_folders_are_followed_and_no_folder_counts_twice(sweep, run_writer, tmp_path_factory, capsys):
    far = run_writer(tmp_path_factory.mktemp("far") / "away", techniques=("quantize",)).parent
    (sweep / "a link").symlink_to(far)
    (far / "back").symlink_to(sweep)
    (sweep / "base again").symlink_to(sweep / "base1")
    (family,) = facts(capsys, sweep)["families"]
    found = [Path(path) for arm in family["arms"] for path in (*arm["paths"], *arm["repetitions"])]
    names = [f"{name}{seed}" for name in ("base", "prune") for seed in (1, 2, 3)]
    assert sorted(str(path.relative_to(sweep)) for path in found) == ["a link/away", *names]


def test_plots_of_many_configs_have_the_numbers_of_the_table_for_names_that_they_cut(run_writer, tmp_path):
    for place in range(8):
        run = run_writer(tmp_path / str(place), quality=0.3 + place / 20)
        (run / "config.yaml").write_text(f"task: {'the same words ' * 5}{place}\n" + (run / "config.yaml").read_text())
    assert main(["report", str(tmp_path)]) == 0
    svgs = re.findall(r"<svg.*?</svg>", (tmp_path / "report.html").read_text(), re.DOTALL)
    assert len(svgs) == 2  # differences and curves; costs are alike
    assert sorted(re.findall(r"<text[^>]*>(\d): task=the same words [^<]*…</text>", svgs[0])) == list("2345678")
    assert sorted(re.findall(r"<text[^>]*>(\d): task=the same words [^<]*…</text>", svgs[1])) == list("2345678")


def test_rows_are_the_baseline_and_then_the_best_first(run_writer, tmp_path, capsys):
    for name, score in (("b", 0.2), ("a", 0.9), ("", 0.5), ("c", 0.4)):
        run_writer(tmp_path / name / "run", summary={"techniques": [*name], "test": {"exact_match": score}})
    (family,) = facts(capsys, tmp_path)["families"]
    assert [arm["mean"] for arm in family["arms"]] == [0.5, 0.9, 0.4, 0.2]
    for file in tmp_path.rglob("summary.json"):
        summary = json.loads(file.read_text())
        summary |= {"primary_metric": "loss", "test": {"loss": summary["test"]["exact_match"]}}
        file.write_text(json.dumps(summary))
    (family,) = facts(capsys, tmp_path)["families"]
    assert [arm["mean"] for arm in family["arms"]] == [0.5, 0.2, 0.4, 0.9]


def test_axes_have_plain_numbers_and_flat_ones_no_plot(run_writer, tmp_path):
    for place, (size, flops) in enumerate(((9_487_700, 1e12), (9_487_705, 3e14))):
        train = {"steps": 1, "tokens": 9, "seconds": 5.0, "flops": flops}
        run_writer(tmp_path / str(place), techniques=("t",) * place, summary={"bytes": {"file": size}, "train": train})
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "No plot against what is the same for all: file, MB; training, s." in page
    assert "exact_match against training, TFLOPs" in page
    assert "mathdefault" not in page
    assert {"1", "10", "100"} <= set(re.findall(r"<text[^>]*>([\d,.]+)</text>", page))
    assert not re.search(r"<text[^>]*>[^<]*1e[−+-]", page)


def test_all_differences_are_drawn_or_counted_and_each_has_a_text_under_the_pointer(sweep, monkeypatch):
    from tfx.report import page

    assert main(["report", str(sweep)]) == 0
    text = (sweep / "report.html").read_text()
    assert re.search(r"<title>prune: [−-]0\.\d+ \([−-]0\.\d+ to [−+-]0\.\d+\)</title>", text)
    assert "more are in the table above" not in text
    monkeypatch.setattr(page, "_MAX_DIFFERENCES", 0)
    assert main(["report", str(sweep)]) == 0
    assert "The best 0; 1 more are in the table above." in (sweep / "report.html").read_text()


def test_stages_say_where_training_went_on_behind_what_stands_as_trained(run_writer, tmp_path):
    for name, spent in (("during", 9.0), ("after", 1.0)):
        train = {"steps": 1, "tokens": 9, "seconds": spent, "flops": 1e9}
        run_writer(tmp_path / name, techniques=(name,), summary={"train": train})
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "A technique acted during training in during: there, “trained” is the model" in page


def test_a_verdict_says_where_only_the_correction_speaks_against_its_interval(run_writer, tmp_path, capsys):
    arms = {"": (0.5, 0.51, 0.52), "a": (0.53, 0.54, 0.55), "b": (0.5, 0.51, 0.53), "c": (0.4, 0.5, 0.6)}
    for name, scores in arms.items():
        for seed, score in enumerate(scores):
            summary = {"techniques": [name] if name else [], "test": {"exact_match": score}}
            (run_writer(tmp_path / f"{name}{seed}", seed=seed, summary=summary) / "predictions.jsonl").unlink()
    (family,) = facts(capsys, tmp_path)["families"]
    arm = next(arm for arm in family["arms"] if arm["arm"] == "a")
    assert arm["difference_low"] > 0
    assert arm["p"] < 0.05 < arm["p_holm"]
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Interval excludes 0, but not after Holm over 3 rows: a." in page
    assert "No difference shown: b, c." in page


def test_times_smaller_is_the_mean_ratio_of_the_runs(run_writer, tmp_path, capsys):
    for seed, ratio in ((1, 12.0), (2, 13.0)):
        run_writer(tmp_path / f"q{seed}", seed=seed, summary={"bytes": {"file": 2_000_000, "ratio": ratio}})
    (family,) = facts(capsys, tmp_path)["families"]
    assert family["arms"][0]["times_smaller"] == 12.5
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.index("times smaller") < page.index("<td>2.00 MB</td><td>12.5</td>")


def test_a_page_of_several_tables_has_links_to_each(sweep, run_writer):
    run_writer(sweep / "elsewhere", summary={"dataset": "elsewhere"})
    assert main(["report", str(sweep)]) == 0
    page = (sweep / "report.html").read_text()
    links = re.findall(r'<a href="#([\w-]+)">([^<]+)</a>', page)
    assert [text for _, text in links] == ["made-up: exact_match", "elsewhere: exact_match", "How to read the numbers"]
    assert all(f'id="{place}"' in page for place, _ in links)


def test_the_title_of_a_study_with_the_name_of_its_data_says_it_once(run_writer, tmp_path, capsys):
    for study in ("made-up", "other"):
        for name in ("prune", "quantize"):
            run_writer(tmp_path / study / name, techniques=(name, study))
    assert main(["report", str(tmp_path)]) == 0
    titles = re.findall(r"<h2>([^<]+)</h2>", (tmp_path / "report.html").read_text())
    assert titles[:2] == ["made-up: exact_match", "other, made-up: exact_match"]


@pytest.mark.parametrize("width", [80, 120, 240])
def test_a_narrow_terminal_keeps_intervals_and_no_name_is_broken_in_a_word(
    width, run_writer, tmp_path, capsys, monkeypatch
):
    names = ("a-rather-long-name-of-a-dense-model", "and-another-one-that-is-as-long-as-it")
    for place, name in enumerate(names):
        for seed in (1, 2):
            run_writer(tmp_path / "s" / name / f"seed{seed}", techniques=("prune",) * place, seed=seed)
    monkeypatch.setattr("tfx.terminal.console.UNLIMITED", width)
    assert main(["report", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "config" in line)
    assert "95 %" in head
    assert ("verdict" in head) == (width > 80)
    assert ("latency" in head) == (width > 120)
    cells = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert "".join(cells) == "".join(names)
    assert cells == [*names] if width > 120 else all(cell.endswith(("-", "model", "it")) for cell in cells)
