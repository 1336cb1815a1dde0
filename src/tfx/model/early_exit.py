"""Classifiers that stop as soon as they are sure: a text leaves after the first block whose head is.

Xin 2020 (DeeBERT), arXiv 2004.12993; Schwartz 2020, arXiv 2004.07453, whose measure of sureness this is: the
probability of the likeliest label.

Shapes: B batch, R rows that are still inside, S source positions, D model width, C labels, E exits and the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from tfx.model.attention import Bias
from tfx.model.batch import Batch
from tfx.model.exit_head import ExitHead
from tfx.model.rewiring import reshape
from tfx.model.transformer import Transformer, key_mask, run_batch, run_batch_with_states


def label_logits(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """The outputs (B, C) of a classifier, and how many blocks (B,) each text took, where texts leave it early."""
    if model.architecture.exit_threshold is None:
        return model.project(run_batch(model, batch)).squeeze(1), None
    return leave_early(model, batch, model.architecture.exit_threshold)


def leave_early(model: Transformer, batch: Batch, threshold: float) -> tuple[Tensor, Tensor]:
    """Logits (B, C) in fp32 of the head that each text leaves by, and the number of blocks (B,) before it.

    Texts that are done leave the batch: the next block has fewer rows.
    """
    assert model.encoder is not None
    assert model.pooling is not None
    assert batch.source_BS is not None
    mask_RS = batch.source_mask_BS
    x_RSD, bias, rotary = model.entering(batch.source_BS, mask_RS, None, batch.types_BS)
    heads = heads_of(model)
    inside_R = torch.arange(len(x_RSD), device=x_RSD.device)
    logits_BC = torch.empty(len(x_RSD), model.architecture.output_count, device=x_RSD.device)
    depth_B = torch.full_like(inside_R, len(model.encoder.blocks))
    for depth, block in enumerate(model.encoder.blocks, start=1):
        x_RSD = block(x_RSD, bias, None, None, rotary)
        if depth not in heads:
            continue
        found_RC = heads[depth](x_RSD, mask_RS).float()
        leaves_R = sureness(found_RC) >= threshold
        gone = inside_R[leaves_R]
        if not len(gone):
            continue
        logits_BC[gone], depth_B[gone] = found_RC[leaves_R], depth
        stays_R = ~leaves_R
        inside_R, x_RSD = inside_R[stays_R], x_RSD[stays_R]
        if not len(inside_R):
            return logits_BC, depth_B
        mask_RS = None if mask_RS is None else mask_RS[stays_R]
        bias = Bias(key_mask(mask_RS), distance_TS=bias.distance_TS, bucket_TS=bias.bucket_TS)
    pooled_RD = model.pooling(model.encoder.norm(x_RSD), mask_RS)
    logits_BC[inside_R] = model.project(pooled_RD).float()
    return logits_BC, depth_B


def logits_of_exits(model: Transformer, batch: Batch) -> Tensor:
    """Logits (E, B, C) in fp32 of each head of a classifier, the last of them the model's own."""
    hidden_B1D, states = run_batch_with_states(model, batch)
    found = [head(states.encoder[depth], batch.source_mask_BS) for depth, head in heads_of(model).items()]
    return torch.stack([*found, model.project(hidden_B1D).squeeze(1)]).float()


def sureness(logits_NC: Tensor) -> Tensor:
    """The probability (N,) of the likeliest label."""
    return logits_NC.softmax(1).amax(1)


def heads_of(model: Transformer) -> dict[int, ExitHead]:
    """The heads by the number of blocks before each."""
    return {depth: cast(ExitHead, head) for depth, head in zip(model.architecture.exits, model.exits, strict=True)}


def set_exits(model: Transformer, exits: Sequence[int]) -> None:
    """Gives a classifier these exits in place. Heads that it has stay; a new one is a copy of the model's own.

    No text leaves before a threshold is set.
    """
    state = dict(model.state_dict())
    places = {depth: place for place, depth in enumerate(model.architecture.exits)}
    own = {
        **{f"norm.{name}": tensor for name, tensor in _of(state, "encoder.norm.").items()},
        **{f"pooling.{name}": tensor for name, tensor in _of(state, "pooling.").items()},
        **{f"output.{name}": tensor for name, tensor in _of(state, "output.").items()},
    }
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("exits.")}
    for place, depth in enumerate(exits):
        head = _of(state, f"exits.{places[depth]}.") if depth in places else own
        kept |= {f"exits.{place}.{name}": tensor for name, tensor in head.items()}
    reshape(model, replace(model.architecture, exits=tuple(exits), exit_threshold=None), kept)


def _of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
