"""The largest entries of wide rows, found through the largest of each block; torch's own search is far slower.

Shapes: N rows, V vocabulary, B sentences, K hypotheses of each, N = B K, W width of a block, X blocks, C results.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A power of two near the square root of half of a usual vocabulary: as many blocks to choose from as entries in those
# that are chosen, for two results of each row.
_WIDTH = 64


def best_tokens(logits_NV: Tensor) -> Tensor:
    """The index (N,) of the largest entry of each row."""
    rows, vocab = logits_NV.shape
    if vocab < 2 * _WIDTH:
        return logits_NV.argmax(-1)
    block_N = block_maxima(logits_NV).argmax(-1)
    start_N = (block_N * _WIDTH).clamp_(max=vocab - _WIDTH)
    row_N = torch.arange(0, rows * vocab, vocab, device=logits_NV.device)
    return start_N + _windows(logits_NV, start_N + row_N).argmax(-1)


def block_maxima(rows_NV: Tensor) -> Tensor:
    """The largest entry of each block of W entries, (N, X). The last block may be shorter."""
    rows, vocab = rows_NV.shape
    rest = vocab % _WIDTH
    if not rest:
        return rows_NV.view(rows, -1, _WIDTH).amax(-1)
    whole = rows_NV[:, : vocab - rest].unflatten(1, (vocab // _WIDTH, _WIDTH)).amax(-1)
    return torch.cat([whole, rows_NV[:, vocab - rest :].amax(-1, keepdim=True)], 1)


def best_children(
    log_prob_NV: Tensor, score_BK: Tensor, count: int, maxima_NX: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best children of all hypotheses of each sentence, the best one first.

    A child's score is that of its hypothesis plus the log-probability of its token. ``maxima`` are the `block_maxima`,
    where they are known. Returns scores, hypotheses and tokens, (B, C) each; C is below ``count`` if there are no more
    children.
    """
    sentences, beam = score_BK.shape
    vocab = log_prob_NV.shape[1]
    blocks = -(-vocab // _WIDTH)
    score_BK1 = score_BK.unsqueeze(-1)
    if blocks * beam < 2 * count or vocab < _WIDTH:
        all_BY = (log_prob_NV.view(sentences, beam, vocab) + score_BK1).view(sentences, -1)
        found, child_BC = all_BY.topk(min(count, all_BY.shape[1]))
        return found, child_BC // vocab, child_BC % vocab
    # Adding the score keeps the order, so the best of a block is the largest log-probability in it.
    maxima_NX = block_maxima(log_prob_NV) if maxima_NX is None else maxima_NX
    best_BY = (maxima_NX.view(sentences, beam, blocks) + score_BK1).view(sentences, -1)
    chosen_BC = best_BY.topk(count, sorted=False)[1]
    parent_BC = chosen_BC // blocks
    first_BC = (chosen_BC - parent_BC * blocks) * _WIDTH
    # The last block is read from where it has W entries; those of the block before it do not count twice.
    start_BC = first_BC.clamp(max=vocab - _WIDTH) if vocab % _WIDTH else first_BC
    row_BC = parent_BC
    if sentences > 1:
        row_BC = parent_BC + torch.arange(0, sentences * beam, beam, device=score_BK.device).unsqueeze(1)
    inside_BCW = _windows(log_prob_NV, (row_BC * vocab + start_BC).flatten()).view(sentences, count, _WIDTH)
    inside_BCW = inside_BCW + score_BK.gather(1, parent_BC).unsqueeze(-1)
    if vocab % _WIDTH:
        lane_W = torch.arange(_WIDTH, device=score_BK.device)
        inside_BCW.masked_fill_(lane_W < (first_BC - start_BC).unsqueeze(-1), -torch.inf)
    found, place_BC = inside_BCW.view(sentences, -1).topk(count)
    window_BC = place_BC // _WIDTH
    token_BC = (start_BC - torch.arange(0, count * _WIDTH, _WIDTH, device=score_BK.device)).gather(1, window_BC)
    return found, parent_BC.gather(1, window_BC), token_BC + place_BC


def _windows(rows_NV: Tensor, starts: Tensor) -> Tensor:
    """The W entries from each of these places on, of all rows one behind the other."""
    entries = rows_NV.numel()
    return rows_NV.contiguous().as_strided((entries - _WIDTH + 1, _WIDTH), (1, 1)).index_select(0, starts)
