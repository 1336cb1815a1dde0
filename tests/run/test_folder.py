"""The folder that a user names for a run: what was in it stays, whatever becomes of the run."""

import json
import os
from pathlib import Path

import pytest

from tfx.cli import main

TINY = [
    *("model=seq2seq_tiny", "model.width=16", "model.heads=2", "model.ffn_width=32", "dataset.tokenizer.kind=char"),
    *("model.encoder_layers=1", "model.decoder_layers=1", "dataset.limit.train=20", "dataset.limit.valid=5"),
    *("dataset.limit.test=5", "evaluation.latency_inputs=1", "evaluation=greedy", "trainer.budget.steps=1"),
]
MISSING = ["dataset=parallel", "dataset.path=nothere"]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["model.safetensors", "compressed.safetensors", "report.html", "state/mine.py", "train.log"]
)
@pytest.mark.parametrize("words", [TINY, MISSING], ids=["good", "bad"])
def test_files_that_a_run_would_overwrite_are_refused_and_stay(here, name, words, capsys):
    file = here / "project" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert main(["train", *words, "hydra.run.dir=project"]) == 2
    assert contents(here / "project") == {name: "mine"}
    said = capsys.readouterr().err
    assert f"project holds {name.partition('/')[0]}, which a run would overwrite: name another folder with" in said


def test_a_run_that_was_killed_as_it_began_starts_again(here):
    (here / "run").mkdir()
    for name in (".lock", "overrides.yaml", "train.log"):
        (here / "run" / name).touch()
    assert main(["train", *TINY, "hydra.run.dir=run"]) == 0


def test_other_files_stay_beside_a_run(here):
    (here / "project").mkdir()
    (here / "project" / "notes.txt").write_text("mine")
    assert main(["train", *MISSING, "hydra.run.dir=project"]) == 2
    assert contents(here / "project") == {"notes.txt": "mine"}
    assert main(["train", *TINY, "hydra.run.dir=project"]) == 0
    assert (here / "project" / "notes.txt").read_text() == "mine"
    assert json.loads((here / "project" / "summary.json").read_text())["status"] == "completed"


@pytest.mark.parametrize("words", [[*TINY, "dry_run=true"], MISSING, ["seed=x"]])
@pytest.mark.parametrize("made", [True, False])
def test_an_empty_folder_stays_and_one_that_the_command_made_goes(here, words, made):
    if made:
        (here / "a" / "b").mkdir(parents=True)
    main(["train", *words, "hydra.run.dir=a/b"])
    assert (here / "a").is_dir() == (here / "a" / "b").is_dir() == made


def test_the_working_directory_stays(here):
    assert main(["train", *MISSING, "hydra.run.dir=."]) == 2
    assert Path.cwd() == here
    assert not list(here.iterdir())


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_an_empty_name_of_a_folder_is_refused(here, key, capsys):
    assert main(["train", *TINY, f"{key}="]) == 2
    assert f"{key}= is empty: name a folder, or leave it out" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_a_folder_at_home_is_found_there(here, flags, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    key = "hydra.sweep.dir" if flags else "hydra.run.dir"
    assert main(["train", *TINY, f"{key}=~/runs/a", *flags]) == 0
    assert (here / "home" / "runs" / "a" / ("0" if flags else ".") / "summary.json").is_file()
    assert main(["train", *TINY, f"{key}=~nobody-has-this-name/a", *flags]) == 2
    assert [path.name for path in here.iterdir()] == ["home"]


def test_a_folder_with_nothing_but_damaged_states_takes_a_run_and_keeps_them(here):
    (here / "run" / "state").mkdir(parents=True)
    (here / "run" / "state" / "step-000000001.safetensors.damaged").write_text("once a state")
    assert main(["train", *TINY, "hydra.run.dir=run"]) == 0
    assert (here / "run" / "summary.json").is_file()
    assert (here / "run" / "state" / "step-000000001.safetensors.damaged").read_text() == "once a state"


def test_a_repetition_leaves_what_is_in_its_folder(here, capsys):
    assert main(["train", *TINY, "hydra.run.dir=run"]) == 0
    (here / "again" / "state").mkdir(parents=True)
    (here / "again" / "state" / "mine.py").write_text("mine")
    assert main(["reproduce", "run", "--folder", "again"]) == 2
    assert contents(here / "again") == {"state/mine.py": "mine"}
    (here / "other").mkdir()
    (here / "other" / "reproduction.json").write_text("mine")
    assert main(["reproduce", "run", "--folder", "other"]) == 2
    assert contents(here / "other") == {"reproduction.json": "mine"}


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=kinds", "model=encoder_tiny", "dataset.metrics=[]"],
        ["dataset=stdlib", "model=gpt_nano", "model.encoder_layers=0", "dataset.metrics=[]"],
    ],
)
def test_predictions_of_every_task_are_replaced_by_their_like(here, words):
    tiny = [word for word in TINY if not word.startswith(("model=", "model.decoder_layers", "dataset.tokenizer"))]
    layers = "model.decoder_layers=0" if "dataset=kinds" in words else "model.decoder_layers=1"
    assert main(["train", *tiny, *words, layers, "hydra.run.dir=run"]) == 0
    for _ in range(2):
        assert main(["evaluate", "run", "--predictions", "mine.jsonl"]) == 0


