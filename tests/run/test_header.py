"""What a run says before it trains."""

import pytest
import torch

from tfx.cli import main
from tfx.config.compose import compose
from tfx.config.schema import TrainerConfig
from tfx.model import compilation, device
from tfx.run.header import _compilation_notes
from tfx.run.setup import Setup
from tfx.terminal.console import size
from tfx.training.optimizers import build_optimizers

TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=32", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("dataset.limit.train=20", "dataset.limit.valid=5", "dataset.limit.test=5", "dataset.tokenizer.kind=char"),
    *("trainer.device=cpu", "trainer.budget.steps=1", "dry_run=true"),
]


@pytest.mark.parametrize(
    ("precision", "in_hardware"), [("mixed", False), ("bf16", False), ("fp32", False), ("bf16", True)]
)
def test_a_number_format_that_the_processor_emulates_is_named(capsys, monkeypatch, precision, in_hardware):
    monkeypatch.setattr(device, "_cpu_multiplies_bf16", lambda: in_hardware)
    assert main(["train", *TINY, f"trainer.precision={precision}"]) == 0
    is_said = "emulates them" in capsys.readouterr().out
    assert is_said == (precision != "fp32" and not in_hardware)


def test_a_budget_of_zero_is_said_to_train_nothing(capsys):
    assert main(["train", *TINY, "trainer.budget.steps=0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "none: 0 steps train nothing, and only the stack below changes weights; seed 1" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "muon (matrices at 0.01)"),
        (["model.width=256"], "muon (matrices at 0.00707)"),
        (["model.width=256", "optimizer.matrix_lr=0.0123"], "muon (matrices at 0.0123)"),
        (["optimizer.matrix_block=8"], "muon (matrices at 0.01; q, k, v and up in blocks of 8)"),
        (
            ["optimizer.matrix_block=8", "model.activation=swiglu"],
            "muon (matrices at 0.01; q, k, v, up and gate in blocks of 8)",
        ),
        (["optimizer=adamw"], "adamw, "),
    ],
)
def test_the_rate_that_a_width_decides_is_named(capsys, words, said):
    assert main(["train", *TINY, *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"tokens per step, {said}" in shown


@pytest.mark.parametrize("word", ["optimizer.matrix_lr=0.02", "optimizer.momentum=0.8", "optimizer.matrix_block=8"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_a_setting_of_muon_without_muon_is_noted(capsys, optimizer, word):
    assert main(["train", *TINY, f"optimizer={optimizer}", word]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (f"{word} has no effect: it is for optimizer=muon" in shown) == (optimizer != "muon")


@pytest.mark.parametrize(("block", "has_effect"), [(23, True), (24, False), (1000, False)])
def test_a_block_that_is_no_smaller_than_any_matrix_is_noted(capsys, block, has_effect):
    sizes = [word for word in TINY if "ffn_width" not in word]
    assert main(["train", *sizes, "model.ffn_width=24", f"optimizer.matrix_block={block}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    note = f"optimizer.matrix_block={block} has no effect: no matrix that it divides has more than 24 rows"
    assert (note in shown) == (not has_effect)


def test_a_block_with_nothing_to_divide_is_noted(capsys, monkeypatch):
    """As in a model that starts from a factorised one."""
    monkeypatch.setattr("tfx.training.optimizers.unit_matrices", lambda model: [])
    assert main(["train", *TINY, "optimizer.matrix_block=8"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "no matrix that it divides is left: each is a product of two" in shown
    assert "in blocks of" not in shown


@pytest.mark.parametrize("data", [["dataset=normalize"], ["model=gpt_nano", "model.context=32", "dataset=stdlib"]])
def test_batches_that_are_shorter_than_any_example_are_named(capsys, data):
    words = ["train", *data, *(word for word in TINY if "coder_layers" not in word), "dataset.limit.train=40"]
    assert main([*words, "dataset.batch_tokens=1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ", 1 token per step, " in shown
    assert "dataset.batch_tokens=1: no training example fits (the shortest takes" in shown
    assert "processes" not in shown
    assert main([*words, "dataset.batch_tokens=31", "trainer.devices=2"]) == 0
    shown = capsys.readouterr().out
    assert ("only one of 2 processes works at a time" in shown) == ("dataset=stdlib" in data)


@pytest.mark.parametrize("data", [["dataset=normalize"], ["model=gpt_nano", "model.context=32", "dataset=stdlib"]])
def test_batches_of_fewer_examples_than_processes_are_named(capsys, data):
    words = ["train", *data, *(word for word in TINY if "coder_layers" not in word), "dataset.limit.train=40"]

    def is_told(tokens, devices):
        assert main([*words, f"dataset.batch_tokens={tokens}", f"trainer.devices={devices}"]) == 0
        return f"fewer than the {devices} processes" in " ".join(capsys.readouterr().out.split())

    assert is_told(48, 2)
    assert not is_told(48, 1)
    assert not is_told(640, 2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_memory_is_that_of_what_training_holds(capsys, optimizer):
    config = compose([*TINY, f"optimizer={optimizer}", "dry_run=false"])
    model = Setup(config).prepare().model
    optimizers = build_optimizers(config.optimizer, model, torch.device("cpu"))
    optimizers.allocate()
    held = [*model.parameters(), *model.parameters()]  # weights, and as many gradients
    held += [value for part in optimizers.parts for state in part.state.values() for value in state.values()]
    whole = sum(4 * value.numel() for value in held if value.ndim)
    assert main(["train", *TINY, f"optimizer={optimizer}"]) == 0
    assert f"about {size(whole)} with gradients and optimizer" in " ".join(capsys.readouterr().out.split())


def test_a_gpu_whose_models_torch_cannot_compile_is_noted(monkeypatch):
    gpu = torch.device("cuda", 0)
    for missing, count in (("a C compiler (gcc)", 1), ("", 0)):
        monkeypatch.setattr(compilation, "missing_for_compiling", lambda device, missing=missing: missing)
        assert len(_compilation_notes(TrainerConfig(), gpu)) == count
        assert _compilation_notes(TrainerConfig(compile="off"), gpu) == []
        assert _compilation_notes(TrainerConfig(), torch.device("cpu")) == []


def test_compiling_without_a_compiler_is_refused_before_the_data_are_read(capsys, monkeypatch):
    monkeypatch.setattr(compilation, "missing_for_compiling", lambda device: "a C++ compiler (g++)")
    assert main(["train", *TINY, "trainer.compile=on"]) == 2
    said = capsys.readouterr().err
    assert "trainer.compile=on needs a C++ compiler (g++), which this machine does not have" in said
    assert "tokenizer" not in said


def test_the_plan_of_a_dry_run_is_its_result_on_stdout(capsys):
    assert main(["train", *TINY, "dry_run=true"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("data ")
    assert not shown.err


def test_texts_that_are_decoded_otherwise_than_those_of_the_model_before_are_noted(tmp_path, capsys):
    start = tmp_path / "start"
    assert main(["train", *TINY[:-1], "evaluation=greedy", f"hydra.run.dir={start}"]) == 0
    capsys.readouterr()
    note = "decoding by beam (beam=5, length_penalty=1); the model of init_from was scored with greedy"
    for words, is_said in (([], True), (["evaluation=greedy"], False)):
        assert main(["train", f"init_from={start}", *words, "dry_run=true"]) == 0
        assert (note in " ".join(capsys.readouterr().out.split())) == is_said
