"""What a student's layers learn from a teacher's: hidden states and attention by a layer map, and relations.

Shapes: B rows, L positions, D student width, E teacher width, H heads, K head width, R relation heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tfx.errors import UserError
from tfx.model.architecture import Architecture, BlockShape
from tfx.model.batch import Batch
from tfx.model.layers import BlockStack
from tfx.model.transformer import States, Transformer, seen_targets
from tfx.techniques.distill.settings import DistillSettings

# Which vectors of a layer a relation compares, by their places among queries, keys and values.
_VECTORS = ("query", "key", "value")
# The score of a key that is not seen: finite, so that 0 times it is 0.
_UNSEEN = -1e30


def layer_map(kind: str, ours: int, theirs: int) -> list[tuple[int, int]]:
    """Which layer of the student learns from which of the teacher, both from 1 on, given how many each has.

    ``uniform`` is m -> ceil(m N / M), which for N a multiple of M is the uniform map of Jiao 2020, section 4.
    """
    if kind == "last":
        return [(ours, theirs)] if ours and theirs else []
    maps = {
        "uniform": [-(-layer * theirs // ours) for layer in range(1, ours + 1)],
        "top": list(range(theirs - ours + 1, theirs + 1)),
        "bottom": list(range(1, ours + 1)),
    }
    return list(zip(range(1, ours + 1), maps[kind], strict=True))


def check_matching(settings: DistillSettings, ours: Architecture, theirs: Architecture) -> None:
    """Raises `UserError` if the layers of a student cannot be compared with those of a teacher as is set."""
    for name, own, other in _shapes(ours, theirs):
        if settings.layer_map in ("top", "bottom") and len(other) < len(own):
            raise UserError(
                f"technique.distill.layer_map={settings.layer_map} needs a teacher with the student's {len(own)} "
                f"{name} layers or more, and it has {len(other)}: set technique.distill.layer_map=uniform"
            )
        for mine, taught in layer_map(settings.layer_map, len(own), len(other)) if settings.attention else ():
            if own[mine - 1].heads != other[taught - 1].heads:
                raise UserError(
                    f"technique.distill.attention compares head with head, and the student's {name} layer {mine} has "
                    f"{own[mine - 1].heads}, the teacher's layer {taught} {other[taught - 1].heads}: use "
                    "technique.distill.relations, which regroups them"
                )
        if settings.relations:
            _check_relations(settings, name, (own, ours.head_width), (other, theirs.head_width))


def _check_relations(
    settings: DistillSettings,
    name: str,
    ours: tuple[tuple[BlockShape, ...], int],
    theirs: tuple[tuple[BlockShape, ...], int],
) -> None:
    layer, heads = relation_layer(settings, theirs[0]), relation_heads(settings, theirs[0])
    if layer > len(theirs[0]):
        raise UserError(
            f"technique.distill.relation_layer={layer}: the teacher has {len(theirs[0])} {name} layers, so name one of "
            "them"
        )
    for whose, shape, head_width in (
        ("student", ours[0][-1], ours[1]),
        ("teacher", theirs[0][layer - 1], theirs[1]),
    ):
        if (width := shape.heads * head_width) % heads:
            raise UserError(
                f"technique.distill.relation_heads: the heads of the {whose}'s {name} layer are {width} wide together, "
                f"which {heads} relation heads do not divide: set technique.distill.relation_heads to one that does"
            )


def _shapes(
    ours: Architecture, theirs: Architecture
) -> Iterator[tuple[str, tuple[BlockShape, ...], tuple[BlockShape, ...]]]:
    """The stacks that both have, layer by layer."""
    for name, own, other in (("encoder", ours.encoder, theirs.encoder), ("decoder", ours.decoder, theirs.decoder)):
        if own and other:
            yield name, ours.passes * own, theirs.passes * other


def relation_layer(settings: DistillSettings, shapes: Sequence[BlockShape]) -> int:
    """The teacher's layer, from 1, whose relations are taught."""
    return settings.relation_layer or len(shapes)


def relation_heads(settings: DistillSettings, shapes: Sequence[BlockShape]) -> int:
    """How many heads the vectors are regrouped into."""
    layer = min(relation_layer(settings, shapes), len(shapes))
    return settings.relation_heads or shapes[layer - 1].heads


