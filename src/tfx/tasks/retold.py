"""Batches in another tokenizer's tokens, and the spans of text that their targets have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tfx.data.spans import NO_SPAN
from tfx.model.batch import Batch
from tfx.tasks.contract import Retold


def numbered(batch: Batch, other: Batch, own_spans: Sequence[list[int]], other_spans: Sequence[list[int]]) -> Retold:
    """Both batches with the spans of their targets, numbered through from row to row.

    The spans of a row are those of its targets and of what comes after; a span counts if all of its tokens are targets
    in both batches.
    """
    spans_BT = [torch.full(each.target_out_BT.shape, NO_SPAN) for each in (batch, other)]
    count = 0
    for row, spans in enumerate(zip(own_spans, other_spans, strict=True)):
        kept: set[int] | None = None
        for each, one_side in zip((batch, other), spans, strict=True):
            whole = Counter(one_side)
            length = min(len(one_side), int((each.target_out_BT[row] >= 0).sum()))
            inside = {span for span, size in Counter(one_side[:length]).items() if whole[span] == size}
            kept = inside if kept is None else kept & inside
        numbers = {span: count + place for place, span in enumerate(sorted((kept or set()) - {NO_SPAN}))}
        for place_BT, one_side in zip(spans_BT, spans, strict=True):
            length = min(len(one_side), place_BT.shape[1])
            place_BT[row, :length] = torch.tensor([numbers.get(span, NO_SPAN) for span in one_side[:length]])
        count += len(numbers)
    return Retold(other, spans_BT[0], spans_BT[1], count)


def real_rows(target_BT: Tensor) -> list[list[int]]:
    """The ids of each row without padding, which is negative."""
    return [[token for token in row if token >= 0] for row in target_BT.tolist()]
