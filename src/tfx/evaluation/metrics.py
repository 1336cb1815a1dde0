"""Quality of generated text: sacreBLEU's BLEU and chrF, ROUGE, exact match, token F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfx.config.task_facts import LABEL_METRICS, TASKS
from tfx.errors import UserError, listed, unknown
from tfx.evaluation.scripts import rouge_words, split_characters
from tfx.record.metric_vocabulary import SCORERS


@dataclass
class TextScore:
    """Corpus metrics by name, signatures of those that have one, and per-sentence values."""

    metrics: dict[str, float]
    signatures: dict[str, str] = field(default_factory=dict)
    sentences: list[dict[str, Any]] = field(default_factory=list)


BLEU_VARIANTS: dict[str, dict[str, Any]] = {
    "bleu": {},
    # Most papers before 2018 lowercased; sacreBLEU's tokenization replaces theirs.
    "bleu_lowercase": {"lowercase": True},
    # For scripts without spaces between words: sacreBLEU's own tokenizers.
    "bleu_zh": {"tokenize": "zh"},
    "bleu_ja": {"tokenize": "ja-mecab"},
    "bleu_char": {"tokenize": "char"},
    "bleu_flores200": {"tokenize": "flores200"},
}
ROUGE_VARIANTS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
TEXT_METRICS = (*BLEU_VARIANTS, "chrf", *ROUGE_VARIANTS, "exact_match", "exact_match_normalized", "f1")


def check_metrics(names: Sequence[str], task: str) -> None:
    """Raises `UserError` for a metric of generated text that is unknown, or whose library is missing."""
    if TASKS[task].metrics is not None:  # the config's own check knows those of other tasks
        return
    for name in names:
        if any(name in known for known in LABEL_METRICS.values()):
            raise UserError(
                f"dataset.metrics={list(names)}: '{name}' scores labels, and the data are {TASKS[task].what}"
                f"{listed(TEXT_METRICS)}"
            )
        if name not in TEXT_METRICS:
            raise unknown("metric", name, TEXT_METRICS)
        if name in ROUGE_VARIANTS:
            _rouge_scorer([name])
        if name in BLEU_VARIANTS:
            _bleu(name)


def score_text(hypotheses: list[str], references: list[list[str]], names: Sequence[str]) -> TextScore:
    """Scores outputs against one or more references each; BLEU and chrF are 0-100, the others 0-1."""
    score = TextScore({}, {}, [{} for _ in hypotheses])
    for name in names:
        if name in BLEU_VARIANTS or name == "chrf":
            _add_sacrebleu(score, name, hypotheses, references)
        elif name in ROUGE_VARIANTS:
            scorer = _rouge_scorer([name])
            kind = ROUGE_VARIANTS[name]
            values = [
                max(scorer.score(reference, hypothesis)[kind].fmeasure for reference in row)
                for hypothesis, row in zip(hypotheses, references, strict=True)
            ]
            _add_mean(score, name, values)
        else:
            compare = {"exact_match": exact_match, "exact_match_normalized": exact_match_normalized, "f1": token_f1}[
                name
            ]
            values = [
                max(compare(hypothesis, reference) for reference in row)
                for hypothesis, row in zip(hypotheses, references, strict=True)
            ]
            _add_mean(score, name, values)
    return score


def _add_mean(score: TextScore, name: str, values: list[float]) -> None:
    score.metrics[name] = sum(values) / max(1, len(values))
    for sentence, value in zip(score.sentences, values, strict=True):
        sentence[name] = value


def _add_sacrebleu(score: TextScore, name: str, hypotheses: list[str], references: list[list[str]]) -> None:
    from sacrebleu.metrics import CHRF

    most = max(len(row) for row in references)
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    metric = CHRF() if name == "chrf" else _bleu(name)
    score.metrics[name] = metric.corpus_score(hypotheses, streams).score
    score.signatures[name] = str(metric.get_signature())
    # Sentence counts add up to corpus counts, as resampling sentences needs.
    if name == "chrf":
        for sentence, hypothesis, row in zip(score.sentences, hypotheses, references, strict=True):
            sentence[name] = chrf_counts(hypothesis, row)
        return
    single = _bleu(name, effective_order=True)
    for sentence, hypothesis, row in zip(score.sentences, hypotheses, references, strict=True):
        result = single.sentence_score(hypothesis, row)
        sentence[name] = [result.sys_len, result.ref_len, *result.counts, *result.totals]


def _bleu(name: str, **options: Any) -> Any:
    """sacreBLEU's metric; raises `UserError` if its tokenizer needs a missing package or model."""
    from sacrebleu.metrics import BLEU

    try:
        return BLEU(**BLEU_VARIANTS[name], **options)
    except (ImportError, RuntimeError) as error:
        extra = {"bleu_ja": "ja", "bleu_flores200": "flores"}[name]
        raise UserError(f"metric {name} needs an extra: pip install 'path/to/tfx[{extra}]'") from error
    except Exception as error:  # its download raises errors of many kinds
        raise UserError(
            f"metric {name} needs a model that sacreBLEU cannot download ({type(error).__name__}): put it in "
            "~/.sacrebleu/models, or use bleu_char"
        ) from error


def chrf_counts(hypothesis: str, references: Sequence[str]) -> list[int]:
    """Character n-grams (n from 1 to 6) in the output, in the reference, and in both: 18 counts, n by n.

    With several references the one with the best chrF counts, as in sacreBLEU (Popović 2015).
    """
    ours = _character_ngrams(hypothesis)
    candidates = []
    for reference in references:
        theirs = _character_ngrams(reference)
        counts: list[int] = []
        for own, other in zip(ours, theirs, strict=True):
            # If the reference is too short for such n-grams, those of the output do not count either.
            counts += [own.total() if other else 0, other.total(), (own & other).total()]
        candidates.append(counts)
    scores = SCORERS["chrf"].corpus(np.asarray(candidates, dtype=float))
    return candidates[int(np.argmax(scores))]


def _character_ngrams(text: str) -> list[Counter[str]]:
    letters = "".join(text.split())
    return [Counter(letters[i : i + n] for i in range(len(letters) - n + 1)) for n in range(1, 7)]


def _rouge_scorer(names: Sequence[str]) -> Any:
    """The scorer of Google's reimplementation of ROUGE (Lin 2004), with stemming as is usual."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("ROUGE needs an extra: pip install 'path/to/tfx[rouge]'") from None
    return RougeScorer([ROUGE_VARIANTS[name] for name in names], tokenizer=_RougeWords())


class _RougeWords:
    """The default tokenizer of ROUGE, stemming included, which also knows letters that are not Latin."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """The words of a text; those of more than three Latin letters are stemmed."""
        return [self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in rouge_words(text)]


def exact_match(hypothesis: str, reference: str) -> float:
    """1 if the two are equal, apart from surrounding white space."""
    return float(hypothesis.strip() == reference.strip())


def _answer_tokens(text: str) -> list[str]:
    """SQuAD's normalisation (Rajpurkar 2016, arXiv 1606.05250): case, punctuation and articles do not count.

    Each letter of a script without spaces is a word (as in MLQA, Lewis 2020, arXiv 1910.07475).
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return split_characters(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match_normalized(hypothesis: str, reference: str) -> float:
    """1 if the two are equal after SQuAD's normalisation."""
    return float(_answer_tokens(hypothesis) == _answer_tokens(reference))


def token_f1(hypothesis: str, reference: str) -> float:
    """SQuAD's F1 of the two bags of normalised words."""
    ours, theirs = _answer_tokens(hypothesis), _answer_tokens(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2.0 * common / (len(ours) + len(theirs))
