"""`tfx generate`: one line for one line, whatever comes in; what is done to an input is said on stderr."""

import io
import json
import os
import sys

import pytest

from tfx.cli import main
from tfx.commands.evaluate import _without_effect as without_effect
from tfx.config.schema import EvaluationConfig
from tfx.config.task_facts import TASKS

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.ffn_width=32",
    "model.decoder_layers=1",
    "evaluation.latency_inputs=1",
]


@pytest.fixture(scope="module")
def runs(folder):
    data = [
        "dataset=text",
        "dataset.path=text.txt",
        "model=gpt_nano",
        "model.context=16",
        "dataset.tokenizer.kind=char",
    ]
    assert main(["train", *data, *TINY, "trainer.budget.steps=3", f"hydra.run.dir={folder / 'lm'}"]) == 0
    limits = [f"dataset.limit.{split}=20" for split in ("train", "valid", "test")]
    words = ["model.encoder_layers=1", "model.context=32", "evaluation=greedy", "trainer.budget.steps=3", *limits]
    assert main(["train", *words, *TINY, f"hydra.run.dir={folder / 'pairs'}"]) == 0
    return folder


def generate(runs, monkeypatch, capsys, *words, stdin: bytes | None = b""):
    monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
    capsys.readouterr()
    status = main(["generate", *words])
    return status, *capsys.readouterr()


def test_a_text_is_read_as_training_data_are(runs, monkeypatch, capsys):
    plain = generate(runs, monkeypatch, capsys, str(runs / "pairs"), stdin=b"nine past five\n")
    status, out, err = generate(runs, monkeypatch, capsys, str(runs / "pairs"), stdin=b"  nine past five \t\n")
    assert (status, out) == plain[:2]
    assert "note: line 1: outer white space is left out, as it is in training data" in err
    assert "white space" not in plain[2]
    status, out, err = generate(runs, monkeypatch, capsys, str(runs / "pairs"), stdin=b"nine\rten\r\neleven\r\n")
    assert (status, out.count("\n")) == (0, 2)
    assert err.count("a carriage return in it ends no line here") == 1
    # A language model goes on behind the very text.
    status, out, err = generate(runs, monkeypatch, capsys, str(runs / "lm"), stdin=b" line 1\n")
    assert out.startswith(" line 1")
    assert "white space" not in err


def test_a_bad_byte_ends_the_input_and_loses_no_line_before_it(runs, monkeypatch, capsys):
    text = b"".join(b"one two %d\n" % i for i in range(299)) + b"caf\xe9\nmore\n"
    status, out, err = generate(runs, monkeypatch, capsys, str(runs / "pairs"), stdin=text)
    assert (status, out.count("\n")) == (2, 299)
    assert err.endswith("tfx: stdin, line 300: not UTF-8 (byte 0xe9); lines before it are decoded\n")


@pytest.mark.parametrize(("stdin", "says"), [(None, "stdin is closed: give the texts as arguments")])
def test_without_an_input_it_says_what_to_do(stdin, says, runs, monkeypatch, capsys):
    status, out, err = generate(runs, monkeypatch, capsys, str(runs / "pairs"), stdin=stdin)
    assert (status, out) == (2, "")
    assert says in err


def test_an_argument_that_is_not_utf8_is_named(runs, monkeypatch, capsys):
    status, _, err = generate(runs, monkeypatch, capsys, str(runs / "pairs"), "good", "caf\udce9")
    assert status == 2
    assert "text 2 on the command line is not UTF-8" in err


def test_an_argument_is_utf8_whatever_the_locale(runs, monkeypatch, capsys):
    given = "größe"
    escaped = given.encode().decode("ascii", "surrogateescape")  # as Python reads it where LC_ALL=C
    outputs = [generate(runs, monkeypatch, capsys, str(runs / "pairs"), text) for text in (given, escaped)]
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == 0


def test_a_byte_order_mark_is_no_text(runs, monkeypatch, capsys):
    marked = generate(runs, monkeypatch, capsys, str(runs / "pairs"), stdin=b"\xef\xbb\xbffive past nine\n")
    plain = generate(runs, monkeypatch, capsys, str(runs / "pairs"), stdin=b"five past nine\n")
    assert marked == plain


