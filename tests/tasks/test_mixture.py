"""A mixture draws each batch's corpus by the weights, from a generator that a resumed run repeats."""

import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tfx.cli import main
from tfx.config.compose import change, compose, load, to_yaml
from tfx.config.schema import DatasetConfig, TokenizerConfig
from tfx.data.ragged import Ragged
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.tasks.batches import training_batches
from tfx.tasks.mixture import Mixture
from tfx.tasks.prepare import PreparedData, prepare_data
from tfx.tasks.seq2seq import Pairs

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char"), ["abc"], word_initial_space=False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pairs(count: int, first: int) -> Pairs:
    """Pairs whose ids are from ``first`` on."""
    lengths = np.random.default_rng(first).integers(1, 12, count)
    rows = [[first + row] * int(length) for row, length in enumerate(lengths)]
    return Pairs(Ragged.from_lists(rows, np.uint32), Ragged.from_lists(rows, np.uint32))


MIXTURE = Mixture(["small", "large"], [3.0, 1.0], [pairs(40, 1_000), pairs(500, 50_000)])
OPTIONS = {"batch_tokens": 200, "context": 32, "seed": 5}


def of_small(batch) -> bool:
    ids = batch.source_BS[:, 0]
    assert bool((ids < 50_000).all()) or bool((ids >= 50_000).all()), "a batch is of one corpus"
    return bool(ids[0] < 50_000)


def test_corpora_are_drawn_by_their_weights():
    drawn = list(islice(MIXTURE.draws(1), 20_000))
    assert drawn.count(0) / 20_000 == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 20_000))
    assert drawn != list(islice(MIXTURE.draws(2), 20_000))
    for start in (1, 1023, 1024, 1025, 5000):
        assert list(islice(MIXTURE.draws(1, start), 3000)) == drawn[start : start + 3000]
        counts = MIXTURE.drawn_before(1, start)
        assert counts == [drawn[:start].count(0), drawn[:start].count(1)]


