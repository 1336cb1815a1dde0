"""Models compiled by torch: one set of kernels whatever shapes come first, and an account of what was compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfx.config.schema import TrainerConfig
from tfx.model.batch import Batch, Blend, Mix
from tfx.model.linear import current_products

# A forward pass has about a dozen variants: training or not, mixed or not, with padding or without, one row or several.
# Torch's own limit is 8, after which it runs the model uncompiled.
_MAX_VARIANTS = 32
# The sizes that kernels are chosen for, about those of a batch of 4,096 tokens of text to text. All differ: torch takes
# sizes that are equal at first for one and the same.
_ROWS, _TARGETS, _SOURCES = 62, 37, 31
# Of GPUs, for Triton.
_LEAST_CAPABILITY = (7, 0)


def compile_for(
    model: nn.Module, config: TrainerConfig, device: torch.device, *, trains_on_one_shape: bool = False
) -> None:
    """Has torch compile the model's calls where ``trainer.compile`` says so, apart from those of any other model.

    Models of one class share their code, and torch gives up on code after a number of shapes and settings that a
    student and its teachers would use up together. Where all training batches have one shape, kernels are made for
    that one; what is scored has others.
    """
    wanted = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
    if wanted and not missing_for_compiling(device):
        options: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": _MAX_VARIANTS}
        any_shape: dict[str, Any] = {}
        if device.type == "cuda":
            # Whether it joins two sums depends on the number of rows: kernels for any number would be compiled again
            # for a batch of another side of that limit, and the first batch would choose.
            any_shape["options"] = {"triton.mix_order_reduction": False}
            # fp32 that the user asked for is meant.
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
        model.compile(dynamic=True, **options, **any_shape)
        if trains_on_one_shape:
            of_any_shape = model._compiled_call_impl
            model.compile(dynamic=False, **options)
            model._compiled_call_impl = _ByMode(model, model._compiled_call_impl, of_any_shape)


def missing_for_compiling(device: torch.device) -> str:
    """What torch needs on this machine to compile for a device, and does not find; empty if nothing."""
    if device.type not in ("cpu", "cuda"):
        return ""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
            return "a GPU of compute capability 7.0 or more"
        if importlib.util.find_spec("triton") is None:
            return "the package triton"
        if not _finds("CC", "gcc", "clang"):
            return "a C compiler (gcc)"
    elif not _finds("CXX", "g++", "clang++"):
        return "a C++ compiler (g++)"
    # What calls a kernel is a module of Python. Elsewhere than on Linux the headers may lie in another place.
    has_headers = sys.platform != "linux" or Path(sysconfig.get_path("include"), "Python.h").is_file()
    return "" if has_headers else "the headers of Python (the package python3-dev)"


def _finds(variable: str, *usual: str) -> bool:
    """Whether there is the compiler that the environment names, else a usual one."""
    return any(map(shutil.which, [os.environ[variable]] if os.environ.get(variable) else usual))


class _ByMode:
    """The compiled calls of a model: in training for fixed shapes, else for any."""

    def __init__(self, model: nn.Module, training: Any, scoring: Any) -> None:
        self._model, self._training, self._scoring = model, training, scoring

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return (self._training if self._model.training else self._scoring)(*inputs, **options)


def settle(model: nn.Module, batch: Batch, context: int, *, with_states: bool = False) -> None:
    """Has a compiled model meet a batch of fixed sizes before the first batch of each variant of its forward pass.

    Kernels for all sizes are still chosen for those that come first: how a sum is split depends on them, and so do its
    last bits. Without this a resumed run, whose first batch is another one, would differ from an uninterrupted one.
    """
    compiled = model._compiled_call_impl
    if compiled is None or (model.training and isinstance(compiled, _ByMode)):
        return  # kernels for one shape know no other
    inputs: list[Tensor | None] = [batch.target_in_BT, batch.source_BS, batch.source_mask_BS, batch.types_BS]
    mix = batch.mix
    if mix is not None:
        inputs += [*_tensors(mix.target), *_tensors(mix.source)]
    device = batch.target_in_BT.device
    variant = (
        model.architecture,  # it changes where parts are removed
        *(model.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), with_states),
        *(torch.is_autocast_enabled(device.type), current_products(), batch.document_start),
        torch.backends.cuda.matmul.fp32_precision,
        # While the weights are seen through masks and grids, some are no parameters.
        *(type(weight) for module in model.modules() for weight in module._parameters.values()),
        # Code for one row or position, or none, is always apart.
        *(None if tensor is None else tuple(min(size, 2) for size in tensor.shape) for tensor in inputs),
    )
    known: set[tuple[object, ...]] = model.__dict__.setdefault("_settled", set())
    if variant in known:
        return
    known.add(variant)
    targets, sources = min(_TARGETS, context), max(2, min(_SOURCES, context - 1))
    target, source, mask, types = (
        None if tensor is None else _resized(tensor, length)
        for tensor, length in zip(inputs[:4], (targets, sources, sources, sources), strict=True)
    )
    if mix is not None:
        weight_B = _resized(mix.weight_B, _ROWS)  # one tensor on both sides, as in a batch: torch guards that too
        mix = Mix(
            target=_resized_blend(mix.target, weight_B, targets),
            partner_out_BT=_resized(mix.partner_out_BT, targets),
            source=None if mix.source is None else _resized_blend(mix.source, weight_B, sources),
        )
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        options = {"with_states": True} if with_states else {}
        model(target, source, mask, mix, types, **options, document_start=batch.document_start)


def _tensors(blend: Blend | None) -> list[Tensor | None]:
    return (
        []
        if blend is None
        else [*(blend.weight_B, blend.real_BL, blend.partner_BL, blend.partner_real_BL, blend.partner_types_BL)]
    )


def _resized_blend(blend: Blend, weight_B: Tensor, length: int) -> Blend:
    return Blend(
        weight_B=weight_B,
        real_BL=None if blend.real_BL is None else _resized(blend.real_BL, length),
        partner_BL=_resized(blend.partner_BL, length),
        partner_real_BL=None if blend.partner_real_BL is None else _resized(blend.partner_real_BL, length),
        partner_types_BL=None if blend.partner_types_BL is None else _resized(blend.partner_types_BL, length),
    )


def _resized(tensor: Tensor, length: int) -> Tensor:
    """Another value for an input, with fixed sizes where it has more than one row or position.

    The target of a classifier has no position.
    """
    sizes = [old if old < 2 else new for old, new in zip(tensor.shape, (_ROWS, length), strict=False)]
    return torch.full(sizes, tensor.dtype == torch.bool, dtype=tensor.dtype, device=tensor.device)


class CompilationAccount:
    """Counts what torch compiles from now on, in this process."""

    def __init__(self) -> None:
        self._graphs = _counter("stats", "unique_graphs")
        self._known = set(_counters("unimplemented"))

    @property
    def graphs(self) -> int:
        """The graphs that were compiled: one for each variant of a model's forward pass, if none of them breaks."""
        return _counter("stats", "unique_graphs") - self._graphs

    def given_up(self) -> list[str]:
        """What torch did not compile since the last call: each reason in one line."""
        new = [reason for reason in _counters("unimplemented") if reason not in self._known]
        self._known.update(new)
        return [" ".join(reason.partition("Hint:")[0].split()) for reason in new]


def _counters(kind: str) -> Mapping[str, int]:
    dynamo = sys.modules.get("torch._dynamo.utils")  # not imported: nothing was compiled
    return {} if dynamo is None else dynamo.counters[kind]


def _counter(kind: str, name: str) -> int:
    return _counters(kind).get(name, 0)