class Errors(NamedTuple):
    """Means over positions and layers; None where the settings ask for none. ``flops`` is what they cost."""

    hidden: Tensor | None
    attention: Tensor | None
    relations: Tensor | None
    flops: float


@dataclass(frozen=True)
class _Side:
    """A stack in student and teacher, with the states of both and how much each position (B, L) counts."""

    name: str
    stacks: tuple[BlockStack, BlockStack]
    states: tuple[list[Tensor], list[Tensor]]
    weight_BL: Tensor
    seen_BLL: Tensor


class Matcher(nn.Module):
    """Compares the layers of a student with those of one teacher; the projections are trained with the student."""

    def __init__(self, settings: DistillSettings, student: Transformer, teacher: Transformer) -> None:
        super().__init__()
        self._settings = settings
        # Not as parts of this module: neither is trained or saved with it.
        self._models = (student, teacher)
        widths = student.architecture.width, teacher.architecture.width
        names = ["last"]
        if settings.layer_map != "last":
            names = [name for name, *_ in _shapes(student.architecture, teacher.architecture)]
        # An orthogonal start keeps the student's geometry.
        self.projections = nn.ModuleDict()
        for name in names if settings.hidden else ():
            projection = nn.Linear(*widths, bias=False)
            nn.init.orthogonal_(projection.weight)
            self.projections[name] = projection

    def last_error(self, hidden_ND: Tensor, hidden_NE: Tensor, weight_N: Tensor) -> Tensor:
        """The sum over positions of the mean squared error of the last hidden states."""
        return _squared_error(self.projections["last"](hidden_ND.float()), hidden_NE.float(), weight_N)

    def errors(
        self,
        states: States,
        taught: States,
        batch: Batch,
        weight_BT: Tensor,
    ) -> Errors:
        """The errors between the states of a batch in the student and in the teacher.

        ``weight`` says how much each target position counts; source positions count where the mask is True.
        """
        settings = self._settings
        sides = list(self._sides(states, taught, batch, weight_BT))
        flops = 0.0
        hidden: list[Tensor] = []
        scores: list[Tensor] = []
        relations: list[Tensor] = []
        for side in sides:
            pairs = layer_map(settings.layer_map, *(len(stack.layers) for stack in side.stacks))
            if settings.hidden and settings.layer_map != "last":
                for mine, theirs in [(0, 0), *pairs]:
                    hidden.append(self._hidden_error(side, mine, theirs))
            for mine, theirs in pairs if settings.attention else ():
                scores.append(self._attention_error(side, mine, theirs))
                flops += self._flops(side, mine, theirs, 1)
            if settings.relations:
                own, theirs = len(side.stacks[0].layers), self._relation_layer(side)
                relations.append(self._relation_error(side, own, theirs))
                flops += self._flops(side, own, theirs, len(settings.relation_pairs))
        means = [torch.stack(found).mean() if found else None for found in (hidden, scores, relations)]
        return Errors(means[0], means[1], means[2], flops)

    def _sides(self, states: States, taught: States, batch: Batch, weight_BT: Tensor) -> Iterator[_Side]:
        source_mask_BS = batch.source_mask_BS
        for name, own, other in zip(States._fields, states, taught, strict=True):
            if len(own) < 2 or len(other) < 2:  # no blocks
                continue
            stacks = tuple(getattr(model, name) for model in self._models)
            rows, length = own[0].shape[:2]
            seen_LL = torch.ones(length, length, dtype=torch.bool, device=own[0].device)
            if name == "decoder":
                weight_BL, seen_BLL = weight_BT, seen_targets(batch).expand(rows, -1, -1)
            elif source_mask_BS is None:
                weight_BL, seen_BLL = own[0].new_ones(rows, length), seen_LL.expand(rows, -1, -1)
            else:
                weight_BL, seen_BLL = source_mask_BS.float(), source_mask_BS.unsqueeze(1) & seen_LL
            yield _Side(name, (stacks[0], stacks[1]), (own, other), weight_BL.float(), seen_BLL)

    def _hidden_error(self, side: _Side, mine: int, theirs: int) -> Tensor:
        """Of what leaves a layer (0: of the embeddings), through the norm at the end of each stack."""
        own_BLD, other_BLE = (
            stack.norm(states[layer].float())
            for stack, states, layer in zip(side.stacks, side.states, (mine, theirs), strict=True)
        )
        projected_BLE = self.projections[side.name](own_BLD)
        return _squared_error(projected_BLE, other_BLE, side.weight_BL) / side.weight_BL.sum().clamp(min=1e-9)

    def _vectors(self, side: _Side, place: int, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, L, K) of a layer of the student (place 0) or of the teacher (1)."""
        states = side.states[place][layer - 1].float()
        return self._models[place].projections(side.stacks[place], layer - 1, states)

    def _attention_error(self, side: _Side, mine: int, theirs: int) -> Tensor:
        scores_BHLL = []
        for place, layer in enumerate((mine, theirs)):
            q_BHLK, k_BHLK, _ = self._vectors(side, place, layer)
            scores_BHLL.append(_scores(q_BHLK, k_BHLK))
        gap_BLL = (scores_BHLL[0] - scores_BHLL[1]).square().mean(1) * side.seen_BLL
        error_BL = gap_BLL.sum(2) / side.seen_BLL.sum(2).clamp(min=1)
        return _mean(error_BL, side.weight_BL)

    def _relation_layer(self, side: _Side) -> int:
        return self._settings.relation_layer or len(side.stacks[1].layers)

    def _relation_error(self, side: _Side, mine: int, theirs: int) -> Tensor:
        own, other = self._vectors(side, 0, mine), self._vectors(side, 1, theirs)
        heads = self._settings.relation_heads or other[0].shape[1]
        found = []
        for pair in self._settings.relation_pairs:
            one, two = (_VECTORS.index(vector) for vector in pair.split("-"))
            log_q, log_p = (relation(vectors[one], vectors[two], heads, side.seen_BLL) for vectors in (own, other))
            kl_BL = (log_p.exp() * (log_p - log_q)).sum(3).mean(1)
            found.append(_mean(kl_BL, side.weight_BL))
        return torch.stack(found).mean()

    def _flops(self, side: _Side, mine: int, theirs: int, products: int) -> float:
        """Of the projections of a layer in both models, and of products of them; the student's have a gradient."""
        rows, length = side.weight_BL.shape
        total = 0.0
        for place, (layer, times) in enumerate(((mine, 3.0), (theirs, 1.0))):
            attention = side.stacks[place].layers[layer - 1].attention
            heads, width = attention.heads * attention.head_width, side.states[place][0].shape[2]
            shared = attention.kv_heads * attention.head_width
            total += times * 2.0 * rows * length * (width * (heads + 2 * shared) + products * length * heads)
        return total