def test_samples_are_independent_and_follow_their_line(runs, monkeypatch, capsys):
    def lines(count: int, *words: str) -> list[str]:
        words = (str(runs / "lm"), "--new-tokens", "12", *words)
        return generate(runs, monkeypatch, capsys, *words, stdin=b"line\n" * count)[1].splitlines()

    many = lines(300)
    assert len(set(many)) > 290
    assert lines(3) == many[:3]
    assert lines(3, "--seed", "2") != many[1:4]
    assert not set(lines(3, "--seed", "2")) & set(many[:4])


def test_what_is_done_to_an_input_is_said(runs, monkeypatch, capsys):
    status, out, err = generate(
        runs, monkeypatch, capsys, str(runs / "lm"), "", "li\u732bne", "line " * 20, "--new-tokens", "3"
    )
    assert (status, out.count("\n")) == (0, 3)
    assert "note: line 1: no text to continue: the model begins after a line end" in err
    assert "note: line 2: 1 tokens of characters that the tokenizer does not know" in err
    assert "note: line 3: of 100 tokens the model reads the last 16, its context" in err
    status, out, err = generate(runs, monkeypatch, capsys, str(runs / "pairs"), "nine " * 60)
    assert (status, out.count("\n")) == (0, 1)
    assert "tokens the first 31 are read, the model's context; the rest is cut" in err


@pytest.mark.parametrize(
    ("run", "words", "says"),
    [
        ("pairs", ["--temperature", "0.5"], "--temperature has no effect: decoding is by greedy"),
        ("pairs", ["--seed", "3"], "--seed has no effect"),
        ("pairs", ["--new-tokens", "3"], "--new-tokens has no effect"),
        ("pairs", ["--method", "greedy", "--beam", "3"], "--beam has no effect: decoding is by greedy"),
        ("pairs", ["--beam", "3"], "decoding by beam (beam=3, "),
        ("pairs", ["--seed", "1"], "--seed has no effect: decoding is by greedy"),
        ("pairs", ["--method", "beam", "--beam", "1", "--seed", "1"], "--seed has no effect: decoding is by greedy"),
        ("lm", ["--method", "greedy", "--top-k", "3"], "--top-k has no effect"),
        ("lm", ["--beam", "3"], "--beam has no effect: decoding is by sample"),
        ("lm", ["--top-p", "1"], "--top-p has no effect: 1 is the mass of all tokens"),
        ("lm", ["--top-k", "500"], "--top-k has no effect: the vocabulary has "),
    ],
)
def test_an_option_without_effect_is_named(run, words, says, runs, monkeypatch, capsys):
    status, _, err = generate(runs, monkeypatch, capsys, str(runs / run), *words, "line")
    assert status == 0
    assert err.count("note: ") == 1
    assert f"note: {says}" in err


@pytest.mark.parametrize(
    ("words", "used"),
    [
        ([], None),
        (["--method", "beam", "--beam", "1"], None),
        (["--method", "beam"], "beam (beam=5, length_penalty=1)"),
        (["--method", "sample", "--top-k", "3", "--seed", "1"], "sample (temperature=1, top_k=3)"),
    ],
)
def test_another_decoding_than_that_of_the_scores_is_named(words, used, runs, monkeypatch, capsys):
    _, _, err = generate(runs, monkeypatch, capsys, str(runs / "pairs"), *words, "five")
    expected = f"note: decoding by {used}; the run was scored with greedy" if used else ""
    assert err.strip() == expected


def test_the_best_outputs_are_a_line_of_json_for_each_line(runs, monkeypatch, capsys):
    words = [str(runs / "pairs"), "--method", "beam", "--beam", "3"]
    texts = ["five past nine", "", "half past two"]
    lines = "".join(f"{text}\n" for text in texts).encode()
    plain = generate(runs, monkeypatch, capsys, *words, stdin=lines)[1].splitlines()
    _, out, _ = generate(runs, monkeypatch, capsys, *words, "--nbest", "3", stdin=lines)
    found = [json.loads(line) for line in out.splitlines()]
    assert [len(row["nbest"]) for row in found] == [3, 0, 3]
    assert [row["output"] for row in found] == plain
    for text, row in zip(texts, found, strict=True):
        scores = [one["score"] for one in row["nbest"]]
        assert scores == sorted(scores, reverse=True)
        assert len({one["output"] for one in row["nbest"]}) == len(scores)
        for one in row["nbest"]:
            values = [token["log_prob"] for token in one["tokens"]]
            assert sum(values) / ((5 + len(values)) / 6) == pytest.approx(one["score"], abs=1e-3)
            assert [number for _, number in one["alignment"]] == list(range(len(one["output"].split())))
            assert all(0 <= word < len(text.split()) for word, _ in one["alignment"])
    _, out, _ = generate(runs, monkeypatch, capsys, *words, "--json", stdin=lines)
    best = [row["nbest"][0] if row["nbest"] else {"output": ""} for row in found]
    assert [json.loads(line) for line in out.splitlines()] == best