def test_batches_go_on_anywhere_and_each_corpus_keeps_its_own_epochs():
    whole = list(islice(training_batches(MIXTURE, TOKENIZER, **OPTIONS), 120))
    for start in (1, 17, 64):
        for batch, resumed in zip(
            whole[start:], islice(training_batches(MIXTURE, TOKENIZER, **OPTIONS, start=start), 40), strict=False
        ):
            assert torch.equal(batch.source_BS, resumed.source_BS)
    seen = [int(row) for batch in whole if of_small(batch) for row in batch.rows]
    assert all(sorted(seen[at : at + 40]) == list(range(40)) for at in range(0, len(seen) // 40 * 40, 40))


def test_shares_are_the_tokens_trained_on():
    batches = training_batches(MIXTURE, TOKENIZER, **OPTIONS)
    tokens = {True: 0, False: 0}
    for batch in islice(batches, 50):
        tokens[of_small(batch)] += batch.tokens
    shares = {row["dataset"]: row for row in batches.shares()}
    assert (shares["small"]["tokens"], shares["large"]["tokens"]) == (tokens[True], tokens[False])
    assert sum(row["share"] for row in shares.values()) == pytest.approx(1)
    resumed = training_batches(MIXTURE, TOKENIZER, **OPTIONS, start=50, state=batches.state_dict())
    assert resumed.shares() == batches.shares()


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for split, count in (("train", 12), ("valid", 3 if name == "one" else 4)):
            rows = [{"source": f"{name} {i}", "target": f"{i} {name[::-1]}"} for i in range(count)]
            (tmp_path / f"{name}/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def mix(weights: tuple[float, float] = (2, 1)) -> DatasetConfig:
    one, two = weights
    entries = f"[{{dataset: json, path: one, weight: {one}, name: first}},{{dataset: json, path: two, weight: {two}}}]"
    return compose([f"dataset.mix={entries}", "dataset=json", "dataset.tokenizer.kind=char"]).dataset


def test_corpora_share_a_tokenizer_and_the_first_one_validates(data):
    found = prepare_data(mix(), context=32)
    texts = [text for name in ("one", "two") for i in range(12) for text in (f"{name} {i}", f"{i} {name[::-1]}")]
    own = Tokenizer.train(TokenizerConfig(kind="char"), texts, word_initial_space=True)
    assert found.tokenizer.to_json() == own.to_json()
    assert len(found.splits["valid"]) == 3
    assert found.splits["train"].size == 24
    assert found.notes[:2] == [
        "train: a mixture, by the weights of the batches: first 66.7%, json 33.3%",
        "valid and test are those of first, the first corpus of the mixture",
    ]
    assert [file.file for file in found.files["train"]] == ["first: train.jsonl", "json: train.jsonl"]
    assert prepare_data(mix(), context=32).fingerprint == found.fingerprint
    assert prepare_data(mix((1, 1)), context=32).fingerprint != found.fingerprint
    assert prepare_data(mix((1, 1)), context=32).corpus != found.corpus


def test_a_saved_config_needs_no_other_file(data, monkeypatch):
    config = compose(["dataset.mix=[{dataset: json, path: one, weight: 2}]", "trainer.budget.steps=3"])
    (data / "config.yaml").write_text(to_yaml(config))
    monkeypatch.setattr("tfx.config.mixture.compose_tree", None)
    again = load(data / "config.yaml")
    assert again == config
    assert again.dataset.mix[0]["path"] == str(data / "one")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ("[{dataset: jsn, path: one}]", r"dataset.mix.0: dataset 'jsn' is unknown: did you mean 'json'?"),
        ("[{dataset: json, path: one, limit: {train: no}}]", r"dataset.mix.0.limit.train=no is not a whole number"),
        ("[{dataset: json, path: one, weight: 0}]", r"dataset.mix.0.weight=0 is not a weight"),
        (
            "[{dataset: json, path: one},{dataset: normalize, weight: -1}]",
            r"dataset.mix.1.weight=-1 is not a weight",
        ),
        ("[{dataset: json, path: one, weight: 1e308}]", r"weight=1e\+308 is not a weight: .* at most"),
        ("[{dataset: json, path: one, weight: heavy}]", "weight=heavy is not a weight"),
        ("[{dataset: stdlib}]", "'stdlib' is for dataset.task=lm, and the run for seq2seq"),
        ("[{dataset: json, path: one, wieght: 2}]", r"did you mean 'dataset.mix.0.weight'"),
        ("[{dataset: json, path: one, limit: {trian: 2}}]", r"did you mean 'dataset.mix.0.limit.train'"),
        ("[{dataset: json, path: one, valid_fraction: 7}]", r"dataset.mix.0.valid_fraction=7 is out of range"),
        ("[{dataset: json, path: one, batch_tokens: 7}]", "is one for all corpora: set dataset.batch_tokens"),
        ("[json,normalize]", "is not a corpus: write {dataset: NAME"),
        ("[{path: one}]", "names no data set"),
        ("[{dataset: json, path: one},{dataset: json, path: two}]", "two corpora named 'json'"),
        ("[{dataset: json, path: ''}]", r"dataset.mix.0.path is empty"),
        ("{dataset: json}", r"dataset.mix is a list, even with one entry: write \[\{…\}\]"),
    ],
)
def test_entries_that_are_no_corpora_are_one_line(data, entries, words):
    with pytest.raises(UserError, match=words):
        compose([f"dataset.mix={entries}"])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("dataset: json, path: none", ["dataset.mix.1.path=", "name the data with dataset.mix.1.path=…"]),
        ("dataset: parallel", ["dataset 'parallel' needs its files: ", "glob with dataset.mix.1.path=…"]),
        ("dataset: json, streaming: true", ["dataset.mix.1.streaming reads", "name files with dataset.mix.1.path=…"]),
        ("dataset: json, path: two, source: nosuch", ["dataset.mix.1.source"]),
    ],
)
def test_data_of_an_entry_that_cannot_be_read_are_named_by_the_entry(data, entry, words, capsys):
    words_typed = ["dataset=json", f"dataset.mix=[{{dataset: json, path: one, name: first}},{{{entry}}}]"]
    assert main(["train", *words_typed, "dry_run=true"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in words), said
    assert not re.search(r"dataset\.(path|streaming|source)", said)


def test_what_the_error_of_an_entry_advises_can_be_typed(data, capsys):
    words = ["dataset=json", "dataset.mix=[{dataset: json, path: one, name: first},{dataset: json}]", "dry_run=true"]
    assert main(["train", *words, "dataset.tokenizer.kind=char"]) == 2
    advised = re.search(r"glob with (dataset\S*=)…", capsys.readouterr().err)
    # A text as in any other setting of a path; where the entries are complete, as in a saved config, too.
    Path("b,c").symlink_to("two")
    assert main(["train", *words, "dataset.tokenizer.kind=char", f"{advised[1]}b,c"]) == 0, capsys.readouterr().err
    config = compose([*words, "dataset.mix.1.path=b,c", "dataset.mix.1.limit.train=7"])
    assert config.dataset.mix[1]["path"] == str(data / "b,c")
    assert config.dataset.mix[1]["limit"]["train"] == 7
    assert change(config, ["dataset.mix.0.path=two"]).dataset.mix[0]["path"] == str(data / "two")


def test_moved_data_of_an_entry_are_named_on_resuming(data, monkeypatch):
    config = compose(["dataset=json", "dataset.mix=[{dataset: json, path: one}]"])
    (data / "config.yaml").write_text(to_yaml(config))
    resumed = []
    monkeypatch.setattr("tfx.commands.resume.resume", lambda config, *_, **__: resumed.append(config))
    (data / "one").rename(data / "moved")
    assert main(["resume", str(data), "dataset.mix.0.path=moved"]) == 0
    assert resumed[0].dataset.mix[0]["path"] == str(data / "moved")


@pytest.mark.parametrize("words", [["{list}", "dataset.mix.1.path=two"], ["dataset.mix.0.path=two", "{list}"]])
def test_a_setting_of_an_entry_that_is_not_there_is_one_line(data, words):
    with pytest.raises(UserError, match=r"dataset\.mix\.[01] is not there: entries count from 0"):
        compose([word.format(list="dataset.mix=[{dataset: json, path: one}]") for word in words])


@pytest.mark.parametrize("key", ["0", "a.path", "-1.path", "01.path", "1."])
@pytest.mark.parametrize("word", ["dataset.mix.{key}=x", "+dataset.mix.{key}=x", "~dataset.mix.{key}"])
def test_what_is_no_setting_of_an_entry_is_answered_with_how_one_is_typed(data, capsys, word, key):
    """A whole entry would keep what the new one does not say."""
    words = ["dataset=json", "dataset.mix=[{dataset: json, path: one}]", "dry_run=true"]
    for typed in (word.format(key=key), "dataset.mix[0].path=two"):
        assert main(["train", *words, typed]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "is typed with the entry's number from 0, as dataset.mix.0.path=…" in said


def test_a_mixture_with_a_stream_names_what_is_said_of_each_corpus(data, capsys):
    entries = "{dataset: json, path: one, name: first},{dataset: json, path: two, streaming: true}"
    few = ["dataset.tokenizer.rows=10", "dataset.tokenizer.kind=char"]
    assert main(["train", "dataset=json", f"dataset.mix=[{entries}]", *few, "dry_run=true"]) == 0
    shown = capsys.readouterr().out
    assert "train 12 and streamed, valid 3" in shown
    assert "first: tokenizer: trained on 5 of 12 rows" in shown
    assert "json: tokenizer: trained on the first 5 rows of the stream" in shown


def test_the_same_data_twice_is_noted(data):
    entries = "[{dataset: json, path: one},{dataset: json, path: two, name: b},{dataset: json, path: one, name: c}]"
    found = prepare_data(compose([f"dataset.mix={entries}", "dataset=json", "dataset.tokenizer.kind=char"]).dataset, 32)
    noted = [note for note in found.notes if "same data" in note]
    assert noted == ["train: c is the same data as json, and counts by the weights of both"]


def test_a_path_beside_a_mixture_is_refused(data):
    with pytest.raises(UserError, match="give the path to an entry of the mix"):
        compose(["dataset.mix=[{dataset: json, path: one}]", "dataset=json", "dataset.path=two"])


@pytest.mark.parametrize("word", ["dataset.limit.test=50", "dataset.source=de", "dataset.empty=drop"])
def test_what_is_of_one_corpus_is_refused_beside_a_mixture(data, word):
    with pytest.raises(UserError, match=r"is of one corpus, and dataset\.mix names several: give it to an entry"):
        compose(["dataset.mix=[{dataset: json, path: one}]", "dataset=json", word])


def test_what_needs_one_numbering_of_rows_is_refused():
    with pytest.raises(UserError, match="a mixture of small and large, and something in this run needs"):
        MIXTURE.epoch(100, 32, np.random.default_rng(1))


# --- texts without references -----------------------------------------------------------------------


def test_text_without_references_is_a_part_of_the_mixture_that_no_label_counts_in(tmp_path):
    (tmp_path / "data").mkdir()
    for split, count in (("train", 60), ("valid", 20)):
        (tmp_path / "data" / f"{split}.txt").write_text("abc " * count)
    more = tmp_path / "more"
    more.mkdir()
    (more / "one.txt").write_text("cba " * 90)
    (more / "two.txt").write_text("bca " * 30)
    words = ["dataset=text", f"dataset.path={tmp_path / 'data'}", "model=gpt_nano", "dataset.tokenizer.kind=char"]
    words += [f"dataset.monolingual={more}", "+technique=distill"]

    def prepared(*others: str, **options: bool) -> PreparedData:
        return prepare_data(compose([*words, *others]).dataset, 8, **{"with_monolingual": True, **options})

    data = prepared()
    mixture = data.splits["train"]
    assert isinstance(mixture, Mixture)
    # 90 + 30 of 180 words; an end follows each of the two texts.
    sizes = [len(part) for part in mixture.parts]
    assert sizes[1] == 4 * 120 + 2
    assert mixture.weights[1] / sum(mixture.weights) == pytest.approx(sizes[1] / sum(sizes))
    assert [file.file for file in data.files["train"]] == ["train.txt", "monolingual: one.txt", "monolingual: two.txt"]
    options = {"batch_tokens": 32, "context": 8, "seed": 1}
    batches = training_batches(mixture, data.tokenizer, **options)
    a, b = (data.tokenizer.encode([letter])[0][-1] for letter in "ab")
    kinds = set()
    for batch in islice(batches, 40):
        seen = batch.target_in_BT
        follows = bool((seen[:, 1:][seen[:, :-1] == a] == b).all())
        kinds.add((batch.is_labelled, follows))
    # In the data b follows a; in the other text it never does.
    assert kinds == {(True, True), (False, False)}
    shares = {row["dataset"]: row["share"] for row in batches.shares()}
    assert 0.4 < shares["monolingual"] < 0.9
    half = prepared("dataset.monolingual_share=0.5")
    assert half.splits["train"].weights == [1.0, 1.0]
    (more / "one.txt").write_text("cba " * 91)
    assert len({data.fingerprint, half.fingerprint, prepared().fingerprint}) == 3
    # Who scores the data does not read it.
    assert prepared(with_monolingual=False).fingerprint not in (data.fingerprint, half.fingerprint)
    for path, message in ((tmp_path / "gone", "does not exist"), (tmp_path / "empty", "a folder without files")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            prepared(f"dataset.monolingual={path}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset.monolingual=x"], "no technique of this run learns from it"),
        (["dataset.monolingual_share=0.5", "technique=distill"], "name that with dataset.monolingual"),
    ],
)
def test_text_that_nobody_reads_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        compose(words)
