"""Beam search over the outputs of an encoder-decoder.

Shapes: B sentences, K hypotheses of each, N = B K, C children that are looked at, T output positions, V vocabulary.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.model.decoding.decoder import Decoder
from tfx.model.decoding.output import Output, length_penalty
from tfx.model.decoding.rules import Ends, Rules
from tfx.model.decoding.top import best_children, block_maxima

# Steps between two looks at what is done, on a device that the host would have to wait for.
_STEPS_UNSEEN = 8
# Log-probabilities that are computed at once on a CPU: they should stay near the processor.
_AT_ONCE = 1 << 18


def beam_search(
    decoder: Decoder,
    limits: list[int],
    ends: Ends,
    rules: Rules,
    config: EvaluationConfig,
    best: int = 1,
    *,
    detailed: bool = False,
) -> list[list[Output]]:
    """The ``best`` outputs of each sentence, the best one first; ``detailed``: with log-probabilities.

    Keeps the K most likely prefixes of each sentence; finished ones compete by length-normalised score.
    A sentence is done at its length limit, or when K hypotheses have finished and no live prefix, normalised
    by its current length, scores higher than the worst of them. Done sentences leave the batch.
    """
    found: list[list[Output]] = [[] for _ in limits]
    search = _Search(decoder, limits, ends, rules, config, detailed=detailed)
    is_near = decoder.is_near or rules.reads_texts
    unseen = 0
    for step in range(max(limits)):
        search.step(step, is_near)
        unseen += 1
        left = min(search.limits) - (step + 1)
        if left and not is_near and unseen < _STEPS_UNSEEN:
            continue
        unseen = 0
        done = search.done(step + 1)
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
        limits: list[int],
        ends: Ends,
        rules: Rules,
        config: EvaluationConfig,
        *,
        detailed: bool,
    ) -> None:
        self.numbers, self.limits = list(range(len(limits))), list(limits)
        self._decoder, self._ends, self._rules = decoder, ends, rules
        self._beam, self._alpha = config.beam, config.length_penalty
        shape, device = (len(limits), config.beam), decoder.device
        # All hypotheses start equal. Only the first may have children, or the beam would hold duplicates.
        self._scores_BK = torch.full(shape, -torch.inf, device=device)
        self._scores_BK[:, 0] = 0.0
        # The tokens of living prefixes, (B, K, T), and if they are asked for the scores after each; position 0 is the
        # begin token. Then the same of finished hypotheses.
        long = (*shape, max(limits) + 1)
        self._living = [torch.full(long, ends.eos, dtype=torch.long, device=device)]
        if detailed:
            self._living.append(torch.zeros(long, device=device))
        self._ended = [part.clone() for part in self._living]
        self._ended_scores_BK = torch.full(shape, -torch.inf, device=device)
        self._has_ended = False
        # Log-probabilities of a step, where they are computed in parts: memory that is taken once.
        self._room_NV: Tensor | None = None
        self._done_B = torch.zeros(len(limits), dtype=torch.bool, device=device)
        self._first_B1 = torch.arange(0, len(limits) * config.beam, config.beam, device=device).unsqueeze(1)
        self._last_N = torch.full((len(limits) * config.beam,), ends.bos, device=device)

    def step(self, step: int, is_near: bool) -> None:
        """Appends a token to all living prefixes. Where the host ``is_near``, what does not happen is left out."""
        scores_BC, parent_BC, token_BC = self._children(step)
        is_end_BC = token_BC == self._ends.eos
        beam = self._beam
        if is_near and not bool(is_end_BC.any()):
            self._scores_BK, parent_BK, token_BK = scores_BC[:, :beam], parent_BC[:, :beam], token_BC[:, :beam]
        else:
            self._finish(scores_BC[:, :beam], parent_BC[:, :beam], is_end_BC[:, :beam], step + 1)
            # Living prefixes: the K best children that have not finished.
            self._scores_BK, kept_BK = scores_BC.masked_fill(is_end_BC, -torch.inf).topk(beam, dim=1)
            token_BK, parent_BK = token_BC.gather(1, kept_BK), parent_BC.gather(1, kept_BK)
        parent_N = (parent_BK + self._first_B1).flatten()
        self._last_N = token_BK.flatten()
        for index, new_BK in enumerate((token_BK, self._scores_BK)[: len(self._living)]):
            part_BKT = self._living[index]
            part_BKT = part_BKT.flatten(0, 1).index_select(0, parent_N).view(part_BKT.shape)
            part_BKT[:, :, step + 1] = new_BK
            self._living[index] = part_BKT
        self._decoder.reorder(parent_N)
        if not is_near:
            self._see_done(step + 1)

    def _see_done(self, length: int) -> None:
        """Notes where K hypotheses have finished and no living prefix scores higher than the worst of them."""
        best_B = self._scores_BK[:, 0] / length_penalty(length, self._alpha)
        self._done_B = self._done_B | (best_B <= self._ended_scores_BK[:, -1])

    def done(self, length: int) -> list[bool]:
        """Which sentences are done."""
        if self._has_ended:
            self._see_done(length)
            done = self._done_B.tolist()
        else:
            done = [False] * len(self.limits)
        return [is_done or limit <= length for is_done, limit in zip(done, self.limits, strict=True)]

    def _children(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, parents and tokens of the 2K best children: at most K of them can be end tokens."""
        decoder, beam = self._decoder, self._beam
        hidden_ND = decoder.step(self._last_N)
        tokens_NT = self._living[0].flatten(0, 1)[:, 1 : step + 1]
        rows, vocab = len(hidden_ND), decoder.model.architecture.vocab_size
        at_once = max(1, _AT_ONCE // vocab) if decoder.is_near else rows
        numbers = [number for number in self.numbers for _ in range(beam)]
        if rows <= at_once:
            log_prob_NV = self._log_probs(hidden_ND, step, tokens_NT, numbers)
            return best_children(log_prob_NV, self._scores_BK, 2 * beam)
        if self._room_NV is None:
            self._room_NV = hidden_ND.new_empty(rows, vocab, dtype=torch.float32)
        log_prob_NV = self._room_NV[:rows]
        maxima = []
        for first in range(0, rows, at_once):
            part = slice(first, first + at_once)
            log_prob_nV = self._log_probs(hidden_ND[part], step, tokens_NT[part], numbers[part], log_prob_NV[part])
            maxima.append(block_maxima(log_prob_nV))
        return best_children(log_prob_NV, self._scores_BK, 2 * beam, torch.cat(maxima))

    def _log_probs(
        self, hidden_ND: Tensor, step: int, tokens_NT: Tensor, numbers: list[int], out: Tensor | None = None
    ) -> Tensor:
        """Log-probabilities (N, V) of the next token, under the rules."""
        logits_NV = self._decoder.logits(hidden_ND)
        self._rules.apply(logits_NV, step, tokens_NT, numbers)
        return torch.log_softmax(logits_NV, -1, out=out)

    def _finish(self, scores_BK: Tensor, parent_BK: Tensor, is_end_BK: Tensor, length: int) -> None:
        """Lets the children that ended compete with the hypotheses that ended before.

        An end token counts only if it is among the K best children, as in a beam that keeps K children in all. Scores
        are normalised by ``length``, which includes the end token.
        """
        self._has_ended = True
        counts_BK = is_end_BK & ~self._done_B.unsqueeze(1)
        new_BK = (scores_BK / length_penalty(length, self._alpha)).masked_fill(~counts_BK, -torch.inf)
        self._ended_scores_BK, chosen_BK = torch.cat([self._ended_scores_BK, new_BK], 1).topk(self._beam, dim=1)
        for index, (living_BKT, ended_BKT) in enumerate(zip(self._living, self._ended, strict=True)):
            prefixes_BKT = living_BKT.gather(1, parent_BK.unsqueeze(-1).expand_as(living_BKT))
            # Behind a prefix stands the end token, and the score with it.
            prefixes_BKT[:, :, length] = scores_BK if index else self._ends.eos
            pool = torch.cat([ended_BKT, prefixes_BKT], 1)
            self._ended[index] = pool.gather(1, chosen_BK.unsqueeze(-1).expand_as(ended_BKT))

    def outputs(self, row: int, length: int, best: int) -> list[Output]:
        """The best outputs of a sentence; where too few have finished, its best prefixes of ``length`` follow."""
        found = []
        scores = self._ended_scores_BK[row, :best].tolist()
        parts = [part[row, :best].tolist() for part in self._ended]
        for place, score in enumerate(scores):
            if score > -torch.inf:
                ids = parts[0][place]
                found.append(self._output([part[place] for part in parts], ids.index(self._ends.eos, 1), score))
        if len(found) == best:
            return found
        parts = [part[row].tolist() for part in self._living]
        for place, score in enumerate(self._scores_BK[row].tolist()):
            if len(found) < best and (score > -torch.inf or not found):
                score /= length_penalty(length, self._alpha)
                found.append(self._output([part[place] for part in parts], length, score))
        return found

    def _output(self, parts: list[list[Any]], length: int, score: float) -> Output:
        """The output of tokens and scores up to ``length``, where its end token may stand."""
        ids = parts[0][1 : length + 1]
        shown = [place for place, token in enumerate(ids) if token not in (self._ends.eos, self._ends.pad)]
        if len(parts) == 1:
            return Output([ids[place] for place in shown])
        log_probs = [after - before for before, after in pairwise(parts[1][: length + 1])]
        if ids[-1] == self._ends.eos:
            shown_probs = [*(log_probs[place] for place in shown), log_probs[-1]]
        else:
            shown_probs = [log_probs[place] for place in shown]
        return Output([ids[place] for place in shown], score, shown_probs)

    def keep(self, going: list[int]) -> None:
        """Keeps these sentences."""
        order_B = self._decoder.keep(going)
        order = order_B.tolist()
        self.numbers = [self.numbers[row] for row in order]
        self.limits = [self.limits[row] for row in order]
        self._living = [part[order_B] for part in self._living]
        self._ended = [part[order_B] for part in self._ended]
        self._scores_BK, self._ended_scores_BK = self._scores_BK[order_B], self._ended_scores_BK[order_B]
        self._done_B = self._done_B[order_B]
        self._first_B1 = self._first_B1[: len(order)]
        self._last_N = self._last_N.view(-1, self._beam)[order_B].flatten()
