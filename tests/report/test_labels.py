"""Arms are told apart by their names, one run a seed counts, and a report can be asked for a part of the runs."""

import json

import pytest
import yaml

from tfx.cli import main


def configured(run, **settings):
    """Adds settings (``a__b=1``) to the saved config of a run."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name, value in settings.items():
        *path, last = name.split("__")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def facts(capsys, *words):
    capsys.readouterr()
    assert main(["report", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["families"]


@pytest.fixture
def arms(run_writer, tmp_path):
    """Three rates with two seeds each, beside a baseline; all differ from it in much else, too."""
    for seed in (1, 2):
        configured(run_writer(tmp_path / f"base{seed}", seed=seed), optimizer__lr=0.001)
        for rate in (1.5, 1.9, 2.5):
            run = run_writer(tmp_path / f"r{rate}-{seed}", techniques=("quantize",), seed=seed, quality=0.2 * rate)
            configured(run, technique__quantize__rate=rate, optimizer__lr=0.002, model__dropout=0.05)
            configured(run, init_from=f"gone/dense_{seed}", technique__quantize__bits=5)
    return tmp_path


def test_an_arm_is_named_by_what_tells_it_from_the_others(arms, capsys):
    (family,) = facts(capsys, arms)
    names = {arm["arm"]: arm["seeds"] for arm in family["arms"]}
    # Seeds that start from the models of their seeds are one arm, though these are gone.
    assert names["no technique"] == [1, 2]
    assert sorted(seeds for seeds in names.values()) == [[1, 2]] * 4
    rates = [name for name in names if name.startswith("quantize")]
    assert len(set(rates)) == 3
    assert sum("rate=" in name for name in rates) >= 2
    assert all("more" not in name and len(name) < 60 for name in names)


def test_a_name_is_shown_and_filters_find_it(arms, run_writer, capsys):
    for seed in (1, 2):
        run = run_writer(arms / f"named{seed}", techniques=("prune",), seed=seed)
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps(summary | {"name": "the small one", "tags": ["paper", "small"]}))
    (family,) = facts(capsys, arms)
    assert [arm["tags"] for arm in family["arms"] if arm["arm"] == "the small one"] == [["paper", "small"]]
    (family,) = facts(capsys, arms, "--where", "tags=paper")
    assert [arm["name"] for arm in family["arms"]] == ["the small one"]
    (family,) = facts(capsys, arms, "--where", "technique.quantize.rate<2", "--where", "seed=2")
    assert [arm["seeds"] for arm in family["arms"]] == [[2], [2]]
    families = facts(capsys, arms, "--group-by", "technique.quantize.rate")
    assert sorted(family["section"][0] for family in families) == [
        "technique.quantize.rate=1.5",
        "technique.quantize.rate=1.9",
        "technique.quantize.rate=2.5",
        "technique.quantize.rate=null",
    ]


@pytest.mark.parametrize(
    ("condition", "seeds"),
    [
        *((f"techniques={word}", [1]) for word in ("none", "null", "[]", "")),
        ("techniques!=none", [2, 3]),
        ("techniques=prune", [2, 3]),
        ("techniques=[prune]", [2]),
        ("techniques=prune+quantize", [3]),
        ("techniques=[prune, quantize]", [3]),
        ("dataset.metrics=chrf", [1, 2]),
        ("dataset.metrics=[chrf]", [1]),
        ("dataset.metrics=['bleu','chrf']", [2]),
        ("dataset.metrics=none", [3]),
        ("optimizer=muon", [2]),
        ("technique=none", [1]),
        ("technique=prune", [2, 3]),
        ("optimizer!=muon", [1, 3]),
    ],
)
def test_a_filter_reads_lists_and_names_of_groups(condition, seeds, run_writer, tmp_path, capsys):
    stacks = ((), ("prune",), ("prune", "quantize"))
    for seed, techniques, metrics in zip((1, 2, 3), stacks, ("[chrf]", "[bleu, chrf]", "[]"), strict=True):
        run = run_writer(tmp_path / str(seed), seed=seed, techniques=techniques)
        with open(run / "config.yaml", "a") as file:
            file.write(f"dataset: {{metrics: {metrics}}}\noptimizer: {{name: {'muon' if seed == 2 else 'adam'}}}\n")
    (family,) = facts(capsys, tmp_path, "--where", condition)
    assert sorted(seed for arm in family["arms"] for seed in arm["seeds"]) == seeds


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--where", "technique.quantize.rat=1"], "no run has a key 'technique.quantize.rat': did you mean"),
        (["--where", "nonsense"], "--where nonsense is no condition: write key=value"),
        (["--where", "seed=77"], "no run is left by --where seed=77"),
        (["--group-by", "sead"], "--group-by: no run has a key 'sead': did you mean 'seed'?"),
    ],
)
def test_a_filter_that_fits_nothing_is_one_line(words, says, arms, capsys):
    assert main(["report", str(arms), *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_run_and_its_repetition_are_one_sample(run_writer, tmp_path, capsys):
    for name, lr in (("a", 0.001), ("b", 0.002)):
        for copy in ("", "-reproduced"):
            configured(run_writer(tmp_path / f"{name}{copy}", seed=1), optimizer__lr=lr)
    (family,) = facts(capsys, tmp_path)
    assert [(arm["runs"], arm["spread"], len(arm["repetitions"])) for arm in family["arms"]] == [(1, None, 1)] * 2
    assert any(line.startswith("repeated runs of one config and seed (2 of 2 configs)") for line in family["warnings"])
    assert all(arm["p"] is None or not arm["seeds_resampled"] for arm in family["arms"])


def test_one_seed_from_two_models_is_two_samples(run_writer, tmp_path, capsys):
    for number in (7, 8):
        run = run_writer(tmp_path / f"from{number}", techniques=("quantize",), seed=1)
        other = configured(run_writer(tmp_path / f"dense{number}", seed=number))
        configured(run, init_from=str(other))
    (family,) = facts(capsys, tmp_path)
    assert {arm["arm"]: arm["runs"] for arm in family["arms"]} == {"no technique": 2, "quantize": 2}


def test_folders_of_several_configs_are_tables_of_their_own(run_writer, tmp_path, capsys):
    for study in ("early", "late"):
        for rate in (1, 2):
            run = run_writer(tmp_path / study / f"rate{rate}", techniques=("quantize",))
            configured(run, technique__quantize__rate=rate, model__dropout=0.1 if study == "early" else 0.2)
    assert sorted(family["section"][0] for family in facts(capsys, tmp_path)) == ["early", "late"]
    assert len(facts(capsys, tmp_path / "early", tmp_path / "late")) == 1


def test_another_optimizer_is_named_before_its_settings(run_writer, tmp_path, capsys):
    for name, lr in (("muon", 0.002), ("adamw", 0.001), ("adamw", 0.003)):
        configured(run_writer(tmp_path / f"{lr}"), optimizer__name=name, optimizer__lr=lr, optimizer__decay=2 * lr)
    (family,) = facts(capsys, tmp_path)
    assert "optimizer=adamw" in family["usual"].split()
    assert sum("optimizer=muon" in arm["arm"] for arm in family["arms"]) == 1


def test_settings_that_the_names_do_not_tell_are_warned_of(run_writer, tmp_path, capsys):
    for seed in (1, 2):
        for dropout, smoothing in ((0.0, 0.1), (0.3, 0.0)):
            run = run_writer(tmp_path / f"{dropout}-{seed}", seed=seed)
            configured(run, model__dropout=dropout, trainer__label_smoothing=smoothing)
    (family,) = facts(capsys, tmp_path)
    said = [warning for warning in family["warnings"] if "more than its name" in warning]
    assert said == [
        "differs in more than its name says (1 of 2 configs): the difference is that of all these settings."
    ]
    assert any("label_smoothing=0" in line for line in family["details"])


def test_what_names_leave_out_is_said_and_what_all_have_is_not(run_writer, tmp_path, capsys):
    for rate, lr in ((1.9, 0.001), (2.5, 0.001), (2.5, 0.002)):
        run = run_writer(tmp_path / f"{rate}-{lr}", techniques=("quantize",))
        configured(run, technique__quantize__rate=rate, technique__quantize__bits=4, optimizer__lr=lr)
    (family,) = facts(capsys, tmp_path)
    assert [arm["arm"] for arm in family["arms"]] == ["quantize", "rate=1.9", "lr=0.002"]
    assert family["usual"] == "rate=2.5 lr=0.001"


def test_a_setting_that_an_earlier_version_did_not_have_tells_arms_apart_and_is_not_taken_for_the_usual_one(
    run_writer, tmp_path, capsys
):
    for beam in (None, 5):
        run = run_writer(tmp_path / f"{beam or 0}", techniques=("distill",))
        if beam:
            configured(run, technique__distill__beam=beam)
        note = f"{'more' if beam else 'less'} of the same, in many more words"
        configured(run_writer(tmp_path / f"1{beam or 0}"), note=note)
    (family,) = facts(capsys, tmp_path)
    assert sorted(arm["arm"] for arm in family["arms"]) == [
        "distill",
        "distill beam=5",
        "no technique note=less of the same, in many more …",
        "no technique note=more of the same, in many more …",
    ]


def test_a_model_of_the_seed_of_each_run_is_named_for_all_of_them(run_writer, tmp_path, capsys):
    for seed in (1, 2):
        origin = run_writer(tmp_path / "dense" / f"seed{seed}", seed=seed)
        for name in ("dense", None):
            run = run_writer(tmp_path / "runs" / f"{name}{seed}", techniques=("quantize",), seed=seed)
            configured(run, init_from=str(origin) if name else None)
    (family,) = facts(capsys, tmp_path / "runs")
    assert {arm["arm"]: arm["seeds"] for arm in family["arms"]} == {
        "quantize": [1, 2],
        "init_from=dense": [1, 2],
    }


def test_settings_that_had_no_effect_part_no_arms_and_are_named(run_writer, tmp_path, capsys):
    none = {"train": {"steps": 0, "tokens": 0, "seconds": 0.0, "flops": 0.0}}
    for seed, decay in ((1, 0.0), (2, 0.3)):
        run = run_writer(tmp_path / f"shot{seed}", seed=seed, techniques=("quantize",), summary=none)
        configured(run, optimizer__weight_decay=decay, model__dropout=decay, trainer__precision="fp32")
        run = run_writer(tmp_path / f"logits{seed}", seed=seed, techniques=("distill",))
        configured(run, technique__distill__sequence_level=False, technique__distill__beam=seed)
        run = run_writer(tmp_path / f"outputs{seed}", seed=seed, techniques=("prune", "distill"))
        configured(run, technique__distill__sequence_level=True, technique__distill__beam=seed)
        # What does train is another model.
        configured(run_writer(tmp_path / f"dense{seed}", seed=seed), optimizer__weight_decay=decay)
    run = run_writer(tmp_path / "bf16", seed=3, techniques=("quantize",), summary=none)
    configured(run, optimizer__weight_decay=0.3, model__dropout=0.3, trainer__precision="bf16")
    (family,) = facts(capsys, tmp_path)
    assert not any("without" in arm["arm"] for arm in family["arms"])
    assert sorted(arm["seeds"] for arm in family["arms"]) == [[1], [1], [1, 2], [1, 2], [2], [2], [3]]
    assert [line for line in family["details"] if "without effect" in line] == [
        "settings without effect: distill (technique.distill.beam)",
        "settings without effect: quantize precision=fp32 (model.dropout, optimizer.weight_decay)",
    ]


def test_folders_with_names_name_the_arms_and_settings_come_second(run_writer, tmp_path, capsys):
    for rate, lr, folder in ((1.5, 0.001, "small"), (2.5, 0.001, "wide"), (2.5, 0.002, "wide-fast")):
        for seed in (1, 2):
            place = {"small": f"small/seed{seed}", "wide": f"wide/{seed}", "wide-fast": f"wide-fast-seed{seed}"}[folder]
            run = run_writer(tmp_path / "study" / place, techniques=("quantize",), seed=seed)
            configured(run, technique__quantize__rate=rate, optimizer__lr=lr)
    (family,) = facts(capsys, tmp_path)
    names = {"small": "rate=1.5", "wide": "quantize", "wide-fast": "lr=0.002"}
    assert {arm["arm"]: arm["settings"] for arm in family["arms"]} == names
    (family,) = facts(capsys, tmp_path, "--baseline", "rate=1.5")
    assert family["baseline"] == "small"
    assert main(["report", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "wide-fast" in printed
    # A name that its user gave goes first.
    for seed in (1, 2):
        file = tmp_path / "study" / "wide" / str(seed) / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"name": "broad"}))
    (family,) = facts(capsys, tmp_path)
    assert {arm["arm"] for arm in family["arms"]} == {"small", "wide-fast", "broad"}


@pytest.mark.parametrize("folders", [("10-30-05-a1b2", "10-30-06-c3d4"), ("0", "1"), ("2026-11-26", "2026-11-27")])
def test_days_times_and_numbers_name_no_arm(folders, run_writer, tmp_path, capsys):
    for lr, folder in enumerate(folders, 1):
        configured(run_writer(tmp_path / folder), lr=lr)
    (family,) = facts(capsys, tmp_path)
    assert {arm["arm"] for arm in family["arms"]} == {"no technique", "lr=2"}


def test_a_budget_that_a_run_has_not_is_named_by_the_one_that_it_has(run_writer, tmp_path, capsys):
    for place, budget in enumerate(({"tokens": 6}, {"tokens": 6}, {"tokens": None, "seconds": 90.0})):
        configured(run_writer(tmp_path / str(place)), trainer__budget=budget, lr=place % 2)
    (family,) = facts(capsys, tmp_path)
    assert [arm["arm"] for arm in family["arms"]] == ["no technique", "lr=1", "seconds=90"]