def test_a_language_model_has_scores_and_tokens_but_no_alignment(runs, monkeypatch, capsys):
    texts = ["a line", "and"]
    words = [str(runs / "lm"), "--method", "greedy", "--new-tokens", "4", *texts]
    plain = generate(runs, monkeypatch, capsys, *words)[1].splitlines()
    found = [json.loads(line) for line in generate(runs, monkeypatch, capsys, *words, "--json")[1].splitlines()]
    for text, row, line in zip(texts, found, plain, strict=True):
        assert (text + row["output"]).replace("\n", "\\n") == line
        assert "alignment" not in row
        assert len(row["tokens"]) == 4
        assert sum(token["log_prob"] for token in row["tokens"]) / 1.5 == pytest.approx(row["score"], abs=1e-3)


def test_rules_change_outputs_and_are_named(runs, monkeypatch, capsys):
    words = [str(runs / "pairs"), "five past nine"]
    plain = generate(runs, monkeypatch, capsys, *words)[1]
    status, out, err = generate(runs, monkeypatch, capsys, *words, "--min-length", "9", "--no-repeat-ngram", "1")
    assert status == 0
    assert out != plain
    assert "note: decoding by greedy (min_length=9, no_repeat_ngram=1); the run was scored with greedy" in err
    assert generate(runs, monkeypatch, capsys, *words, "--prefix", "0")[1].startswith("0")
    _, _, err = generate(runs, monkeypatch, capsys, str(runs / "lm"), "--prefix", "0", "line")
    assert "note: --prefix has no effect: only outputs of text to text have one" in err


@pytest.mark.parametrize(
    ("run", "words", "says"),
    [
        (
            "pairs",
            ["--nbest", "3"],
            "--nbest 3 needs a beam of as many hypotheses (here 1): name --method beam --beam 3",
        ),
        ("pairs", ["--nbest", "3", "--method", "beam", "--beam", "2"], "(here 2): name --method beam --beam 3"),
        ("lm", ["--nbest", "2"], "(here 1): that is for text to text"),
        ("pairs", ["--nbest", "0"], "--nbest 0 must be at least 1"),
        ("pairs", ["--min-length", "5000"], "tokens that the model's context allows"),
        ("lm", ["--min-length", "9", "--new-tokens", "5"], "--min-length 9 is above the 5 tokens that --new-tokens"),
        ("pairs", ["--min-length", "-1"], "--min-length -1 is out of range"),
        ("pairs", ["--prefix", "nine " * 60], "too many for a context of 32: shorten it"),
    ],
)
def test_what_a_decoding_cannot_give_is_refused(run, words, says, runs, monkeypatch, capsys):
    status, out, err = generate(runs, monkeypatch, capsys, str(runs / run), *words, "five past nine")
    assert (status, out) == (2, "")
    assert says in err


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("evaluation.beam=3", "decoding is by greedy"),
        ("evaluation.temperature=3", "decoding is by greedy"),
        ("seed=1", "decoding is by greedy"),
        ("optimizer.lr=1", "the model is fixed by its run"),
        ("+technique=shuffle", "the model is fixed by its run"),
        ("dataset.tokenizer.kind=char", "the model has its own tokenizer"),
        ("dataset.batch_tokens=9", "it concerns training, timing or `tfx generate`"),
        ("evaluation.new_tokens=9", "it concerns training, timing or `tfx generate`"),
        ("evaluation.method=greedy", None),
        ("evaluation.batch_tokens=512", None),
        ("evaluation.precision=bf16", None),
        ("evaluation.max_length_ratio=1", None),
        ("dataset.metrics=[exact_match]", None),
    ],
)
def test_a_change_that_changes_no_score_is_named(word, why):
    config = EvaluationConfig(method="greedy")
    key = word.lstrip("+").partition("=")[0]
    assert without_effect([word], config, TASKS["seq2seq"]) == ([] if why is None else [f"{key} has no effect: {why}"])
    if key.startswith(("evaluation", "seed")) and key not in ("evaluation.batch_tokens", "evaluation.precision"):
        assert without_effect([word], config, TASKS["lm"]) == [
            f"{key} has no effect: a language model is scored by its loss"
        ]


