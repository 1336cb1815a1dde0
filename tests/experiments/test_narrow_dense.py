"""The narrower dense model in 8 bits, with which compressed ones are compared."""

import pytest

from tfx.compression import checkpoint
from tfx.config.compose import compose
from tfx.experiments.narrow_dense import narrow_int8
from tfx.experiments.search.size import untrained_bytes
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer
from tfx.tasks.prepare import prepare_data

TINY = [
    "model.heads=2",
    "model.encoder_layers=1",
    "model.width=64",
    "model.ffn_width=64",
    "dataset.tokenizer.vocab_size=300",
]


@pytest.mark.parametrize("dataset", ["normalize", "kinds"])
def test_its_file_has_about_the_bytes_of_the_target(dataset, tmp_path):
    config = compose([*TINY, f"dataset={dataset}", "dataset.limit.train=300"])
    data = prepare_data(config.dataset, config.model.context)
    model = Transformer(Architecture.from_config(config.model, data.tokenizer.vocab_size, data.outputs))
    plain = tmp_path / "model.safetensors"
    checkpoint.save(plain, model, data.tokenizer, config.evaluation)
    whole = checkpoint.read_header(plain).bytes
    narrow = narrow_int8(config, plain, (whole.weights + whole.header) / 8)
    assert narrow.technique["quantize"]["bits"] == 8
    bytes_ = untrained_bytes(narrow, data.tokenizer, data.outputs)
    # Widths are multiples of four here.
    assert bytes_.weights + bytes_.header == pytest.approx((whole.weights + whole.header) / 8, rel=0.1)
