"""Which weights a technique acts on, by the names that its settings give, and what that leaves out."""

from __future__ import annotations

from collections.abc import Container, Sequence
from fnmatch import fnmatch

from torch import Tensor

from tfx.errors import UserError
from tfx.model.parameter_roles import Role, parameter_roles
from tfx.model.transformer import Transformer

_OTHER_MATRICES = (Role.EMBEDDING, Role.HEAD)
_VECTORS = (Role.NORM, Role.BIAS)


def select_weights(
    model: Transformer, skip: Sequence[str], setting: str, *, embeddings: bool, vectors: bool = False
) -> dict[str, Tensor]:
    """Weights by name: the matrices of blocks, with ``embeddings`` all others, with ``vectors`` norms and biases too.

    Raises `UserError` where a pattern of ``skip``, the value of ``setting``, names no tensor, or all are named.
    """
    parameters = dict(model.named_parameters())
    for pattern in skip:
        if not any(fnmatch(name, pattern) for name in parameters):
            raise UserError(
                f"{setting}: no tensor of the model is named like '{pattern}', as '{next(iter(parameters))}' is; "
                "`tfx inspect RUN` shows all names"
            )
    roles = parameter_roles(model)
    taken = {Role.MATRIX, *(_OTHER_MATRICES if embeddings else ()), *(_VECTORS if vectors else ())}
    chosen = {
        name: parameter.detach()
        for name, parameter in parameters.items()
        if roles[name] in taken and not any(fnmatch(name, pattern) for pattern in skip)
    }
    if not chosen:
        raise UserError(f"{setting} leaves every weight of the model alone, so there is nothing to do: skip fewer")
    return chosen


def left_alone(model: Transformer, chosen: Container[str]) -> str:
    """What is not ``chosen``, for the plan: the names of matrices, the parameters of vectors; empty where all is."""
    roles = parameter_roles(model)
    rest = {name: parameter for name, parameter in model.named_parameters() if name not in chosen}
    matrices = [name for name in rest if roles[name] in (Role.MATRIX, *_OTHER_MATRICES)]
    vectors = sum(parameter.numel() for name, parameter in rest.items() if roles[name] in _VECTORS)
    text = f"; matrices left alone: {', '.join(matrices)}" if matrices else ""
    return text + (f"; {vectors:,} parameters of norms and biases left alone" if vectors else "")
