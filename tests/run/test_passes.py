"""A model whose blocks run several times, through every technique that goes by layers, and out of the house."""

import json

import pytest
import torch

import tfx
from tfx.cli import main
from tfx.model.rewiring import unrolled

SMALL = ["model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=2", "model.decoder_layers=2"]
QUICK = ["evaluation=greedy", "evaluation.latency_inputs=2", "trainer.device=cpu", "trainer.budget.steps=4"]
FEW = ["dataset.limit.train=40", "dataset.limit.valid=10", "dataset.limit.test=10", "model.dropout=0"]


def train(folder, *words: str) -> dict:
    assert main(["train", *SMALL, *QUICK, *FEW, *words, f"hydra.run.dir={folder}"]) == 0
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "r"
    train(folder, "model.passes=2")
    return folder


def test_blocks_are_stored_once_however_often_they_run(teacher, tmp_path):
    once = train(tmp_path / "once")
    twice = json.loads((teacher / "summary.json").read_text())
    assert twice["parameters"] == once["parameters"]
    assert twice["bytes"]["weights"] == once["bytes"]["weights"]
    assert twice["train"]["flops"] > 1.5 * once["train"]["flops"]
    assert tfx.load(teacher).model.architecture.passes == 2


@pytest.mark.parametrize(
    "words",
    [
        ["technique=[prune,quantize]", "technique.quantize.granularity=channel", "technique.prune.structure.heads=0.5"],
        ["technique=[prune,quantize]", "technique.quantize.rate=2", "technique.quantize.method=trellis"],
        ["technique=[prune]", "technique.prune.structure.decoder_layers=1", "technique.prune.sparsity=0"],
        ["technique=[factorize]"],
    ],
)
def test_what_is_compressed_is_each_block_for_all_its_layers(teacher, tmp_path, words):
    some = [word for word in (*QUICK, *FEW) if not word.startswith("model.")]
    calibration = ["technique.quantize.calibration=2"] if "quantize" in words[0] else []
    folder = tmp_path / "r"
    assert main(["train", f"init_from={teacher}", *some, *words, *calibration, f"hydra.run.dir={folder}"]) == 0
    loaded = tfx.load(folder)
    assert loaded.model.architecture.passes == 2
    # The file read back is the model whose validation loss the last stage has.
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    assert stages[-1]["valid"]["loss"] == pytest.approx(stages[-2]["valid"]["loss"], abs=0.02)


def test_a_teacher_shows_the_states_of_all_its_layers(teacher, tmp_path):
    layers = ["technique.distill.hidden=1", "technique.distill.attention=1", "technique.distill.layer_map=uniform"]
    words = ["technique=distill", f"technique.distill.teacher={teacher}", *layers]
    # Four layers against four, then two of the student's own.
    train(tmp_path / "four", "model.passes=2", *words)
    train(tmp_path / "two", *words)


def test_it_leaves_as_one_block_or_as_a_block_for_each_layer(teacher, tmp_path, capsys):
    out = tmp_path / "out"
    capsys.readouterr()
    assert main(["export", str(teacher), "--to", "safetensors", "--output", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] == 1.0
    assert json.loads((out / "config.json").read_text())["architecture"]["passes"] == 2
    whole, _ = unrolled(tfx.load(teacher).model)
    assert len(whole.decoder.blocks) == 4
    source = torch.randint(20, 100, (2, 6), generator=torch.Generator().manual_seed(1))
    model = tfx.load(teacher).model
    torch.testing.assert_close(whole(source, source), model(source, source))


def test_weights_that_are_divided_among_processes_have_no_second_pass(here, capsys):
    words = ["model.passes=2", "trainer.devices=2", "trainer.parallel=fsdp", "optimizer=adamw"]
    assert main(["train", *SMALL, *QUICK, *FEW, *words, "hydra.run.dir=r"]) == 2
    assert (
        "does not go with model.passes: all processes run each block once in a step, which" in capsys.readouterr().err
    )


def test_a_text_leaves_no_model_with_several_passes_early(here, capsys):
    (here / "d").mkdir()
    for split in ("train", "valid", "test"):
        (here / "d" / f"{split}.csv").write_text("text,label\n" + "".join(f"word {n % 3},{n % 2}\n" for n in range(12)))
    words = [
        "dataset=csv",
        "dataset.task=classification",
        "dataset.path=d",
        "model=encoder_tiny",
        "model.passes=2",
        "technique=[early_exit]",
    ]
    assert main(["train", *words, "trainer.budget.steps=1", "dry_run=true"]) == 2
    assert "set model.passes=1" in capsys.readouterr().err
