"""Models compiled by torch: one set of kernels whatever shapes come first, and an account of what was compiled."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tfx.config.schema import TrainerConfig
from tfx.model.batch import Batch

# A forward pass has about a dozen variants: training or not, mixed or not, with padding or without, one row or several.
# Torch's own limit is 8, after which it runs the model uncompiled.
_MAX_VARIANTS = 32
# The rows and the positions that kernels are chosen for: about those of a batch of 4,096 tokens of text to text.
_ROWS, _POSITIONS = 64, 32


def compile_for(model: nn.Module, config: TrainerConfig, device: torch.device) -> None:
    """Has torch compile the model's calls where ``trainer.compile`` says so, apart from those of any other model.

    Models of one class share their code, and torch gives up on code after a number of shapes and settings that a
    student and its teachers would use up together.
    """
    if config.compile == "on" or (config.compile == "auto" and device.type == "cuda"):
        model.compile(dynamic=True, isolate_recompiles=True, recompile_limit=_MAX_VARIANTS)


def fix_hints(model: nn.Module, batch: Batch) -> None:
    """Has a compiled model choose its kernels for the same sizes whatever batch comes first.

    Kernels for all sizes are still chosen for one: how a sum is split depends on it, and so do its last bits. Without
    this a resumed run, whose first batch is another one, would differ from an uninterrupted one.
    """
    if model._compiled_call_impl is None:
        return
    from torch._dynamo.decorators import mark_dynamic

    of_positions: list[Tensor | None] = [batch.target_in_BT, batch.source_BS, batch.source_mask_BS]
    of_rows: list[Tensor | None] = []
    if batch.mix is not None:
        of_positions += [batch.mix.source_real_BS, batch.mix.target_real_BT]
        of_rows += [batch.mix.partner_B, batch.mix.weight_B]
    for tensor in [*of_positions, *of_rows]:
        sizes = () if tensor is None else tuple(tensor.shape)
        # Code for one row or position is always apart.
        for axis, (size, hint) in enumerate(zip(sizes, (_ROWS, _POSITIONS), strict=False)):
            if size > 1:
                mark_dynamic(tensor, axis, hint_override=hint)


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
