"""Parts that measure: the rate of matrix products, training, time to a loss, and kernels for small weights."""

from __future__ import annotations

import copy
import inspect
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peers import nanogpt_task, run
from torch import Tensor
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured

from gpu.parts import Bench, Row, Told, part, trainer_of
from tfx.compression.grid import Grid
from tfx.compression.int8 import Int8Linear
from tfx.config.compose import compose
from tfx.config.schema import Budget
from tfx.evaluation.scoring import score_loss
from tfx.model.device import choose_precision, scoring_in
from tfx.model.loss import CrossEntropy, projected_losses
from tfx.record.summary import TrainingCost
from tfx.run.setup import Parts
from tfx.techniques.prune.masks import pattern_mask
from tfx.training.accounts import peak_flops
from tfx.training.allocations import peak_of
from tfx.training.muon import orthogonalise

# nanoGPT's published loss of its GPU recipe for characters, and the rest of that recipe.
_TARGET_LOSS = 1.47
_BABY = [
    *("model=gpt_baby", "dataset=tinyshakespeare", "dataset.batch_tokens=16384", "trainer.budget.steps=5000"),
    *("optimizer.lr=1e-3", "trainer.validate_every=0.02"),
]
_FEW = ["trainer.budget.steps=100", "dataset.valid_fraction=0.01", "optimizer.lr=0.01", "model.ffn_width=64"]
_PRESETS = {
    "seq2seq_small": ["model=seq2seq_small", "dataset=normalize", "dataset.batch_tokens=32768"],
    "gpt_small": ["model=gpt_small", "dataset=stdlib", "dataset.batch_tokens=16384"],
}
# The share of the measured rate that a language model of 124 M parameters is to reach.
_AIM = 0.45
# How many times as fast as nanoGPT the character model is to reach its loss.
_AIM_TO_LOSS = 2.0


def _seconds(bench: Bench, work: Callable[[], Any], least: float) -> float:
    """Seconds of one call, over calls of at least this many seconds together."""
    for _ in range(3):
        work()
    bench.wait()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < least:
        for _ in range(3):
            work()
        count += 3
        bench.wait()
    return (time.perf_counter() - start) / count


@part
def rate(bench: Bench) -> Iterator[Row]:
    """The rate of large matrix products, which shares refer to."""
    size = 128 if bench.small else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        seconds = _seconds(bench, lambda a=a, b=b: a @ b, 0.1 if bench.small else 2.0)
        name = str(dtype).removeprefix("torch.")
        bench.measured[name] = 2 * size**3 / seconds
        value = f"{bench.measured[name] / 1e12:.4g} TFLOP/s"
        peak = peak_flops(bench.device)
        if peak is not None and dtype == torch.bfloat16:
            value += f", {bench.measured[name] / peak:.0%} of the data sheet's"
        yield Row(f"matrix products in {name}", value, None, bench.measured[name])