def relation(a_BHLK: Tensor, b_BHLK: Tensor, heads: int, seen_BLL: Tensor) -> Tensor:
    """Logs of the scaled dot-product relations (B, R, L, L) of two kinds of vectors, regrouped into other heads.

    Wang 2021, arXiv 2012.15828, equations 5 and 6: the vectors of all heads stand side by side, and are cut into as
    many pieces as there are relation heads. A query relates to the keys that attention lets it see.
    """
    a, b = (_regrouped(vectors, heads) for vectors in (a_BHLK, b_BHLK))
    return _scores(a, b).masked_fill(~seen_BLL.unsqueeze(1), _UNSEEN).log_softmax(3)


def _regrouped(vectors_BHLK: Tensor, heads: int) -> Tensor:
    joined_BLX = vectors_BHLK.transpose(1, 2).flatten(2)
    return joined_BLX.unflatten(2, (heads, -1)).transpose(1, 2)


def _scores(a_BHLK: Tensor, b_BHLK: Tensor) -> Tensor:
    return a_BHLK @ b_BHLK.transpose(2, 3) / math.sqrt(a_BHLK.shape[3])


def _squared_error(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The sum over positions of the mean over the width."""
    return ((a - b).square().mean(-1) * weight).sum()


def _mean(values_BL: Tensor, weight_BL: Tensor) -> Tensor:
    return (values_BL * weight_BL).sum() / weight_BL.sum().clamp(min=1e-9)
