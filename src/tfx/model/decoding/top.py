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
    blocks_NXW, rest_NR = _blocks(logits_NV)
    if blocks_NXW.shape[1] < 2:
        return logits_NV.argmax(-1)
    row_N = torch.arange(len(logits_NV), device=logits_NV.device)
    block_N = blocks_NXW.amax(-1).argmax(-1)
    inside_NW = blocks_NXW[row_N, block_N]
    if not rest_NR.shape[1]:
        return block_N * _WIDTH + inside_NW.argmax(-1)
    place_N = torch.cat([inside_NW, rest_NR], 1).argmax(-1)
    whole = logits_NV.shape[1] - rest_NR.shape[1]
    return torch.where(place_N < _WIDTH, block_N * _WIDTH, whole - _WIDTH) + place_N


def best_children(log_prob_NV: Tensor, score_BK: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best children of all hypotheses of each sentence, the best one first.

    A child's score is that of its hypothesis plus the log-probability of its token. Returns scores, hypotheses and
    tokens, (B, C) each; C is below ``count`` if there are no more children.
    """
    sentences, beam = score_BK.shape
    vocab = log_prob_NV.shape[1]
    blocks_NXW, rest_NR = _blocks(log_prob_NV)
    blocks = blocks_NXW.shape[1]
    if blocks * beam < 2 * count:
        all_BY = (log_prob_NV.view(sentences, beam, vocab) + score_BK.unsqueeze(-1)).view(sentences, -1)
        found, child_BC = all_BY.topk(min(count, all_BY.shape[1]))
        return found, child_BC // vocab, child_BC % vocab
    # Adding the score keeps the order, so the best of a block is the largest log-probability in it.
    best_BKX = blocks_NXW.amax(-1).view(sentences, beam, blocks) + score_BK.unsqueeze(-1)
    chosen_BC = best_BKX.view(sentences, -1).topk(count, sorted=False).indices
    parent_BC, block_BC = chosen_BC // blocks, chosen_BC % blocks
    row_BC = parent_BC + torch.arange(0, sentences * beam, beam, device=score_BK.device).unsqueeze(1)
    inside_BCW = blocks_NXW[row_BC, block_BC] + score_BK.gather(1, parent_BC).unsqueeze(-1)
    candidates = inside_BCW.view(sentences, -1)
    rest = rest_NR.shape[1]
    if rest:
        others_BKR = rest_NR.view(sentences, beam, rest) + score_BK.unsqueeze(-1)
        candidates = torch.cat([candidates, others_BKR.view(sentences, -1)], 1)
    found, place_BC = candidates.topk(count)
    if not rest:
        chosen_BC = place_BC // _WIDTH
        token_BC = block_BC.gather(1, chosen_BC) * _WIDTH + place_BC % _WIDTH
        return found, parent_BC.gather(1, chosen_BC), token_BC
    in_block = place_BC < count * _WIDTH
    chosen_BC = (place_BC // _WIDTH).clamp(max=count - 1)
    other_BC = place_BC - count * _WIDTH
    parent_BC = torch.where(in_block, parent_BC.gather(1, chosen_BC), other_BC // rest)
    token_BC = torch.where(
        in_block, block_BC.gather(1, chosen_BC) * _WIDTH + place_BC % _WIDTH, vocab - rest + other_BC % rest
    )
    return found, parent_BC, token_BC


def _blocks(rows_NV: Tensor) -> tuple[Tensor, Tensor]:
    """The rows as blocks (N, X, W), and what is left behind the last whole one."""
    blocks = rows_NV.shape[1] // _WIDTH
    whole = blocks * _WIDTH
    return rows_NV[:, :whole].unflatten(1, (blocks, _WIDTH)), rows_NV[:, whole:]
