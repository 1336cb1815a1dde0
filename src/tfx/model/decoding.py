"""Decoding with a key/value cache: greedy, sampling, beam search.

Shapes: B sentences, K hypotheses per sentence, S source positions, T output positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tfx.config.schema import EvaluationConfig
from tfx.errors import UserError
from tfx.model.device import running_sums
from tfx.model.layers import BlockCache
from tfx.model.transformer import Transformer
from tfx.record.seeds import derive_seed


@dataclass(frozen=True)
class Ends:
    """Ids of the tokens that frame an output."""

    bos: int
    eos: int
    pad: int


Picker = Callable[[Tensor, list[int]], Tensor]
"""Chooses the next token (B,) from logits (B, V); the list gives the number of each row's input in the batch."""


def output_limit(source_length: int, config: EvaluationConfig, context: int) -> int:
    """The longest output, in tokens, for a source of ``source_length`` tokens."""
    return max(1, min(context - 1, int(config.max_length_ratio * source_length + 10)))


@torch.inference_mode()
def translate(
    model: Transformer,
    source_BS: Tensor,
    source_mask_BS: Tensor | None,
    limits_B: Tensor,
    ends: Ends,
    config: EvaluationConfig,
    seed: int = 0,
    streams: Sequence[int] | None = None,
) -> list[list[int]]:
    """Outputs of an encoder-decoder for a batch of sources, without begin and end tokens.

    ``limits`` holds the longest output of each. Only sampling uses ``seed`` and ``streams`` (`make_picker`).
    """
    memory_BSD = model.encode(source_BS, source_mask_BS)
    if config.method in ("beam", "auto") and config.beam > 1:
        return _beam_search(model, memory_BSD, source_mask_BS, limits_B, ends, config)
    pick = make_picker(config, seed, source_BS.device, streams or range(len(source_BS)))
    return _step_by_step(model, memory_BSD, source_mask_BS, limits_B, ends, pick)


