"""Which key an unknown one stands for, and names that choose nothing."""

import pytest

from tfx.cli import main
from tfx.config.compose import compose, load
from tfx.config.keys import OTHER_NAMES, all_keys
from tfx.errors import UserError


def told(*words):
    with pytest.raises(UserError) as caught:
        compose(words)
    return str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("optimizer.learning_rate=1", "optimizer.lr"),
        ("trainer.learning_rate=1", "optimizer.lr"),
        ("batch_size=3", "dataset.batch_tokens"),
        ("trainer.fp16=true", "trainer.precision"),
        ("trainer.output_dir=x", "hydra.run.dir"),
        ("optimizer.warmup=0.1", "schedule.warmup"),  # its name in another group
        ("trainer.acumulation=2", "trainer.accumulation"),
        ("optimiser.lr=1", "optimizer"),
        ("+optimizer.learning_rate=1", "optimizer.lr"),
    ],
)
def test_an_unknown_key_stands_for_what_other_libraries_call_so_or_write_alike(typed, meant):
    assert told(typed).endswith(f"is unknown: did you mean '{meant}'?")


@pytest.mark.parametrize(
    ("file", "text", "words", "meant"),
    [
        ("mine.yaml", "defaults: [train, _self_]\nbatch_size: 5\n", ["--config-name", "mine"], "dataset.batch_tokens"),
        ("optimizer/mine.yaml", "learning_rate: 1\n", ["optimizer=mine"], "optimizer.lr"),
        ("experiment/mine.yaml", "# @package _global_\nbatch_size: 3\n", ["experiment=mine"], "dataset.batch_tokens"),
    ],
)
def test_an_unknown_key_in_a_file_is_answered_alike(here, capsys, file, text, words, meant):
    (here / "mine" / file).parent.mkdir(parents=True)
    (here / "mine" / file).write_text(text)
    assert main(["train", "--config-dir", "mine", *words, "dry_run=true"]) == 2
    assert capsys.readouterr().err.endswith(f"is unknown: did you mean '{meant}'?\n")


def test_a_key_that_is_like_none_is_answered_by_those_of_its_group():
    assert ": choose one of optimizer.betas, optimizer.clip_norm" in told("optimizer.zzz=1")
    assert "did you mean 'technique.prune.sparsity'?" in told("technique=prune", "technique.prune.sparcity=0.5")


def test_other_names_are_of_keys_and_no_names_of_tfx():
    keys = all_keys()
    assert set(OTHER_NAMES) - {"hydra.run.dir"} <= set(keys)
    others = [name for names in OTHER_NAMES.values() for name in names]
    assert len(others) == len(set(others))
    assert not set(others) & {key.rpartition(".")[2] for key in keys}


@pytest.mark.parametrize("word", ["model.name=seq2seq_big", "dataset.name=multi30k", "optimizer.name=adamw"])
def test_a_choice_typed_as_a_name_alone_is_refused(word):
    group, _, choice = word.partition(".name=")
    assert told(word).endswith(f": choose {group}={choice}")
    words = [f"{group}={choice}", *(["dataset.path=."] if group == "dataset" else [])]
    assert getattr(compose(words), group).name == choice


def test_a_name_of_ones_own_is_a_name():
    assert compose(["model=seq2seq_big", "model.name=seq2seq_big"]).model.width > 500
    assert compose(["model.name=mine"]).model.name == "mine"


def test_a_sweep_over_names_of_choices_is_refused_before_its_first_job(here, capsys):
    assert main(["train", "-m", "optimizer.name=adamw,muon"]) == 2
    assert "choose optimizer=adamw,muon" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize(("written", "read"), [("on", "on"), ("off", "off"), ("true", "on"), ("'off'", "off")])
def test_on_and_off_are_what_they_are_in_yaml_and_in_a_shell(written, read, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"trainer: {{compile: {written}}}")
    assert load(file).trainer.compile == read
    assert compose([f"trainer.prefetch={written}"]).trainer.prefetch == read