def _speed(bench: Bench, parts: Parts) -> tuple[float, TrainingCost]:
    """Tokens a second in the second half of a training, without what is compiled and caches that are cold."""
    told, steps = Told(), 4 if bench.small else 400
    options = {"log_every": 1 if bench.small else 10, "validate_every": 1.0}
    cost = trainer_of(parts, told, budget=Budget(steps=steps), **options).train()
    return statistics.median(row["tokens_per_second"] for row in told.rows[len(told.rows) // 2 :]), cost


@part
def training(bench: Bench) -> Iterator[Row]:
    """Training speed, share of the measured rate of matrix products, and peak memory."""
    if "bfloat16" not in bench.measured:
        yield from rate(bench)
    for name, words in _PRESETS.items():
        parts = bench.prepare(*words)
        speed, cost = _speed(bench, parts)
        share = speed * cost.flops / cost.tokens / bench.measured["bfloat16"]
        yield Row(f"{name}: training", f"{speed:,.0f} tokens/s", None, speed)
        is_aim = bench.is_cuda and name == "gpt_small"
        yield Row(f"{name}: share of the rate", f"{share:.1%}", share >= _AIM if is_aim else None, share)
        yield Row(f"{name}: peak memory", f"{cost.peak_memory_bytes / 1e9:.2f} GB", None, cost.peak_memory_bytes)


@part
def choices(bench: Bench) -> Iterator[Row]:
    """Training speed with and without batches made ahead and documents kept apart; scoring in TF32 and bf16."""
    pairs, text = _PRESETS["seq2seq_small"], _PRESETS["gpt_small"]
    for name, words, more in (
        ("pairs, no batch ahead", pairs, ["trainer.prefetch=off"]),
        ("pairs, a batch ahead", pairs, ["trainer.prefetch=on"]),
        ("text, documents apart", text, ["dataset.document_mask=true"]),
    ):
        speed, _ = _speed(bench, bench.prepare(*words, *more))
        yield Row(name, f"{speed:,.0f} tokens/s", None, speed)
    parts = bench.prepare(*text, "trainer.compile=off")
    options = {"batch_tokens": parts.config.evaluation.batch_tokens, "device": bench.device}
    losses: dict[str, float] = {}
    for numbers in ("fp32", "tf32", "bf16"):
        with scoring_in(numbers, bench.device):
            start = time.perf_counter()
            score = score_loss(parts.model, parts.data.splits["valid"], parts.data.tokenizer, **options)
            seconds = time.perf_counter() - start
        losses[numbers] = score.metrics["loss"]
        off = abs(losses[numbers] - losses["fp32"]) / losses["fp32"]
        yield Row(f"scoring in {numbers}", f"{seconds:.1f} s, loss {off:.1e} off", off < 1e-2, off)


class _ReachedError(Exception):
    """The loss is there."""


class _Watch(Told):
    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target
        self.best = float("inf")

    def validated(self, row: dict[str, float], *, seconds: float, **place: Any) -> None:
        self.best, self.seconds = min(self.best, row["loss"]), seconds
        if row["loss"] <= self.target:
            raise _ReachedError


@part
def shakespeare(bench: Bench) -> Iterator[Row]:
    """Training time of gpt_baby to nanoGPT's loss on tinyshakespeare, then that of nanoGPT's own loop."""
    if bench.shakespeare is None:
        yield Row("time to the loss", "left out: name the data with --shakespeare FOLDER")
        return
    watch = _Watch(4.2 if bench.small else _TARGET_LOSS)
    parts = bench.prepare(*_BABY, f"dataset.path={bench.shakespeare}", *(_FEW if bench.small else []))
    reached = False
    try:
        trainer_of(parts, watch).train()
    except _ReachedError:
        reached = True
    value = f"{watch.seconds:.1f} s" if reached else f"not reached: {watch.best:.3f} after {watch.seconds:.1f} s"
    yield Row(f"to a loss of {watch.target:g}", value, reached, watch.seconds)
    with tempfile.TemporaryDirectory() as folder:
        task = nanogpt_task(parts.config, parts.data, Path(folder)) | {"loss": watch.target}
        task["settings"] |= {"steps": 20, "look": 10} if bench.small else {"steps": parts.config.trainer.budget.steps}
        peer = run("peer_nanogpt.py", task, Path(folder))
    missed = peer["seconds_to_loss"] is None
    value = f"not reached: {peer['loss']:.3f} after " if missed else ""
    yield Row("nanoGPT's loop", f"{value}{peer['seconds']:.1f} s", None, peer["seconds"])
    if reached:
        # All seconds of a peer that missed it count: it needs more.
        ratio = peer["seconds"] / watch.seconds
        good = ratio >= _AIM_TO_LOSS if bench.is_cuda else None
        yield Row("times as fast as nanoGPT", f"{'at least ' if missed else ''}{ratio:.2f}", good, ratio)


@part
def kernels(bench: Bench) -> Iterator[Row]:
    """Linear layers on int8 kernels and on 2:4 sparse ones, against bfloat16."""
    outputs, inputs = (64, 64) if bench.small else (4096, 1024)
    weight = torch.randn(outputs, inputs, device=bench.device)
    codes = (weight / weight.abs().amax(1, keepdim=True) * 127).round() + 128
    scale = weight.abs().amax(1, keepdim=True).half() / 127
    int8 = Int8Linear(Grid(codes.to(torch.uint8), 8, scale), None)
    dense = weight.bfloat16()
    for rows in (1, 32) if bench.small else (1, 32, 4096):
        x = torch.randn(rows, inputs, device=bench.device)
        half = x.bfloat16()
        least = 0.02 if bench.small else 0.5
        plain = _seconds(bench, lambda half=half: half @ dense.t(), least)
        yield Row(f"{rows} rows: bfloat16", f"{plain * 1e6:.1f} µs", None, plain)
        exact = x.double() @ weight.double().t()
        wrong = float((int8(x).double() - exact).norm() / exact.norm())
        seconds = _seconds(bench, lambda x=x: int8(x), least)
        yield Row(f"{rows} rows: int8", f"{plain / seconds:.2f} times as fast, {wrong:.1%} off", wrong < 0.03, seconds)
    yield from _sparse(bench, dense)


def _sparse(bench: Bench, dense: Tensor) -> Iterator[Row]:
    if not bench.is_cuda:
        yield Row("2:4", "left out: torch has no such kernel on a CPU")
        return
    pruned = dense * pattern_mask(dense.abs(), 2, 4)
    sparse = to_sparse_semi_structured(pruned)
    for rows in (32, 4096):
        half = torch.randn(rows, dense.shape[1], device=bench.device, dtype=torch.bfloat16)
        plain = _seconds(bench, lambda half=half: functional.linear(half, pruned), 0.5)
        seconds = _seconds(bench, lambda half=half: functional.linear(half, sparse), 0.5)
        expected = functional.linear(half, pruned).float()
        wrong = float((functional.linear(half, sparse).float() - expected).norm() / expected.norm())
        yield Row(f"{rows} rows: 2:4", f"{plain / seconds:.2f} times as fast", wrong < 0.02, seconds)


@part
def ways(bench: Bench) -> Iterator[Row]:
    """The parts of a step as training computes them and in other ways: which is the fastest."""
    yield from _compared(bench, "loss", _losses(bench))
    # Fifteen products in bfloat16, one after the other, enlarge what is rounded otherwise.
    yield from _compared(bench, "Muon's updates", _updates(bench), most_off=0.1)
    yield from _compared(bench, "passes", _passes(bench))
    yield from _compared(bench, "queries, keys, values", _projections(bench))
    yield from _compared(bench, "shared keys", _shared_keys(bench))


Way = Callable[[], Sequence[Tensor]]


def _compared(bench: Bench, what: str, those: dict[str, Way], most_off: float = 0.03) -> Iterator[Row]:
    """Time, memory and error of ways to the same tensors, of which the first is the one that training takes."""
    expected, times = next(iter(those.values()))(), {}
    for name, way in those.items():
        wrong = max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(way(), expected, strict=True))
        times[name] = _seconds(bench, way, 0.02 if bench.small else 2.0)
        held = torch.cuda.memory_allocated(bench.device) if bench.is_cuda else 0
        more = peak_of(way, bench.device) - held
        value = f"{times[name] * 1e3:.3g} ms, {more / 1e6:.3g} MB, {wrong:.1e} off"
        yield Row(f"{what}: {name}", value, wrong < most_off, times[name])
    yield Row(f"{what}: fastest", min(times, key=lambda name: times[name]))


def _losses(bench: Bench) -> dict[str, Way]:
    """Forwards and backwards from the hidden states of a batch of gpt_small to those and the output matrix."""
    config = compose(["model=gpt_small", "dataset=stdlib"])
    width, vocab, count, rows = config.model.width, config.dataset.tokenizer.vocab_size, 16_384, 4096
    if bench.small:
        width, vocab, count, rows = 16, 100, 256, 128
    dtype = torch.float32 if bench.small else torch.bfloat16
    hidden_ND = torch.randn(count, width, device=bench.device, dtype=dtype, requires_grad=True)
    weight_VD = (0.02 * torch.randn(vocab, width, device=bench.device)).requires_grad_()
    target_N = torch.randint(vocab, (count,), device=bench.device)

    def slices() -> Sequence[Tensor]:
        losses = [(CrossEntropy([(target_N, None)]), 1.0)]
        total, _ = projected_losses(hidden_ND, weight_VD, losses, dtype=dtype)
        return torch.autograd.grad(total, [hidden_ND, weight_VD])

    @torch.compile(dynamic=False)
    def compiled(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        return functional.cross_entropy((hidden_ND @ weight_VD.t()).float(), target_N, reduction="sum")

    def compiled_slices() -> Sequence[Tensor]:
        weight = weight_VD.to(dtype).detach().requires_grad_()
        parts_ND, whole_VD = [], torch.zeros_like(weight_VD)
        for piece_ND, piece_N in zip(hidden_ND.detach().split(rows), target_N.split(rows), strict=True):
            piece_ND.requires_grad_()
            grad_ND, grad_VD = torch.autograd.grad(compiled(piece_ND, weight, piece_N), [piece_ND, weight])
            parts_ND.append(grad_ND)
            whole_VD += grad_VD
        return torch.cat(parts_ND), whole_VD

    def torchs() -> Sequence[Tensor]:
        options = torch.nn.LinearCrossEntropyOptions()
        given = hidden_ND, weight_VD.to(dtype), target_N
        total = functional.linear_cross_entropy(*given, reduction="sum", options=options)
        return torch.autograd.grad(total, [hidden_ND, weight_VD])

    return {"slices (the present one)": slices, "compiled slices": compiled_slices, "linear_cross_entropy": torchs}


def _updates(bench: Bench) -> dict[str, Way]:
    """The updates of a layer's feed-forward matrices in six layers of gpt_small, stacked as Muon has them."""
    count, rows, columns = (2, 8, 16) if bench.small else (6, 3072, 768)
    momenta_NRC = torch.randn(count, rows, columns, device=bench.device).to(torch.bfloat16)
    settings = inspect.signature(torch.optim.Muon).parameters
    given = momenta_NRC, *(settings[name].default for name in ("ns_coefficients", "ns_steps", "eps"))
    compiled = torch.compile(orthogonalise, dynamic=False)
    return {
        "stacked (the present one)": lambda: [orthogonalise(*given)],
        "stacked and compiled": lambda: [compiled(*given)],
    }


def _passes(bench: Bench) -> dict[str, Way]:
    """Forwards and backwards through the blocks of gpt_baby, whose kernels are short: with CUDA graphs too."""
    parts = bench.prepare("model=gpt_baby", "dataset=stdlib", "model.dropout=0", "trainer.compile=off")
    length, rows = parts.config.model.context, 2 if bench.small else 64
    tokens_BT = torch.randint(parts.data.tokenizer.vocab_size, (rows, length), device=bench.device)
    back_BTD = torch.randn(rows, length, parts.config.model.width, device=bench.device)
    precision = choose_precision(parts.config.trainer.precision, bench.device)

    def through(**how: Any) -> Way:
        model = copy.deepcopy(parts.model).to(bench.device).train()
        model.compile(dynamic=False, **how)

        def way() -> Sequence[Tensor]:
            with precision.forward(bench.device):
                hidden_BTD = model(tokens_BT)
            given = [hidden_BTD], list(model.parameters()), [back_BTD.to(hidden_BTD.dtype)]
            grads = torch.autograd.grad(*given, allow_unused=True)
            # What a graph has written, its next run writes again.
            return [grad.clone() for grad in grads if grad is not None]

        return way

    return {
        "compiled (the present one)": through(),
        "compiled, with CUDA graphs": through(mode="reduce-overhead"),
    }


def _projections(bench: Bench) -> dict[str, Way]:
    """Three products of gpt_small's width, or one with the three matrices joined in each pass."""
    width, count = (16, 64) if bench.small else (768, 16_384)
    dtype = torch.float32 if bench.small else torch.bfloat16
    x_ND = torch.randn(count, width, device=bench.device, dtype=dtype, requires_grad=True)
    matrices = [(torch.randn(width, width, device=bench.device) / width**0.5).requires_grad_() for _ in range(3)]
    back_N3D = torch.randn(count, 3 * width, device=bench.device, dtype=dtype)

    def three() -> Sequence[Tensor]:
        found = [functional.linear(x_ND, matrix.to(dtype)) for matrix in matrices]
        return torch.autograd.grad(found, [x_ND, *matrices], back_N3D.split(width, 1))

    def one() -> Sequence[Tensor]:
        found = functional.linear(x_ND, torch.cat(matrices).to(dtype))
        return torch.autograd.grad(found, [x_ND, *matrices], back_N3D)

    return {"three products (the present one)": three, "one, joined in each pass": one}


def _shared_keys(bench: Bench) -> dict[str, Way]:
    """Attention of 12 heads with 4 heads of keys and values, which are repeated, or which the kernel repeats."""
    batch, length, width = (2, 16, 8) if bench.small else (16, 1024, 64)
    dtype = torch.float32 if bench.small else torch.bfloat16
    q_BHTK, k_BGSK, v_BGSK = (
        torch.randn(batch, heads, length, width, device=bench.device, dtype=dtype, requires_grad=True)
        for heads in (12, 4, 4)
    )
    back_BHTK = torch.randn_like(q_BHTK)

    def gradients(found: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(found, [q_BHTK, k_BGSK, v_BGSK], back_BHTK)

    def repeated() -> Sequence[Tensor]:
        own = [each.repeat_interleave(3, dim=1) for each in (k_BGSK, v_BGSK)]
        return gradients(functional.scaled_dot_product_attention(q_BHTK, *own, is_causal=True))

    def by_kernel() -> Sequence[Tensor]:
        given = q_BHTK, k_BGSK, v_BGSK
        return gradients(functional.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=True))

    return {"repeated (the present one)": repeated, "enable_gqa": by_kernel}
