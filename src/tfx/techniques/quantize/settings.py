"""The settings of quantization, what follows from those that are not named, and which exclude each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tfx.config.schema import Root, setting
from tfx.errors import UserError
from tfx.techniques.contract import TechniqueSettings

# The rates that there are, in bits per weight, and what codes need beside them.
LEAST_RATE, MOST_RATE = 0.5, 6.0
_ROOM = 2


@dataclass
class QuantizeSettings(TechniqueSettings):
    """Settings of `Quantize`."""

    start: float = setting(
        0.7,
        "when training with the grid begins; the grid of the file is chosen at the end",
        minimum=0,
        below=1,
        unit="fractions of the budget",
    )
    bits: int | None = setting(None, "bits per weight; null: 4, or with a rate 8", minimum=2, maximum=8)
    layers: list[str] = setting(
        [], "other bits by pattern of tensor names ('embedding.*:8', '*.ffn.*:3'); the last that matches counts"
    )
    skip: list[str] = setting([], "patterns of tensor names that are not quantized")
    embeddings: bool = setting(True, "quantize the embeddings and the output layer too")
    method: str = setting(
        "nearest",
        "round to nearest; GPTQ, which compensates errors on calibration data; dependent quantization inside GPTQ, for "
        "a rate; k-means codebooks",
        choices=("nearest", "gptq", "trellis", "codebook"),
        paper="Jacob 2018, arXiv 1712.05877; Frantar 2022, arXiv 2210.17323; Marcellin & Fischer 1990, IEEE Trans. "
        "Commun. 38(1); Han 2015, arXiv 1510.00149",
    )
    range: str = setting(
        "symmetric", "levels around 0, or from minimum to maximum with a zero point", choices=("symmetric", "affine")
    )
    granularity: str | None = setting(
        None,
        "what shares a scale; null: group, with a rate the tensor, in a trellis rows where that pays",
        choices=("tensor", "channel", "group"),
    )
    rate: float | None = setting(
        None,
        "target for the bits per weight after entropy coding, over all tensors: scales are finer where the loss is "
        "more sensitive, and bits only limits the codes; null: scales come from the range",
        minimum=LEAST_RATE,
        maximum=MOST_RATE,
        paper="Gish & Pierce 1968, IEEE Trans. Inf. Theory 14(5); Choi 2017, arXiv 1612.01543",
    )
    embedding_rate: float | None = setting(
        None,
        "a rate of its own for what lies outside of the blocks, embeddings and the output; rate is that of the blocks "
        "then; null: one rate for all, where each matrix gets what its sensitivity is worth",
        minimum=LEAST_RATE,
        maximum=MOST_RATE,
    )
    bytes: int | None = setting(
        None,
        "largest file, with header and tokenizer: the rate is chosen for it",
        minimum=1,
        unit="bytes",
    )
    ratio: float | None = setting(
        None,
        "how many times smaller than plain fp32 weights and header become: the rate is chosen for it",
        above=1,
        maximum=1000,
    )
    group: int = setting(64, "inputs of a row that share a scale", minimum=1, maximum=65536)
    clip: bool = setting(True, "clip the range if that lowers the squared error")
    aware: bool | None = setting(
        None,
        "train with the grid from start on, with straight-through gradients; null: yes, except with gptq and trellis",
        paper="Bengio 2013, arXiv 1308.3432; Jacob 2018, arXiv 1712.05877",
    )
    learned_step: bool = setting(
        False, "training with the grid also learns the scales", paper="Esser 2020, arXiv 1902.08153"
    )
    every: float = setting(
        0.01,
        "training with the grid: time between updates of the scales",
        above=0,
        maximum=1,
        unit="fractions of the budget",
    )
    activations: str = setting(
        "none",
        "int8: linear layers of 8 bits run on int8 kernels, which round their inputs to 8 bits",
        choices=("none", "int8"),
    )
    calibration: int = setting(
        16,
        "training batches for gptq and trellis, and for the sensitivities of a rate without training",
        minimum=1,
        maximum=100000,
    )
    entropy: bool = setting(True, "code frequent values in fewer bits in the file", paper="Duda 2013, arXiv 1311.2540")
    scales: str = setting("fp16", "number format of scales and codebooks in the file", choices=("fp16", "fp32"))
    store: str = setting(
        "fp16", "number format in the file for tensors that are not quantized", choices=("fp16", "fp32")
    )

    @property
    def is_aware(self) -> bool:
        """Whether training has the grid from ``start`` on."""
        return self.method not in ("gptq", "trellis") if self.aware is None else self.aware

    @property
    def code_bits(self) -> int:
        """Bits of a code where ``layers`` says nothing else."""
        return (4 if self.rate is None else 8) if self.bits is None else self.bits

    @property
    def shared_by(self) -> str:
        """What shares a scale: tensor, channel or group."""
        return self.granularity or ("group" if self.rate is None else "tensor")


def check_settings(settings: QuantizeSettings, config: Root, named_rate: float | None) -> None:
    """Raises `UserError` for settings that exclude each other; ``named_rate`` is the rate that the user names."""
    named = {"rate": named_rate, "bytes": settings.bytes, "ratio": settings.ratio}
    if len(given := [f"{name}={value}" for name, value in named.items() if value is not None]) > 1:
        raise UserError(f"technique.quantize has {' and '.join(given)}, and each decides the rate: name one")
    for rule in settings.layers:
        pattern, _, bits = rule.rpartition(":")
        if not pattern or bits not in ("2", "3", "4", "5", "6", "7", "8"):
            raise UserError(f"technique.quantize.layers: '{rule}' is not pattern:bits with 2 to 8 bits")
    if settings.end != 1.0:
        raise UserError(
            f"technique.quantize.end={settings.end:g}: the file is on its grid, so training keeps it to the end; "
            "technique.quantize.start says from where on"
        )
    if settings.method == "gptq" and settings.is_aware:
        raise UserError(
            "technique.quantize.method=gptq rounds to keep the outputs of the weights as they are, and aware "
            "training moves them for rounding to nearest: leave one of the two out"
        )
    if config.trainer.budget.is_zero and (settings.aware or settings.learned_step):
        name = "learned_step" if settings.learned_step else "aware"
        raise UserError(f"technique.quantize.{name}=true acts only while training, and the budget is zero")
    if settings.learned_step and (settings.method != "nearest" or not settings.is_aware):
        raise UserError("technique.quantize.learned_step needs aware training and method=nearest")
    if settings.rate is not None:
        _check_rate(settings, settings.rate)
    elif settings.embedding_rate is not None:
        raise UserError(
            "technique.quantize.embedding_rate goes with a rate: add technique.quantize.rate, such as 2, or name "
            "bits of tensors with technique.quantize.layers=['embedding.*:8']"
        )
    elif settings.method == "trellis":
        raise UserError(
            "technique.quantize.method=trellis codes to a rate: name technique.quantize.rate, such as 2, or bytes, or "
            "ratio"
        )
    if settings.activations == "int8" and (
        settings.code_bits != 8
        or settings.shared_by == "group"
        or settings.range != "symmetric"
        or settings.method in ("codebook", "trellis")
    ):
        raise UserError(
            "technique.quantize.activations=int8 needs bits=8, range=symmetric, a scale a channel or tensor "
            "(granularity=channel) and no codebook or trellis: that is what int8 kernels multiply"
        )
    other = [rule for rule in settings.layers if not rule.endswith(":8")]
    if settings.activations == "int8" and other:
        raise UserError(
            f"technique.quantize.layers gives '{other[0]}', and activations=int8 is for layers of 8 bits: "
            "leave one of the two out"
        )
    if settings.method == "codebook" and settings.range != "symmetric":
        raise UserError("technique.quantize.range=affine is for integer grids; a codebook has no range")


def _check_rate(settings: QuantizeSettings, rate: float) -> None:
    if (
        settings.shared_by == "group"
        or settings.range != "symmetric"
        or settings.method == "codebook"
        or settings.learned_step
        or settings.layers
        or not settings.entropy
    ):
        raise UserError(
            "technique.quantize.rate needs range=symmetric, granularity=tensor or channel, entropy=true and no "
            "codebook, learned_step or layers: it chooses the scales, for entropy-coded codes"
        )
    if settings.method == "trellis" and settings.code_bits != 8:
        raise UserError("technique.quantize.bits: the levels of a trellis have 8 bits before coding; leave it out")
    if settings.embedding_rate is not None and not settings.embeddings:
        raise UserError(
            "technique.quantize.embedding_rate is for embeddings, and technique.quantize.embeddings=false leaves "
            "them out: name one of the two"
        )
    most = max(rate, settings.embedding_rate or 0.0)
    if most > highest_rate(settings.code_bits):
        name = "rate" if most == rate else "embedding_rate"
        word = f"{name}={most:g}"
        if name == "rate" and settings.bytes is not None:
            word = f"bytes={settings.bytes}"
        elif name == "rate" and settings.ratio is not None:
            word = f"ratio={settings.ratio:g}"
        raise UserError(
            f"technique.quantize.{word} needs room for the codes of large weights: "
            f"bits={math.ceil(most + _ROOM)} or more"
        )


def highest_rate(code_bits: int, sparsity: float = 0.0) -> float:
    """The rate at which codes of ``code_bits`` bits still reach 8 standard deviations of roughly normal weights.

    Of weights of which a share is zero, that share takes only the bits that say which they are.
    """
    which = -sum(share * math.log2(share) for share in (sparsity, 1 - sparsity) if share > 0)
    return which + (1 - sparsity) * min(MOST_RATE, float(code_bits - _ROOM))
