"""How the command line becomes a config."""

import json
import subprocess
import sys

import pytest

from tfx.cli import main
from tfx.config.command_line import split_flags
from tfx.config.compose import compose, load, to_yaml
from tfx.config.schema import DEFAULT_BUDGET_SECONDS
from tfx.errors import UserError


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "seed=1,2", "model.width=16"],
        ["seed=1,2", "-m", "model.width=16"],
        ["seed=1,2", "model.width=16", "-m"],
    ],
)
def test_flags_stand_anywhere(words):
    assert split_flags(words) == (["seed=1,2", "model.width=16"], ["-m"])


def test_a_flag_keeps_its_value():
    words = ["a=1", "--config-dir", "here", "b=2", "-cn", "config"]
    words += ["--info", "c=3", "-c", "job", "--config-dir=x", "d=4"]
    flags = ["--config-dir", "here", "-cn", "config", "--info", "-c", "job", "--config-dir=x"]
    assert split_flags(words) == (["a=1", "b=2", "c=3", "d=4"], flags)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_hydra_takes_a_flag_at_any_place(place, capsys):
    words = ["seed=7", "model.width=64"]
    words[place:place] = ["--cfg", "job"]
    assert main(["train", *words]) == 0
    shown = capsys.readouterr().out
    assert "seed: 7\n" in shown
    assert "  width: 64\n" in shown


def test_a_saved_config_without_a_budget_has_the_default(tmp_path):
    file = tmp_path / "config.yaml"
    for content in ("seed: 3", "trainer: {}", "trainer: {budget: {steps: null}}"):
        file.write_text(content)
        assert load(file).trainer.budget.seconds == DEFAULT_BUDGET_SECONDS


def test_a_path_through_a_link_stays_what_it_is(tmp_path, monkeypatch):
    """``link/..`` is the folder above what the link leads to, and no folder on the way changes its name for it."""
    (tmp_path / "far" / "inner").mkdir(parents=True)
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far" / "inner")
    monkeypatch.chdir(tmp_path)
    for typed, meant in (
        ("near/link/../data", "far/data"),
        ("near/link/data/..", "near/link"),
        ("near/./gone/../data", "near/data"),
        ("near/link", "near/link"),
    ):
        config = compose([f"dataset.path={typed}"])
        assert config.dataset.path == str(tmp_path / meant)


@pytest.mark.parametrize("key", ["dataset.path", "init_from", "reference", "technique.distill.teacher"])
def test_an_empty_path_is_refused_and_not_taken_for_the_folder_one_is_in(key):
    with pytest.raises(UserError, match=f"{key} is empty, as where a shell variable is not set"):
        compose(["technique=distill", f"{key}="])


def test_each_path_of_a_list_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose(["technique=distill", "technique.distill.teacher=[one,two]"])
    assert config.technique["distill"]["teacher"] == [str(tmp_path / "one"), str(tmp_path / "two")]
    with pytest.raises(UserError, match=r"technique\.distill\.teacher is empty"):
        compose(["technique=distill", "technique.distill.teacher=[one,'']"])


SMALL = ["technique=[distill,quantize]", "experiment=small", "technique.distill.teacher=RUN"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], (1.9, None, None)),
        (["technique.quantize.bytes=500000"], (None, 500_000, None)),
        (["technique.quantize.ratio=20"], (None, None, 20.0)),
        (["technique.quantize.rate=1.5"], (1.5, None, None)),
    ],
)
def test_what_the_user_says_of_the_rate_replaces_what_an_experiment_says(words, found):
    quantize = compose([*SMALL, *words]).technique["quantize"]
    assert tuple(quantize[name] for name in ("rate", "bytes", "ratio")) == found


def test_two_typed_settings_of_the_rate_both_stay_for_the_technique_to_refuse():
    quantize = compose([*SMALL, "technique.quantize.bytes=500000", "technique.quantize.rate=1.5"]).technique["quantize"]
    assert (quantize["rate"], quantize["bytes"]) == (1.5, 500_000)


