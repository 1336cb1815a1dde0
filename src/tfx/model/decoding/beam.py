"""Beam search over the outputs of an encoder-decoder.

Shapes: B sentences, K hypotheses of each, N = B K, C children that are looked at, T output positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.model.decoding.decoder import Decoder
from tfx.model.decoding.output import Output, logits_behind
from tfx.model.decoding.rules import Ends, Rules
from tfx.model.decoding.top import best_children

# Steps between two looks at what is done, on a device that the host would have to wait for.
_STEPS_UNSEEN = 8
# Log-probabilities that are computed at once on a CPU: they should stay near the processor.
_AT_ONCE = 1 << 19


def length_penalty(length: int, alpha: float) -> float:
    """((5 + length) / 6)^alpha (Wu 2016, arXiv 1609.08144, equation 14)."""
    return float(((5.0 + length) / 6.0) ** alpha)


def beam_search(
    decoder: Decoder, limits: list[int], ends: Ends, rules: Rules, config: EvaluationConfig, best: int = 1
) -> list[list[Output]]:
    """The ``best`` outputs of each sentence, the best one first.

    Keeps the K most likely prefixes of each sentence; finished ones compete by length-normalised score.
    A sentence is done at its length limit, or when K hypotheses have finished and no live prefix, normalised
    by its current length, scores higher than the worst of them. Done sentences leave the batch.
    """
    found: list[list[Output]] = [[] for _ in limits]
    search = _Search(decoder, list(range(len(limits))), limits, ends, rules, config)
    is_near = decoder.device.type == "cpu"
    unseen = 0
    for step in range(max(limits)):
        done_B = search.step(step, is_near)
        unseen += 1
        left = min(search.limits) - (step + 1)
        if left and not is_near and unseen < _STEPS_UNSEEN:
            continue
        unseen = 0
        done = done_B.tolist()
        done = [is_done or limit <= step + 1 for is_done, limit in zip(done, search.limits, strict=True)]
        if not any(done):
            continue
        for row, number in enumerate(search.numbers):
            if done[row]:
                found[number] = search.outputs(row, step + 1, best)
        if all(done):
            break
        search.keep([row for row, is_done in enumerate(done) if not is_done])
    return found


class _Search:
    """The state of a search: living prefixes and finished hypotheses of the sentences that are not done."""

    def __init__(
        self,
        decoder: Decoder,
        numbers: list[int],
        limits: list[int],
        ends: Ends,
        rules: Rules,
        config: EvaluationConfig,
    ) -> None:
        self.numbers, self.limits = numbers, list(limits)
        self._decoder, self._ends, self._rules = decoder, ends, rules
        self._beam, self._alpha = config.beam, config.length_penalty
        shape = (len(limits), config.beam)
        device = decoder.device
        # The tokens of each living prefix and their log-probabilities; position 0 is the begin token.
        self._tokens_BKT = torch.full((*shape, max(limits) + 1), ends.pad, dtype=torch.long, device=device)
        self._tokens_BKT[:, :, 0] = ends.bos
        # All hypotheses start equal. Only the first may have children, or the beam would hold duplicates.
        self._scores_BK = torch.full(shape, -torch.inf, device=device)
        self._scores_BK[:, 0] = 0.0
        self._ended_BKT = torch.full_like(self._tokens_BKT, ends.pad)
        self._ended_scores_BK = torch.full_like(self._scores_BK, -torch.inf)
        self._done_B = torch.zeros(len(limits), dtype=torch.bool, device=device)
        self._first_B1 = torch.arange(0, len(limits) * config.beam, config.beam, device=device).unsqueeze(1)
        self._last_N = self._tokens_BKT[:, :, 0].flatten()

    def step(self, step: int, is_near: bool) -> Tensor:
        """Appends a token to all living prefixes; returns which sentences are done before their limit."""
        scores_BC, parent_BC, token_BC = self._children(step)
        is_end_BC = token_BC == self._ends.eos
        penalty = length_penalty(step + 1, self._alpha)
        # An end token counts only if it is among the K best children, as in a beam that keeps K children in all.
        counts_BK = is_end_BC[:, : self._beam]
        if not is_near or bool(counts_BK.any()):
            self._finish(scores_BC[:, : self._beam], parent_BC[:, : self._beam], counts_BK, penalty)
        # Living prefixes: the K best children that have not finished.
        self._scores_BK, kept_BK = scores_BC.masked_fill(is_end_BC, -torch.inf).topk(self._beam, dim=1)
        token_BK = token_BC.gather(1, kept_BK)
        parent_N = (parent_BC.gather(1, kept_BK) + self._first_B1).flatten()
        flat_NT = self._tokens_BKT.flatten(0, 1).index_select(0, parent_N)
        self._last_N = token_BK.flatten()
        flat_NT[:, step + 1] = self._last_N
        self._tokens_BKT = flat_NT.view(self._tokens_BKT.shape)
        self._decoder.reorder(parent_N)
        self._done_B = self._done_B | (self._scores_BK[:, 0] / penalty <= self._ended_scores_BK[:, -1])
        return self._done_B

    def _children(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, parents and tokens of the 2K best children: at most K of them can be end tokens."""
        hidden_ND = self._decoder.step(self._last_N)
        sentences = len(self.numbers)
        vocab = self._decoder.model.architecture.vocab_size
        at_once = sentences
        if hidden_ND.device.type == "cpu":
            at_once = max(1, _AT_ONCE // (vocab * self._beam))
        parts = []
        for first in range(0, sentences, at_once):
            last = min(first + at_once, sentences)
            rows = slice(first * self._beam, last * self._beam)
            logits_nV = logits_behind(self._decoder.model, hidden_ND[rows])
            self._rules.apply(
                logits_nV, [step] * len(logits_nV), lambda: self._tokens_BKT.flatten(0, 1)[rows, 1 : step + 1].tolist()
            )
            parts.append(best_children(logits_nV.log_softmax(-1), self._scores_BK[first:last], 2 * self._beam))
        if len(parts) == 1:
            return parts[0]
        scores, parents, tokens = (torch.cat(part) for part in zip(*parts, strict=True))
        return scores, parents, tokens

    def _finish(self, scores_BK: Tensor, parent_BK: Tensor, counts_BK: Tensor, penalty: float) -> None:
        """Lets the children that ended compete with the hypotheses that ended before."""
        # The score is normalised by length, which includes the end token.
        counts_BK = counts_BK & ~self._done_B.unsqueeze(1)
        new_BK = (scores_BK / penalty).masked_fill(~counts_BK, -torch.inf)
        self._ended_scores_BK, chosen_BK = torch.cat([self._ended_scores_BK, new_BK], 1).topk(self._beam, dim=1)
        prefixes = self._tokens_BKT.gather(1, parent_BK.unsqueeze(-1).expand_as(self._tokens_BKT))
        pool = torch.cat([self._ended_BKT, prefixes], 1)
        self._ended_BKT = pool.gather(1, chosen_BK.unsqueeze(-1).expand_as(self._ended_BKT))

    def outputs(self, row: int, length: int, best: int) -> list[Output]:
        """The best outputs of a sentence; where too few have finished, its best prefixes of ``length`` follow."""
        found = []
        for ids, score in zip(
            self._ended_BKT[row, :best].tolist(), self._ended_scores_BK[row, :best].tolist(), strict=True
        ):
            if score > -torch.inf:
                found.append(Output([i for i in ids[1:] if i != self._ends.pad], score))
        living = zip(self._tokens_BKT[row].tolist(), self._scores_BK[row].tolist(), strict=True)
        for ids, score in living:
            if len(found) < best and (score > -torch.inf or not found):
                tokens = [i for i in ids[1:] if i != self._ends.pad]
                found.append(Output(tokens, score / length_penalty(length, self._alpha)))
        return found

    def keep(self, going: list[int]) -> None:
        """Keeps these sentences."""
        order_B = self._decoder.keep(going)
        order = order_B.tolist()
        self.numbers = [self.numbers[row] for row in order]
        self.limits = [self.limits[row] for row in order]
        self._tokens_BKT, self._scores_BK = self._tokens_BKT[order_B], self._scores_BK[order_B]
        self._ended_BKT, self._ended_scores_BK = self._ended_BKT[order_B], self._ended_scores_BK[order_B]
        self._done_B = self._done_B[order_B]
        self._first_B1 = self._first_B1[: len(order)]
        self._last_N = self._last_N.view(-1, self._beam)[order_B].flatten()
