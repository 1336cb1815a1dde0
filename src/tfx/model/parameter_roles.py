"""The role of each parameter of a model; code asks for the role instead of guessing from name or shape."""

from __future__ import annotations

from enum import Enum

from torch import nn


class Role(Enum):
    """Kinds of parameters. ``OTHER`` belongs to a technique and to no layer, such as a learned scale."""

    EMBEDDING = "embedding"
    MATRIX = "matrix of a block, or of the convolution before them"
    HEAD = "matrix outside of the blocks"
    BIAS = "bias"
    NORM = "norm"
    OTHER = "of a technique"


# The kinds with most of the weights: each row or column is a vector of the model.
MATRICES = (Role.EMBEDDING, Role.MATRIX, Role.HEAD)


def parameter_roles(module: nn.Module) -> dict[str, Role]:
    """The role of each parameter by its name in ``module``; a tied parameter has the role of its first place."""
    roles: dict[str, Role] = {}
    for prefix, layer in module.named_modules():
        for name, _ in layer.named_parameters(prefix, recurse=False):
            roles[name] = _role(layer, name)
    return {name: roles[name] for name, _ in module.named_parameters()}


def is_within(name: str) -> bool:
    """Whether a parameter or layer of this name is part of a block, or of the convolution before the blocks."""
    return ".blocks." in f".{name}" or name.startswith("convolution.")


def _role(layer: nn.Module, name: str) -> Role:
    if isinstance(layer, nn.Embedding):
        return Role.EMBEDDING
    if isinstance(layer, nn.Linear):
        if name.endswith("bias"):
            return Role.BIAS
        return Role.MATRIX if is_within(name) else Role.HEAD
    if isinstance(layer, nn.ParameterDict | nn.ParameterList):
        return Role.OTHER
    return Role.BIAS if name.endswith("bias") else Role.NORM