def test_what_starts_from_a_trial_of_a_search_has_test_data_again(tmp_path):
    """A trial reads none, whatever its data have."""
    words = ["dataset=json", f"dataset.path={tmp_path}", "dataset.splits.valid=[dev]"]
    usual = compose(words).dataset.splits.test
    (tmp_path / "config.yaml").write_text(to_yaml(compose([*words, "dataset.splits.test=[]"])))
    started = compose([f"init_from={tmp_path}"]).dataset.splits
    assert (started.valid, started.test) == (["dev"], usual)
    assert usual
    assert compose([f"init_from={tmp_path}", "dataset.splits.test=[]"]).dataset.splits.test == []


def test_what_tests_remember_of_composing_is_what_a_new_process_composes():
    """Groups in other orders and with other values between, so that what is remembered could be another's."""
    several = [
        ["dataset=kinds", "model.width=64", "+technique=[prune,quantize]"],
        ["dataset=kinds", "technique=quantize", "technique.quantize.bits=3"],
        ["dataset=kinds", "model.width=32", "+technique=[prune,quantize]", "technique.prune.sparsity=0.3"],
        ["model=gpt_nano", "dataset=stdlib", "optimizer=adamw"],
        ["experiment=few_texts", "dataset=kinds", "seed=3"],
    ]
    program = "import json, sys; from tfx.config.compose import compose, to_yaml; "
    program += "print(json.dumps([to_yaml(compose(words)) for words in json.loads(sys.argv[1])]))"
    ran = subprocess.run(
        [sys.executable, "-c", program, json.dumps(several)], capture_output=True, text=True, check=True
    )
    fresh = json.loads(ran.stdout)
    for _ in range(2):
        assert [to_yaml(compose(words)) for words in several] == fresh
    assert len(set(fresh)) == len(several)


@pytest.mark.parametrize("form", ["technique", "+technique"])
@pytest.mark.parametrize(("chosen", "names"), [("[]", []), ("prune", ["prune"]), ("[quantize]", ["quantize"])])
def test_a_list_that_is_typed_decides_over_an_experiment(form, chosen, names):
    """Which may be the baseline that a compressed model is compared with."""
    config = compose([f"{form}={chosen}", "experiment=demo"])
    assert list(config.technique) == names
    assert config.trainer.budget.steps == 530
    assert sorted(compose(["experiment=few_texts", "dataset=kinds"]).technique) == ["bpe_dropout", "r_drop"]


def test_what_a_typed_list_leaves_out_of_an_experiment_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    small = [f"dataset.limit.{split}=8" for split in ("train", "valid", "test")]
    for chosen, noted in (
        ("[prune]", "note: technique=[prune] leaves out distill, quantize of the experiment\n"),
        ("", ""),
    ):
        words = [f"technique={chosen}"] if chosen else []
        assert main(["train", "experiment=demo", *words, *small, "dry_run=true"]) == 0
        assert capsys.readouterr().err == noted


def test_settings_of_a_technique_that_the_list_leaves_out_are_refused():
    with pytest.raises(UserError, match=r"'quantize' has settings here, and technique=\[prune\] leaves it out"):
        compose(["technique=[prune]", "experiment=demo", "technique.quantize.bits=4"])


def test_a_choice_of_the_users_own_brings_techniques_of_other_names(tmp_path):
    (tmp_path / "technique").mkdir()
    (tmp_path / "technique" / "q4.yaml").write_text("defaults:\n  - quantize\nquantize:\n  bits: 4\n")
    place = f"hydra.searchpath=[file://{tmp_path}]"
    assert list(compose(["technique=q4", place]).technique) == ["quantize"]
    assert compose(["technique=q4", "experiment=demo", place]).technique["quantize"]["bits"] == 3


def test_a_setting_that_only_the_choice_of_a_technique_brings_is_answered_with_the_choice():
    with pytest.raises(UserError, match=r"'quantize' has settings here but is not chosen: add \+technique=quantize"):
        compose(["experiment=demo", "technique.quantize.group=32"])


def test_a_group_beside_a_saved_config_is_told_what_to_do(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(to_yaml(compose([])))
    words = ["--config-dir", str(tmp_path), "--config-name", "config", "technique=[prune]", "dry_run=true"]
    assert main(["train", *words]) == 2
    assert "'technique' cannot be chosen anew beside a config that a run has saved" in capsys.readouterr().err