def test_only_files_of_their_kind_are_replaced(here, capsys):
    assert main(["train", *TINY, "hydra.run.dir=run"]) == 0
    model = (here / "run" / "model.safetensors").read_bytes()
    assert main(["evaluate", "run", "--predictions", "run/model.safetensors"]) == 2
    assert main(["report", "run", "--html", "run/model.safetensors"]) == 2
    assert (here / "run" / "model.safetensors").read_bytes() == model
    said = capsys.readouterr().err
    assert "--predictions run/model.safetensors exists already, and is no file of predictions: name another" in said
    assert "--html run/model.safetensors exists already, and is no page of tfx's: name another file" in said
    for _ in range(2):
        assert main(["evaluate", "run", "--predictions", "mine.jsonl"]) == 0
        assert main(["report", "run", "--html", "mine.html"]) == 0


def test_the_training_split_is_scored_by_its_loss_and_that_is_said(here, capsys):
    assert main(["train", *TINY, "hydra.run.dir=run"]) == 0
    for split, said in (("train", True), ("valid", False)):
        capsys.readouterr()
        assert main(["evaluate", "run", "--split", split, "--json"]) == 0
        told = capsys.readouterr()
        assert ("is scored by its loss alone" in told.err) == said
        assert ("exact_match" in told.out) != said


def test_a_run_is_repeated_from_inside_its_folder(here, monkeypatch):
    assert main(["train", *TINY, "hydra.run.dir=run"]) == 0
    monkeypatch.chdir(here / "run")
    assert main(["reproduce", "."]) == 0
    assert (here / "run-reproduced" / "reproduction.json").is_file()


def test_pipes_stay_links_are_followed_and_a_run_keeps_its_own_predictions(here, capsys):
    assert main(["train", *TINY, "hydra.run.dir=run"]) == 0
    own = (here / "run" / "predictions.jsonl").read_bytes()
    assert main(["evaluate", "run", "--split", "valid", "--predictions", "run/predictions.jsonl"]) == 2
    assert "run/predictions.jsonl is the run's own record of its test split" in capsys.readouterr().err
    assert (here / "run" / "predictions.jsonl").read_bytes() == own
    os.mkfifo(here / "pipe")
    (here / "link").symlink_to("page.html")
    for command in (["report", "run", "--html"], ["evaluate", "run", "--predictions"]):
        assert main([*command, "pipe"]) == 2
        assert f"{command[-1]} pipe is a device or pipe: name a file" in capsys.readouterr().err
        assert main([*command, "no/folder"]) == 2
        assert f"{command[-1]} no/folder: the folder no does not exist" in capsys.readouterr().err
    assert (here / "pipe").is_fifo()
    assert main(["report", "run", "--html", "link"]) == 0
    assert (here / "link").is_symlink()
    assert "<html" in (here / "page.html").read_text()


def test_metrics_of_labels_are_refused_where_texts_are_written(here, capsys):
    assert main(["train", *TINY, "dataset.metrics=[chrf,accuracy]"]) == 2
    assert "'accuracy' scores labels, and the data are text to text: choose one of" in capsys.readouterr().err
    assert not list(here.iterdir())
