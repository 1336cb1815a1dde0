"""`evaluation.precision`: validations may be rounded, results are in fp32 unless they say otherwise."""

import json

import pytest
import torch

from tfx.cli import main
from tfx.compression.checkpoint import load
from tfx.config.schema import EvaluationConfig
from tfx.evaluation.generation import generate
from tfx.model.device import scoring_in, scoring_numbers

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("dataset.limit.train=60", "dataset.limit.valid=8", "dataset.limit.test=8", "dataset.batch_tokens=256"),
    *("trainer.budget.steps=4", "evaluation.latency_inputs=1", "trainer.precision=fp32"),
]


@pytest.mark.parametrize(
    ("name", "device", "validation", "result"),
    [
        ("auto", GPU, "tf32", "fp32"),
        ("auto", CPU, "fp32", "fp32"),
        ("fp32", GPU, "fp32", "fp32"),
        ("tf32", GPU, "tf32", "tf32"),
        ("tf32", CPU, "fp32", "fp32"),
        ("bf16", GPU, "bf16", "bf16"),
        ("bf16", CPU, "bf16", "bf16"),
    ],
)
def test_a_result_is_in_fp32_unless_another_format_is_named(name, device, validation, result):
    assert scoring_numbers(name, device, is_result=False) == validation
    assert scoring_numbers(name, device, is_result=True) == result


@pytest.fixture
def products():
    before = torch.get_float32_matmul_precision()
    yield torch.backends.cuda.matmul
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("before", ["ieee", "tf32"])
@pytest.mark.parametrize(("numbers", "inside"), [("tf32", "tf32"), ("fp32", "ieee")])
def test_products_on_a_gpu_change_inside_alone(products, before, numbers, inside):
    torch.set_float32_matmul_precision("high" if before == "tf32" else "highest")
    seen = []

    def work():
        with scoring_in(numbers, GPU):
            seen.append(products.fp32_precision)
            # Torch's compiler reads this one, which raises where another has been set alone.
            assert torch.get_float32_matmul_precision() == ("high" if numbers == "tf32" else "highest")
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert seen == [inside]
    assert products.fp32_precision == before
    with scoring_in(numbers, CPU):
        assert products.fp32_precision == before


@pytest.fixture
def run(here):
    assert main(["train", *TINY, "hydra.run.dir=run"]) == 0
    return here / "run"


def scores(capsys, *words) -> dict:
    capsys.readouterr()
    assert main(["evaluate", *words, "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def test_rounded_scores_are_near_and_say_so(run, capsys):
    plain = scores(capsys, str(run))
    rounded = scores(capsys, str(run), "evaluation.precision=bf16")
    assert "numbers" not in str(plain["signatures"])
    assert rounded["metrics"]["loss"] != plain["metrics"]["loss"]
    assert rounded["metrics"]["loss"] == pytest.approx(plain["metrics"]["loss"], rel=0.01)
    assert rounded["signatures"]["loss"] == "numbers:bf16"
    assert rounded["signatures"]["chrf"].endswith("|numbers:bf16")


def test_the_file_is_the_same_whatever_it_is_scored_in(run, here):
    """What a machine scores in is no setting of the model."""
    assert main(["train", *TINY, "evaluation.precision=bf16", "hydra.run.dir=other"]) == 0
    files = [(folder / "model.safetensors").read_bytes() for folder in (run, here / "other")]
    assert files[0] == files[1]
    summary = json.loads((here / "other" / "summary.json").read_text())
    assert summary["signatures"]["loss"] == "numbers:bf16"


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_rounded_decoding_runs_by_every_method(run, method):
    loaded = load(run / "model.safetensors")
    for precision in ("bf16", "tf32"):
        config = EvaluationConfig(method=method, beam=3, precision=precision, max_length_ratio=0.5)
        found = generate(loaded.model, loaded.tokenizer, ["12:30", "3 of 4"], config)
        assert len(found) == 2