def test_a_beam_has_an_effect_where_it_is_what_makes_decoding_greedy():
    assert without_effect(["evaluation.beam=1"], EvaluationConfig(beam=1), TASKS["seq2seq"]) == []
    assert without_effect(["evaluation.beam=3"], EvaluationConfig(beam=3), TASKS["seq2seq"]) == []


def test_scores_of_another_decoding_and_a_split_that_is_not_there_are_said(runs, capsys):
    words = ["evaluate", str(runs / "pairs"), "--device", "cpu"]
    assert main([*words, "evaluation.method=beam", "evaluation.beam=2", "seed=3"]) == 0
    err = capsys.readouterr().err
    assert "note: decoding by beam (beam=2, length_penalty=1); the run was scored with greedy" in err
    assert "note: seed has no effect: decoding is by beam" in err
    assert main(["evaluate", str(runs / "lm"), "--split", "test"]) == 2
    assert "--split test: the data set has no such split, only train, valid" in capsys.readouterr().err


def test_options_stand_anywhere(runs, monkeypatch, capsys):
    between = generate(runs, monkeypatch, capsys, str(runs / "pairs"), "--beam", "1", "five past nine")
    before = generate(runs, monkeypatch, capsys, "--beam", "1", str(runs / "pairs"), "five past nine")
    assert between == before
    assert between[0] == 0
    assert main(["evaluate", str(runs / "pairs"), "--split", "valid", "evaluation.beam=1", "--json"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(runs / "pairs"), "--splitt", "valid"]) == 2
    assert "option '--splitt' is unknown: did you mean '--split'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "evaluate", "inspect"])
def test_without_a_run_only_that_is_asked_for(command, capsys):
    assert main([command]) == 2
    assert capsys.readouterr().err == (
        f"tfx: the following arguments are required: RUN|FILE (see `tfx {command} --help`)\n"
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "{path} is a folder: name a file"),
        ("pipe", "{path} is a device or pipe: name a file"),
        ("nowhere/p.jsonl", "{path}: the folder {path.parent} does not exist"),
    ],
)
def test_predictions_that_cannot_be_written_are_refused_before_anything_is_scored(name, says, runs, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name
    assert main(["evaluate", str(runs / "pairs"), "--predictions", str(path)]) == 2
    assert capsys.readouterr().err == f"tfx: --predictions {says.format(path=path)}\n"
    assert (tmp_path / "pipe").is_fifo()


def test_data_under_another_name_is_the_same_and_other_data_is_named(runs, capsys):
    (runs / "renamed.txt").write_text((runs / "text.txt").read_text())
    (runs / "changed.txt").write_text((runs / "text.txt").read_text().replace("little", "small"))
    notes = {}
    for name in ("text", "renamed", "changed"):
        assert main(["evaluate", str(runs / "lm"), f"dataset.path={runs / name}.txt"]) == 0
        notes[name] = "the data differs from that of the run" in capsys.readouterr().err
    assert notes == {"text": False, "renamed": False, "changed": True}


def test_a_model_file_on_data_of_the_other_task_is_refused_with_what_does_not_fit(runs, capsys):
    assert main(["evaluate", str(runs / "lm" / "model.safetensors"), "dataset=normalize"]) == 2
    assert (
        "model.safetensors holds a model of another task (a language model) than the data: name other data"
        in capsys.readouterr().err
    )
    assert main(["evaluate", str(runs / "pairs" / "model.safetensors"), "dataset=normalize", "foo=1"]) == 2
    assert "key 'foo' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "no"], "--device no is not a device: use auto"),
        (["--beam", "0"], "--beam 0 is out of range"),
        (["--new-tokens", "0"], "--new-tokens 0 is out of range"),
    ],
)
def test_an_error_names_the_option_that_was_typed(runs, words, said, capsys):
    assert main(["generate", str(runs / "pairs"), *words, "x"]) == 2
    assert capsys.readouterr().err.startswith(f"tfx: {said}")
