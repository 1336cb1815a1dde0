"""The inputs of a classifier in another tokenizer's tokens: its labels need no common ones with a teacher.

Shapes: B rows, S source positions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.model.batch import Batch, Mix
from tfx.tasks.texts import Texts, collate_texts, cut


def reread(batch: Batch, own: Tokenizer, other: Tokenizer, context: int, texts: Texts) -> Batch:
    """The batch in the tokens of ``other``, cut to a ``context``; mixed examples are mixed in the same way.

    ``texts`` is any split of the task.
    """
    assert batch.source_BS is not None
    sides = [_spelt(batch.source_BS, batch.types_BS, own)]
    if batch.mix is not None:
        assert batch.mix.source is not None
        sides.append(_spelt(batch.mix.source.partner_BL, batch.mix.source.partner_types_BL, own))
    first, second = ([text for side in sides for text in side[place]] for place in range(2))
    found = replace(
        texts,
        first=Ragged.from_lists(other.encode(first), np.int64),
        second=Ragged.from_lists(other.encode(second), np.int64) if batch.types_BS is not None else None,
        truth=None,
        counts=None,
        owner=None,
        dataset=None,
    )
    rows = len(batch.rows)
    told = collate_texts(cut(found, context), np.arange(len(first)), other)
    device = batch.source_BS.device
    source, types = told.source_BS, told.types_BS
    assert source is not None
    real = source.new_ones(source.shape).bool() if told.source_mask_BS is None else told.source_mask_BS
    mixed: Mix | None = None
    mask = real[:rows]
    if batch.mix is not None and batch.mix.source is not None:
        blend = replace(
            batch.mix.source,
            real_BL=mask.to(device),
            partner_BL=source[rows:].to(device),
            partner_real_BL=real[rows:].to(device),
            partner_types_BL=None if types is None else types[rows:].to(device),
        )
        mixed, mask = replace(batch.mix, source=blend), mask | real[rows:]
    return replace(
        batch,
        source_BS=source[:rows].to(device),
        source_mask_BS=mask.to(device),
        types_BS=None if types is None else types[:rows].to(device),
        special=told.special,
        mix=mixed,
    )


def _spelt(tokens_BS: Tensor, types_BS: Tensor | None, tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The first and the second text of each row; the second is empty where there are no pairs."""
    rows = tokens_BS.tolist()
    if types_BS is None:
        return [tokenizer.decode(row) for row in rows], [""] * len(rows)
    kinds = types_BS.tolist()
    both = [
        [tokenizer.decode([i for i, kind in zip(row, own, strict=True) if kind == side]) for side in (0, 1)]
        for row, own in zip(rows, kinds, strict=True)
    ]
    return [pair[0] for pair in both], [pair[1] for pair in both]
