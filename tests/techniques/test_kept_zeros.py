"""The zeros of a pruned model stay, where that is asked for, whatever is done to it; else they go with a word."""

import json

import pytest
import torch

from tfx.cli import main
from tfx.compression.checkpoint import load

TINY = ["model.width=32", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"]
DATA = [f"dataset.limit.{split}=30" for split in ("train", "valid", "test")] + ["evaluation=greedy"]
DATA += ["evaluation.latency_inputs=1", "trainer.budget.steps=4", "dataset.batch_tokens=256"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    path = tmp_path_factory.mktemp("zeros")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(path / "cache"))
        patch.chdir(path)
        words = ["technique=prune", "technique.prune.sparsity=0.7", "technique.prune.start=0", "hydra.run.dir=pruned"]
        assert main(["train", *TINY, *DATA, *words]) == 0
        yield path


def zeros(run) -> dict[str, torch.Tensor]:
    model = load(run, kernels=False).model
    return {name: weight == 0 for name, weight in model.named_parameters() if weight.ndim == 2}


def trained_on(here, name: str, *words: str) -> dict:
    own = [*DATA, "init_from=pruned", f"hydra.run.dir={name}", "optimizer.weight_decay=0.3"]
    assert main(["train", *own, *words]) == 0
    return json.loads((here / name / "summary.json").read_text())


STACKS = {
    "alone": [],
    "adam": ["optimizer=adam", "trainer.accumulation=2", "trainer.averaging.kind=ema"],
    "nearest": ["technique=quantize", "technique.quantize.group=32", "technique.quantize.start=0"],
    "gptq": ["technique=quantize", "technique.quantize.group=32", "technique.quantize.method=gptq"],
    "rate": ["technique=quantize", "technique.quantize.rate=3"],
    "pruned_further": ["technique=prune", "technique.prune.sparsity=0.8"],
}


@pytest.mark.parametrize("stack", STACKS)
def test_zeros_stay_through_every_training(stack, here):
    summary = trained_on(here, stack, "trainer.keep_zeros=true", *STACKS[stack])
    before, after = zeros(here / "pruned"), zeros(here / stack)
    assert sum(int(mask.sum()) for mask in before.values()) > 1000
    for name, mask in before.items():
        assert bool(after[name][mask].all()), name
    # The weights that were not zero have moved.
    own, other = (load(here / run, kernels=False).model.state_dict() for run in ("pruned", stack))
    assert any(not torch.equal(own[name], other[name]) for name in before)
    assert summary["evidence"]["keep_zeros"]["zeros_kept"] == sum(int(mask.sum()) for mask in before.values())
    assert (here / stack / "compressed.safetensors").is_file()


def test_pruning_further_counts_the_zeros_that_were_there(here):
    """Muon writes where a mask hides it: what is zero in the forward pass has no magnitude, whatever stands there."""
    words = ["technique=prune", "technique.prune.sparsity=0.8", "technique.prune.start=0", "trainer.budget.steps=12"]
    words += ["optimizer=muon", "optimizer.matrix_lr=0.1", "schedule=constant"]
    trained_on(here, "further", "trainer.keep_zeros=true", *words)
    weights = load(here / "further", kernels=False).model.state_dict()
    matrices = [weight for name, weight in weights.items() if ".blocks." in name and weight.ndim == 2]
    share = sum(int((weight == 0).sum()) for weight in matrices) / sum(weight.numel() for weight in matrices)
    assert share == pytest.approx(0.8, abs=0.001)


def test_zeros_that_go_are_named_and_the_file_grows(here, capsys):
    summary = trained_on(here, "filled")
    said = " ".join(capsys.readouterr().err.split())
    assert "of the weights of init_from=" in said
    assert "are zero, and training fills them" in said
    assert "trainer.keep_zeros=true keeps them zero" in said
    kept = trained_on(here, "kept", "trainer.keep_zeros=true")
    assert kept["bytes"]["weights"] < 0.6 * summary["bytes"]["weights"]
    capsys.readouterr()
    trained_on(here, "one_shot", "trainer.budget.steps=0", "technique=quantize", "technique.quantize.group=32")
    assert "training fills them" not in capsys.readouterr().err


@pytest.mark.parametrize(("sparsity", "is_said"), [(0.3, True), (0.8, False)])
def test_pruning_that_keeps_fewer_zeros_than_there_were_says_so(sparsity, is_said, here, capsys):
    words = ["technique=prune", f"technique.prune.sparsity={sparsity}", "init_from=pruned", "dry_run=true"]
    assert main(["train", *DATA, *words]) == 0
    assert ("pruning keeps fewer: training fills the rest" in " ".join(capsys.readouterr().out.split())) == is_said


def test_a_model_file_in_its_run_brings_the_data_of_the_run_and_one_alone_needs_them_named(here, capsys):
    file = here / "pruned" / "model.safetensors"
    assert main(["train", f"init_from={file}", "dry_run=true"]) == 0
    assert "train 30," in capsys.readouterr().out
    alone = here / "alone.safetensors"
    alone.write_bytes(file.read_bytes())
    assert main(["train", f"init_from={alone}", "dry_run=true"]) == 2
    assert "is a model without its run: name the data with dataset=" in capsys.readouterr().err
    assert main(["train", f"init_from={alone}", "dataset=normalize", *DATA, "dry_run=true"]) == 0
    assert "model      alone: " in capsys.readouterr().out  # what it is, not a default that was not read


def test_without_a_model_to_start_from_there_is_nothing_to_keep(here, capsys):
    assert main(["train", *TINY, *DATA, "trainer.keep_zeros=true"]) == 2
    assert "trainer.keep_zeros keeps the zeros of" in capsys.readouterr().err
