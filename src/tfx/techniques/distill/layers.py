"""A student that starts from layers of its teacher (Sanh 2019, arXiv 1910.01108)."""

from __future__ import annotations

from dataclasses import fields

import torch

from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.rewiring import evenly_spaced
from tfx.model.transformer import Transformer

_MAY_DIFFER = {"encoder", "decoder", "context", "tied_embeddings"}


def check_layers(theirs: Architecture, ours: Architecture) -> None:
    """Raises `UserError` if widths or kinds of layers of teacher and student differ."""
    for name in [f.name for f in fields(Architecture) if f.name not in _MAY_DIFFER]:
        if getattr(theirs, name) != getattr(ours, name):
            raise UserError(
                f"technique.distill.initialise needs a teacher with the student's {name}: "
                f"{getattr(theirs, name)} is not {getattr(ours, name)}"
            )
    for their_shapes, our_shapes in ((theirs.encoder, ours.encoder), (theirs.decoder, ours.decoder)):
        numbers = evenly_spaced(len(our_shapes), len(their_shapes))
        for shape, number in zip(our_shapes, numbers, strict=True):
            if their_shapes[number] != shape:
                raise UserError(
                    "technique.distill.initialise needs layers of the same heads and feed-forward width: "
                    f"{their_shapes[number]} is not {shape}"
                )


def copy_layers(teacher: Transformer, student: Transformer) -> int:
    """Starts the student from evenly spaced teacher layers and its embeddings; returns the layers copied.

    Raises `UserError` as `check_layers` does.
    """
    check_layers(teacher.architecture, student.architecture)
    copied = 0
    with torch.no_grad():
        for ours, theirs in ((student.encoder, teacher.encoder), (student.decoder, teacher.decoder)):
            if ours is None or theirs is None:
                continue
            for block, number in zip(ours.blocks, evenly_spaced(len(ours.blocks), len(theirs.blocks)), strict=True):
                block.load_state_dict(theirs.blocks[number].state_dict())
                copied += 1
            ours.norm.load_state_dict(theirs.norm.state_dict())
        for name in ("embedding", "source_embedding", "output", "position", "token_type", "embedding_norm"):
            theirs_part, ours_part = getattr(teacher, name), getattr(student, name)
            if theirs_part is not None and ours_part is not None and ours_part.weight.shape == theirs_part.weight.shape:
                ours_part.load_state_dict(theirs_part.state_dict())
        if student.convolution is not None and teacher.convolution is not None:
            student.convolution.load_state_dict(teacher.convolution.state_dict())
    return copied
