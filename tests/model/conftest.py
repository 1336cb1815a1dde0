"""Small models in which every weight matters: biases and norms are perturbed, not left at 0 and 1."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tfx.config.schema import ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise

SMALL = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "width": 16,
    "heads": 4,
    "ffn_width": 24,
    "context": 32,
    "dropout": 0.0,
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _make_model(*, vocab: int = 11, seed: int = 1, dtype: torch.dtype = torch.float64, **settings) -> Transformer:
    if settings.get("family") == "lm":
        settings["encoder_layers"] = 0
    config = ModelConfig(**(SMALL | settings))
    model = Transformer(Architecture.from_config(config, vocab), config)
    initialise(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.to(dtype).eval()


@pytest.fixture
def make_model() -> Callable[..., Transformer]:
    """A small model in double precision and evaluation mode; keyword arguments are settings of `ModelConfig`."""
    return _make_model


@pytest.fixture
def example() -> Callable[..., tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]]:
    """Target (3, 7), and for an encoder-decoder a padded source (3, 6) with its mask; ids are below 11."""

    def make(family: str) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        generator = torch.Generator().manual_seed(7)
        target = torch.randint(0, 11, (3, 7), generator=generator)
        if family == "lm":
            return target, None, None
        source = torch.randint(0, 11, (3, 6), generator=generator)
        return target, source, torch.arange(6) < torch.tensor([[6], [3], [1]])

    return make