@torch.inference_mode()
def continue_text(model: Transformer, prompt: list[int], new_tokens: int, eos: int, pick: Picker) -> list[int]:
    """Tokens that a language model adds after a non-empty ``prompt``: up to the end token, or ``new_tokens`` of them.

    When the context is full, the model reads its later half again and continues from there.
    """
    device = model.embedding.weight.device
    context = model.architecture.context
    tokens, added = list(prompt), 0
    caches = model.new_caches()
    pending = tokens[-context:]
    while added < new_tokens:
        if caches[0].own.length + len(pending) > context:
            caches, pending = model.new_caches(), tokens[-(context // 2) :]
        hidden = model.decode(torch.tensor([pending], device=device), caches=caches)
        token = int(pick(model.project(hidden[:, -1]), [0]))
        if token == eos:
            break
        tokens.append(token)
        pending, added = [token], added + 1
    return tokens[len(prompt) :]


def make_picker(config: EvaluationConfig, seed: int, device: torch.device, streams: Sequence[int] = (0,)) -> Picker:
    """Greedy choice, or sampling with temperature, top-k (Fan 2018) and top-p (Holtzman 2020).

    Each input has its own random stream, keyed by the seed and by the input's entry in ``streams``. So its sample
    does not depend on the rest of the batch, and no stream is a shifted copy of another. Sampling raises
    `UserError` if the model's outputs are not finite.
    """
    if config.method != "sample":
        return lambda logits, rows: logits.argmax(-1)
    generators = [torch.Generator(device).manual_seed(derive_seed(seed, "sample", stream)) for stream in streams]

    def pick(logits: Tensor, rows: list[int]) -> Tensor:
        probabilities = sampling_distribution(logits.float(), config.temperature, config.top_k, config.top_p)
        if not bool(probabilities.isfinite().all()):
            raise UserError("the model's outputs are not finite: its training diverged, or its file has been altered")
        # Of exponential waiting times with the probabilities as rates, the shortest one is a draw from them.
        times = torch.empty_like(probabilities)
        for row, time in zip(rows, times, strict=True):
            time.exponential_(generator=generators[row])
        return (probabilities / times.clamp_(min=1e-30)).argmax(-1)

    return pick


def sampling_distribution(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities (..., V) after temperature, then top-k, then top-p; the most likely token always stays."""
    # Shift the largest logit to 0 first, or a small temperature would overflow.
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        # By index, not by value, so that ties leave no more than k tokens.
        top = logits.topk(top_k, dim=-1)
        logits = torch.full_like(logits, -torch.inf).scatter(-1, top.indices, top.values)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True)
        before = running_sums(ranked, -1) - ranked
        ranked = ranked.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ranked)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def _step_by_step(
    model: Transformer,
    memory_BSD: Tensor,
    source_mask_BS: Tensor | None,
    limits_B: Tensor,
    ends: Ends,
    pick: Picker,
) -> list[list[int]]:
    """One hypothesis per sentence; finished sentences leave the batch."""
    outputs: list[list[int]] = [[] for _ in range(memory_BSD.shape[0])]
    alive = torch.arange(memory_BSD.shape[0], device=memory_BSD.device)
    token_B = torch.full_like(alive, ends.bos)
    caches = model.new_caches()
    step = 0
    while alive.numel():
        hidden = model.decode(token_B.unsqueeze(1), memory_BSD, source_mask_BS, caches)
        token_B = pick(model.project(hidden[:, 0]), alive.tolist())
        step += 1
        for row, token in zip(alive.tolist(), token_B.tolist(), strict=True):
            if token != ends.eos:
                outputs[row].append(token)
        goes_on = (token_B != ends.eos) & (step < limits_B[alive])
        if not bool(goes_on.all()):
            kept = goes_on.nonzero().squeeze(1)
            alive, token_B, memory_BSD = alive[kept], token_B[kept], memory_BSD[kept]
            source_mask_BS = source_mask_BS[kept] if source_mask_BS is not None else None
            _select(caches, kept, kept)
    return outputs


def _select(caches: list[BlockCache], rows: Tensor, sentences: Tensor | None) -> None:
    for cache in caches:
        cache.own.select(rows)
        if sentences is not None:
            cache.cross.select(sentences)


def _length_penalty(length: Tensor | int, alpha: float) -> Tensor:
    """((5 + length) / 6)^alpha (Wu 2016, arXiv 1609.08144, equation 14)."""
    return ((5.0 + torch.as_tensor(length, dtype=torch.float32)) / 6.0) ** alpha


def _beam_search(
    model: Transformer,
    memory_BSD: Tensor,
    source_mask_BS: Tensor | None,
    limits_B: Tensor,
    ends: Ends,
    config: EvaluationConfig,
) -> list[list[int]]:
    """Keeps the K most likely prefixes of each sentence; finished ones compete by length-normalised score.

    A sentence is done at its length limit, or when K hypotheses have finished and no live prefix, normalised
    by its current length, scores higher than the worst of them. Done sentences leave the batch.
    """
    device = memory_BSD.device
    sentences, beam = memory_BSD.shape[0], config.beam
    longest = int(limits_B.max())
    alpha = config.length_penalty
    best: list[list[int]] = [[] for _ in range(sentences)]

    alive_B = torch.arange(sentences, device=device)
    tokens_BKT = torch.full((sentences, beam, longest + 1), ends.pad, dtype=torch.long, device=device)
    tokens_BKT[:, :, 0] = ends.bos
    # All hypotheses start equal. Only the first may have children, or the beam would hold duplicates.
    scores_BK = torch.full((sentences, beam), -torch.inf, device=device)
    scores_BK[:, 0] = 0.0
    ended_BKT = torch.full_like(tokens_BKT, ends.pad)
    ended_scores_BK = torch.full_like(scores_BK, -torch.inf)
    caches = model.new_caches()

    for step in range(longest):
        rows = tokens_BKT.shape[0]
        last_N1 = tokens_BKT[:, :, step].reshape(-1, 1)
        hidden = model.decode(last_N1, memory_BSD, source_mask_BS, caches)
        logits_NV = model.project(hidden[:, 0]).float()
        # The 2K best children of each prefix are enough: at most K of them can be end tokens.
        top_logits, top_tokens = logits_NV.topk(min(2 * beam, logits_NV.shape[1]), dim=-1)
        log_probs = (top_logits - logits_NV.logsumexp(-1, keepdim=True)).view(rows, beam, -1)
        width = log_probs.shape[-1]
        children = (scores_BK.unsqueeze(-1) + log_probs).view(rows, -1)
        child_scores, child = children.topk(min(2 * beam, children.shape[1]), dim=-1)
        parent = child // width
        token = top_tokens.view(rows, -1).gather(1, child)
        is_end = token == ends.eos

        # Finished hypotheses: the score is normalised by length, which includes the end token.
        normalised = child_scores / _length_penalty(step + 1, alpha).to(device)
        # An end token counts only if it is among the K best children, as in a beam that keeps K children in all.
        counts = is_end & (torch.arange(child.shape[1], device=device) < beam)
        new_ended = torch.where(counts, normalised, -torch.inf)
        prefixes = tokens_BKT.gather(1, parent.unsqueeze(-1).expand(-1, -1, longest + 1))
        pool_scores = torch.cat([ended_scores_BK, new_ended], dim=1)
        ended_scores_BK, chosen = pool_scores.topk(beam, dim=1)
        pool = torch.cat([ended_BKT, prefixes], dim=1)
        ended_BKT = pool.gather(1, chosen.unsqueeze(-1).expand(-1, -1, longest + 1))

        # Live prefixes: the K best children that have not finished.
        scores_BK, kept = torch.where(is_end, -torch.inf, child_scores).topk(beam, dim=1)
        parent, token = parent.gather(1, kept), token.gather(1, kept)
        tokens_BKT = tokens_BKT.gather(1, parent.unsqueeze(-1).expand(-1, -1, longest + 1))
        tokens_BKT[:, :, step + 1] = token

        at_limit = limits_B[alive_B] <= step + 1
        hopeless = scores_BK[:, 0] / _length_penalty(step + 1, alpha).to(device) <= ended_scores_BK[:, -1]
        done = at_limit | hopeless
        if bool(done.any()):
            for row in done.nonzero().squeeze(1).tolist():
                if ended_scores_BK[row, 0] > -torch.inf:
                    ids = ended_BKT[row, 0].tolist()
                else:  # none finished within the limit: take the most likely prefix
                    ids = tokens_BKT[row, 0].tolist()
                best[int(alive_B[row])] = [i for i in ids[1:] if i != ends.pad]
            going = (~done).nonzero().squeeze(1)
            if not going.numel():
                break
            alive_B, tokens_BKT, scores_BK = alive_B[going], tokens_BKT[going], scores_BK[going]
            ended_BKT, ended_scores_BK, parent = ended_BKT[going], ended_scores_BK[going], parent[going]
            memory_BSD = memory_BSD[going]
            source_mask_BS = source_mask_BS[going] if source_mask_BS is not None else None
            _select(caches, (going.unsqueeze(1) * beam + parent).view(-1), going)
        else:
            first = torch.arange(rows, device=device).unsqueeze(1) * beam
            _select(caches, (first + parent).view(-1), None)
    return best
