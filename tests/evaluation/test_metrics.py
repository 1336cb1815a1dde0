"""Metrics are those of the reference implementations: sacreBLEU, ROUGE by hand, SQuAD's published script."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from tfx.errors import UserError
from tfx.evaluation import metrics
from tfx.evaluation.metrics import _RougeWords, check_metrics, exact_match_normalized, score_text, token_f1
from tfx.evaluation.scripts import misfits
from tfx.record.metric_vocabulary import LOSS_METRICS, higher_is_better, scorer

HYPOTHESES = ["the cat sat on the mat .", "A quick brown fox", "", "nothing in common here", "the the the the the the"]
REFERENCES = [
    ["the cat sat on a mat .", "a cat was sitting on the mat ."],
    ["a Quick brown fox jumps"],
    ["something", "else", "altogether"],
    ["wholly other words"],
    ["the cat is on the mat"],
]
# Those of which all is installed: flores200 needs a model from elsewhere.
HERE = [name for name in metrics.TEXT_METRICS if name != "bleu_flores200"]
SINGLE = [row[:1] for row in REFERENCES]


@pytest.mark.parametrize(("name", "options"), [("bleu", []), ("bleu_lowercase", ["-lc"]), ("chrf", ["-m", "chrf"])])
def test_scores_are_those_of_the_sacrebleu_command(tmp_path, name, options):
    (tmp_path / "hypotheses").write_text("\n".join(HYPOTHESES) + "\n")
    (tmp_path / "references").write_text("\n".join(row[0] for row in REFERENCES) + "\n")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "-w", "9", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = json.loads(done.stdout)
    score = score_text(HYPOTHESES, SINGLE, [name])
    assert score.metrics[name] == pytest.approx(expected["score"], abs=1e-8)
    assert expected["signature"].split("|version")[0] in str(score.signatures[name]).replace("#:1", "nrefs:1")


@pytest.mark.parametrize(
    ("name", "metric"), [("bleu", BLEU()), ("bleu_lowercase", BLEU(lowercase=True)), ("chrf", CHRF())]
)
def test_references_may_differ_in_number(name, metric):
    streams = [[row[i] if i < len(row) else None for row in REFERENCES] for i in range(3)]
    score = score_text(HYPOTHESES, REFERENCES, [name])
    assert score.metrics[name] == metric.corpus_score(HYPOTHESES, streams).score
    assert "nrefs:var" in score.signatures[name]
    assert score.metrics[name] >= score_text(HYPOTHESES, SINGLE, [name]).metrics[name]


@pytest.mark.parametrize("references", [SINGLE, REFERENCES], ids=["single", "several"])
@pytest.mark.parametrize("name", ["bleu", "bleu_lowercase"])
def test_the_counts_of_sentences_add_up_to_corpus_bleu(name, references):
    score = score_text(HYPOTHESES, references, [name])
    system, reference, *counts = np.sum([sentence[name] for sentence in score.sentences], axis=0).tolist()
    rebuilt = BLEU.compute_bleu(counts[:4], counts[4:], system, reference, smooth_method="exp")
    assert rebuilt.score == pytest.approx(score.metrics[name], abs=1e-9)


def test_perfect_output_scores_full_marks():
    texts = ["the cat sat on the mat .", "a quick brown fox jumps ."]
    score = score_text(texts, [[text] for text in texts], HERE)
    percent = {name for name in HERE if name.startswith(("bleu", "chrf"))}
    assert score.metrics == pytest.approx({name: 100.0 if name in percent else 1.0 for name in HERE})
    assert set(score.signatures) == percent
    assert all(set(sentence) == set(HERE) for sentence in score.sentences)


@pytest.mark.parametrize(
    ("hypothesis", "reference", "exact", "f1"),
    [
        ("Denver Broncos", "Denver Broncos", 1.0, 1.0),
        ("the Denver Broncos!", "denver broncos", 1.0, 1.0),
        ("Denver", "Denver Broncos", 0.0, 2 / 3),
        ("Denver Broncos won the game", "Denver Broncos", 0.0, 2 * (2 / 4) * 1 / (2 / 4 + 1)),
        ("Carolina Panthers", "Denver Broncos", 0.0, 0.0),
        ("a an the", "the", 1.0, 1.0),
        ("the", "Denver", 0.0, 0.0),
        ("an apple, a  pear", "apple pear", 1.0, 1.0),
        ("theatre", "atre", 0.0, 0.0),
        ("x x y", "x y y", 0.0, 2 / 3),
        ("Levi's Stadium", "levis stadium", 1.0, 1.0),
    ],
)
def test_squad_scores_are_those_computed_by_hand(hypothesis, reference, exact, f1):
    assert exact_match_normalized(hypothesis, reference) == exact
    assert token_f1(hypothesis, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 5 of 6 unigrams of either side are shared; 3 of 5 bigrams; the common subsequence is 5 long.
        ("rouge_1", 5 / 6),
        ("rouge_2", 3 / 5),
        ("rouge_l", 5 / 6),
    ],
)
def test_rouge_is_that_computed_by_hand(name, expected):
    hypothesis, reference = "the cat sat on the mat", "the cat lay on the mats"  # stemming: mats is mat
    score = score_text([hypothesis], [[reference]], [name])
    assert score.metrics[name] == pytest.approx(expected)


def test_rouge_l_counts_order():
    score = score_text(["d c b a"], [["a b c d e"]], ["rouge_1", "rouge_l"])
    assert score.metrics == pytest.approx({"rouge_1": 8 / 9, "rouge_l": 2 / 9})


@pytest.mark.parametrize("name", ["exact_match", "exact_match_normalized", "f1", "rouge_1", "rouge_2", "rouge_l"])
def test_the_best_reference_counts(name):
    score = score_text(["two words", "b"], [["other", "two words"], ["c"]], [name])
    assert score.metrics[name] == 0.5
    assert [sentence[name] for sentence in score.sentences] == [1.0, 0.0]


def test_exact_match_heeds_case_but_not_surrounding_space():
    score = score_text([" 3.50 ", "Three", ""], [["3.50"], ["three"], ["x"]], ["exact_match"])
    assert score.metrics["exact_match"] == pytest.approx(1 / 3)


def test_an_unknown_metric_is_refused_with_a_suggestion():
    check_metrics(HERE, "seq2seq")
    with pytest.raises(UserError, match="metric 'blue' is unknown: did you mean 'bleu'"):
        check_metrics(["chrf", "blue"], "seq2seq")


def test_rouge_without_its_library_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    check_metrics(["bleu"], "seq2seq")
    with pytest.raises(UserError, match=r"pip install 'path/to/tfx\[rouge\]'"):
        check_metrics(["rouge_l"], "seq2seq")


def test_only_the_metrics_of_the_loss_are_better_when_lower():
    assert all(map(higher_is_better, metrics.TEXT_METRICS))
    assert not any(map(higher_is_better, LOSS_METRICS))


# --- scripts without spaces, and other alphabets ----------------------------------------------------

CHINESE = ["我们明天早上去图书馆。", "这只狗在河边睡觉。"]
CHINESE_REFERENCES = [["我们明天上午去图书馆。"], ["那只狗在河边睡着了。"]]


@pytest.mark.parametrize(("name", "tokenize"), [("bleu_zh", "zh"), ("bleu_char", "char"), ("bleu_ja", "ja-mecab")])
def test_bleu_of_a_script_without_spaces_is_that_of_sacrebleu(name, tokenize):
    score = score_text(CHINESE, CHINESE_REFERENCES, [name])
    expected = BLEU(tokenize=tokenize).corpus_score(CHINESE, [[row[0] for row in CHINESE_REFERENCES]]).score
    assert score.metrics[name] == pytest.approx(expected)
    assert f"tok:{tokenize}" in score.signatures[name]
    sums = np.sum([sentence[name] for sentence in score.sentences], axis=0, dtype=float)
    assert float(scorer(name).corpus(sums)) == pytest.approx(expected)


def test_bleu_that_needs_a_model_says_so_in_a_line():
    pytest.importorskip("sacrebleu")
    if importlib.util.find_spec("sentencepiece") is not None:
        pytest.skip("sentencepiece is installed")
    with pytest.raises(UserError, match=r"metric bleu_flores200 needs an extra: pip install 'path/to/tfx\[flores\]'"):
        check_metrics(["bleu_flores200"], "seq2seq")


SCRIPTS = {
    "Han": ("这只狗在河边睡觉。", ["bleu_zh"]),
    "kana": ("ひらがなとカタカナのラーメン", ["bleu_ja"]),
    "Han, kana": ("明日の朝、図書館に行きます。", ["bleu_ja"]),
    "Thai": ("แมวนอนบนเสื่อ", []),
    "Lao": ("ແມວນອນຢູ່", []),
    "Khmer": ("ឆ្មាដេកលើ", []),
    "Burmese": ("ကြောင်အိပ်", []),
    "Tibetan": ("ཞི་མི་ཉལ", []),
    "Han, Thai": ("这只狗 แมว", []),
}


@pytest.mark.parametrize("scripts", SCRIPTS)
def test_a_metric_that_does_not_fit_the_script_is_named_with_those_that_do(scripts):
    text, better = SCRIPTS[scripts]
    lines = misfits(["bleu", "chrf", "bleu_zh", "bleu_ja", "bleu_char", "bleu_flores200"], [[text]])
    assert [line.split()[0] for line in lines] == [n for n in ("bleu", "bleu_zh", "bleu_ja") if n not in better]
    for line in lines:
        assert f"does not fit 100% of the references' letters, which are of scripts without spaces ({scripts})" in line
        assert line.endswith(f": {', '.join([*better, 'bleu_char', 'bleu_flores200 or chrf'])} fit")


@pytest.mark.parametrize("text", ["ein Kätzchen", "кошка", "고양이가 잔다", "बिल्ली", "قطة", "a cat (猫) on a mat"])
def test_scripts_with_spaces_fit_every_metric(text):
    assert misfits(["bleu", "bleu_zh", "bleu_ja"], [[text]]) == []


@pytest.mark.parametrize(
    ("hypothesis", "reference", "rouge_1", "f1"),
    [
        ("мама мыла раму", "мама мыла окно", 2 / 3, 2 / 3),
        ("किताब अच्छी है", "किताब अच्छी थी", 2 / 3, 2 / 3),
        ("猫坐垫子", "猫睡垫子", 3 / 4, 3 / 4),
        ("แมว", "แมว", 1.0, 1.0),
        ("The cats sat", "the cat sat", 1.0, 0.5),  # ROUGE stems English
    ],
)
def test_words_of_every_script_count(hypothesis, reference, rouge_1, f1):
    score = score_text([hypothesis], [[reference]], ["rouge_1", "f1"])
    assert score.metrics == pytest.approx({"rouge_1": rouge_1, "f1": f1}, abs=1e-6)


@pytest.mark.parametrize("text", ["The Café's 3.5 runners-up, naïvely running", "a_b c-d (e) 12th Straße", "ÀB cœur"])
def test_latin_words_of_rouge_are_those_of_the_reference_implementation(text):
    from rouge_score.tokenizers import DefaultTokenizer

    assert _RougeWords().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


ASCII = st.text(st.characters(max_codepoint=127))


@given(ASCII)
@example("x2 + y_2 = 3.5e-7; don't\tDo\nTHIS")
@settings(max_examples=100, deadline=None)
def test_rouge_of_plain_text_is_that_of_the_reference_implementation(text):
    from rouge_score.tokenizers import DefaultTokenizer

    assert _RougeWords().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Signs of no script stand between words, as they do in the reference implementation.
        ("5 µm² and ½ cup, x³ ① ªº ⅷ", ["5", "m", "and", "cup", "x"]),
        ("5 мкм² и ½", ["5", "мкм", "и"]),
        ("ラーメン", ["ラ", "ー", "メ", "ン"]),
        ("قـطة ٣٤", ["قـطة", "٣٤"]),
        ("猫3匹", ["猫", "3", "匹"]),
    ],
)
def test_words_of_rouge_by_script(text, words):
    assert _RougeWords().tokenize(text) == words
