"""`tfx ablate` as a user meets it: wrong input, the plan, the runs, and the same command again."""

import json

import pytest

from tfx.cli import main

TINY = [
    "model.width=32",
    "model.heads=2",
    "model.ffn_width=32",
    "model.decoder_layers=1",
    "model.encoder_layers=1",
    "evaluation.latency_inputs=2",
    "evaluation.beam=1",
    "dataset.metrics=[]",
    "dataset.limit.train=100",
    *(f"dataset.limit.{split}=10" for split in ("valid", "test")),
    "trainer.device=cpu",
    "trial_steps=4",
]


def ablate(*words: str) -> int:
    return main(["ablate", *TINY, *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seeds=2"], "no technique is named"),
        (["+technique=prune", "seeds=0"], "at least 1"),
        (["+technique=prune", "seeds=many"], "seeds"),
        (["+technique=prune", "design=all_subset"], "did you mean 'all_subsets'?"),
        (["+technique=prune", "match=time"], "choose one of flops, tokens"),
        (["+technique=prune", "sedes=3"], "did you mean 'seeds'?"),
        (["+technique=prne"], "did you mean 'prune'?"),
        (["+technique=prune", "-m"], "leave out -m"),
        (["+technique=[distill,mixup]", "technique.distill.cache_top_k=4"], "arm distill+mixup: technique 'distill'"),
    ],
)
def test_wrong_input_is_one_line_with_status_2_and_leaves_nothing(words, message, here, capsys):
    assert ablate(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if not line.startswith("trying ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not list(here.iterdir())


def test_help_explains_every_setting(capsys):
    assert main(["ablate", "--help"]) == 0
    shown = capsys.readouterr().out
    for word in ("seeds", "design", "match", "trial_steps", "hydra.launcher.jobs", "all_subsets"):
        assert word in shown


def test_a_dry_run_shows_the_plan_and_what_the_seeds_can_show(here, capsys):
    words = ["+technique=[prune,distill]", "dry_run=true", "match=flops", "trainer.budget.tokens=8000", "seeds=4"]
    assert ablate(*words, "technique.distill.teacher_budget.tokens=4000") == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in shown.splitlines()[1:6]}
    assert list(rows) == ["baseline", "distill", "prune", "distill+prune", "dense_int8"]
    tokens = {name: int(row[2].replace(",", "")) for name, row in rows.items() if len(row) > 2}
    # A student's token costs 3 forward passes, the teacher's 1 beside it; each of the 4,000 that made the teacher 3.
    assert min(tokens["distill"], tokens["distill+prune"]) == 8000
    assert tokens["baseline"] == pytest.approx((8000 * 4 + 4000 * 3) / 3, rel=0.05)
    assert "standard deviations between seeds" in shown
    assert "4 seeds per arm" in shown
    assert not list(here.iterdir())


def test_an_ablation_runs_its_arms_at_one_budget_adds_the_dense_int8_model_and_goes_on(here, capsys):
    words = ["+technique=quantize", "technique.quantize.granularity=channel", "technique.quantize.bits=3"]
    words += ["trainer.budget.steps=3", "hydra.sweep.dir=s"]
    assert ablate(*words, "seeds=1") == 0
    captured = capsys.readouterr()
    assert "3 jobs: 3 with a result, 0 without" in captured.out
    assert (here / "s" / "report.html").is_file()
    summaries = {file.parts[-3]: json.loads(file.read_text()) for file in (here / "s").glob("*/1/summary.json")}
    assert {name: s["techniques"] for name, s in summaries.items()} == {
        "baseline": [],
        "quantize": ["quantize"],
        "dense_int8": ["quantize"],
    }
    tokens = {s["train"]["tokens"] for s in summaries.values()}
    assert len(tokens) == 1
    weights = {name: s["bytes"]["weights"] + s["bytes"]["header"] for name, s in summaries.items()}
    assert weights["dense_int8"] == pytest.approx(weights["quantize"], rel=0.3)  # widths go in steps of 4
    assert summaries["dense_int8"]["parameters"] < summaries["quantize"]["parameters"]

    # One result is lost and one seed more is asked for: what is there stays as it is.
    (here / "s" / "quantize" / "1" / "summary.json").unlink()
    kept = (here / "s" / "baseline" / "1" / "summary.json").stat().st_mtime_ns
    assert ablate(*words, "seeds=2") == 0
    captured = capsys.readouterr()
    started = {line.split("started: ")[1] for line in captured.err.splitlines() if " started: " in line}
    assert started == {"quantize seed=1", "baseline seed=2", "quantize seed=2", "dense_int8 seed=2"}
    assert "trying" not in captured.err
    assert (here / "s" / "baseline" / "1" / "summary.json").stat().st_mtime_ns == kept

    assert ablate(*words, "seeds=2", "match=flops") == 2
    assert "holds another ablation" in capsys.readouterr().err


@pytest.mark.slow
def test_arms_of_a_seed_share_one_teacher_and_the_report_says_what_each_technique_adds(here, capsys):
    words = ["+technique=[distill,prune]", "trainer.budget.steps=3", "seeds=2", "hydra.sweep.dir=s"]
    assert ablate(*words, "hydra.launcher.jobs=2", "design=all_subsets") == 0
    shown = capsys.readouterr().out
    assert "what each technique adds to loss" in shown
    teachers = list((here.parent / "cache" / "teachers").iterdir())
    assert len(teachers) == 2
    summaries = [json.loads(file.read_text()) for file in (here / "s").glob("*/*/summary.json")]
    taught = [s["train"] for s in summaries if "distill" in s["techniques"]]
    assert len(taught) == 4
    assert all(train["teacher_tokens"] > 0 for train in taught)
    for seed in (1, 2):
        assert len({s["train"]["tokens"] for s in summaries if s["seed"] == seed}) == 1
    page = (here / "s" / "report.html").read_text()
    assert "its teacher was there already" not in page
