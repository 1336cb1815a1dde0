"""A streamed split gives the rows of the prepared one, once in each pass, and goes on from its state at any batch."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from tfx.config.compose import compose
from tfx.config.schema import DatasetConfig, LimitConfig, TokenizerConfig
from tfx.data.streaming import local_stream
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.batch import Batch
from tfx.run.setup import Setup
from tfx.tasks.batches import TrainingBatches, demanding_batches, training_batches
from tfx.tasks.mixture import Mixture
from tfx.tasks.prepare import prepare_data

CHAR = TokenizerConfig(kind="char")
ROWS = [(f"source {i * i % 31} {'x' * (i % 7)}", f"{i} target") for i in range(47)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(folder: Path, kind: str, rows: list[tuple[str, str]], files: int = 2) -> DatasetConfig:
    """A data set whose training rows lie in so many files."""
    folder.mkdir(exist_ok=True)
    parts = {f"train-{n}": rows[n::files] for n in range(files)} | {"valid": ROWS[:5]}
    for name, own in parts.items():
        table = [{"source": source, "target": target} for source, target in own]
        if kind == "parallel":
            for side, suffix in enumerate(("source", "target")):
                (folder / f"{name}.{suffix}").write_text("".join(row[side] + "\n" for row in own))
        elif kind == "json":
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
        elif kind == "csv":
            (folder / f"{name}.tsv").write_text("source\ttarget\n" + "".join(f"{s}\t{t}\n" for s, t in own))
        else:
            parquet.write_table(pyarrow.Table.from_pylist(table), folder / f"{name}.parquet", row_group_size=6)
    return DatasetConfig(path=str(folder), format=kind, tokenizer=CHAR, buffer=10)


def streamed(config: DatasetConfig, **changes) -> DatasetConfig:
    for name, value in {"streaming": True, **changes}.items():
        setattr(config, name, value)
    return config


def batches_of(data, state=None, start: int = 0, seed: int = 3, context: int = 64) -> TrainingBatches:
    options = {"batch_tokens": 90, "context": context, "seed": seed, "start": start, "state": state}
    return training_batches(data.splits["train"], data.tokenizer, **options)


def texts(data, batches: list[Batch]) -> list[tuple[str, str]]:
    decode = data.tokenizer.decode
    return [
        (decode(batch.source_BS[row].tolist()), decode(batch.target_in_BT[row].tolist()))
        for batch in batches
        for row in range(len(batch.rows))
    ]


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first.source_BS, second.source_BS) and torch.equal(first.target_out_BT, second.target_out_BT)


def one_pass(data, count: int, **options) -> list[Batch]:
    """The batches with the first ``count`` rows."""
    found, rows = [], 0
    endless = batches_of(data, **options)
    while rows < count:
        found.append(next(endless))
        rows += len(found[-1].rows)
    assert rows == count, "a batch goes over the end of a pass"
    return found


@pytest.mark.parametrize("kind", ["parallel", "json", "csv", "parquet", "hub"])
def test_a_pass_has_each_row_once_and_the_next_has_them_in_another_order(tmp_path, kind):
    config = write(tmp_path / "data", "parquet" if kind == "hub" else kind, ROWS)
    prepared = prepare_data(config, context=64)
    if kind == "hub":
        config.hub, config.path = config.path, None
    data = prepare_data(streamed(config), context=64)
    stripped = sorted((source.strip(), target) for source, target in ROWS)
    assert data.tokenizer.to_json() == prepared.tokenizer.to_json()
    assert data.splits["train"].size is None
    assert len(data.splits["valid"]) == 5
    first = one_pass(data, len(ROWS))
    assert sorted(texts(data, first)) == stripped
    assert all(batch.positions <= 90 for batch in first)
    both = texts(data, one_pass(data, 2 * len(ROWS)))
    assert sorted(both[len(ROWS) :]) == stripped
    assert both[len(ROWS) :] != both[: len(ROWS)]
    assert texts(data, one_pass(data, len(ROWS), seed=4)) != both[: len(ROWS)]


@pytest.mark.parametrize("kind", ["parallel", "parquet"])
def test_it_goes_on_from_its_state_after_any_batch(tmp_path, kind):
    data = prepare_data(streamed(write(tmp_path / "data", kind, ROWS)), context=64)
    whole = list(islice(batches_of(data), 40))
    endless = batches_of(data)
    for taken in range(1, 33):
        next(endless)
        state = json.loads(json.dumps(endless.state_dict()))
        resumed = batches_of(data, state, taken)
        assert all(map(same, islice(resumed, 5), whole[taken : taken + 5])), taken
        assert resumed.notes()[0].startswith("train: ")
    assert resumed.notes() == (list(islice(endless, 5)), endless.notes())[1]


def test_what_is_left_out_is_counted(tmp_path):
    rows = [("a", "b"), ("", "c"), ("long " * 20, "d"), (" x ", "y" * 30), ("e", "f")] * 4
    config = streamed(
        write(tmp_path / "data", "json", rows, files=1), empty="drop", max_tokens=40, max_length_ratio=8.0
    )
    data = prepare_data(config, context=64)
    batches = batches_of(data)
    found = texts(data, [next(batches) for _ in range(2)])
    assert set(found) == {("a", "b"), ("e", "f")}
    notes = batches.notes()
    assert notes[0] == "train: 20 rows of the stream read"
    for words in (
        "train: 4 rows with an empty side or without text left out",
        "train: 8 pairs with white space around a text, which is removed",
        "train: 4 pairs over 40 tokens per side dropped",
        "train: 4 pairs with one side over 8 times the other dropped",
    ):
        assert words in notes


def test_the_first_rows_are_the_limit_and_train_the_tokenizer(tmp_path):
    config = streamed(write(tmp_path / "data", "json", ROWS, files=1), limit=LimitConfig(train=12))
    config.tokenizer = TokenizerConfig(kind="char", rows=2)
    data = prepare_data(config, context=64)
    own = Tokenizer.train(CHAR, [text for row in ROWS[:2] for text in row], word_initial_space=True)
    assert data.tokenizer.to_json() == own.to_json()
    assert data.notes[0] == "tokenizer: trained on the first 2 rows of the stream, or all if it has fewer"
    assert sum(len(batch.rows) for batch in one_pass(data, 24)) == 24


def test_evenly_spaced_rows_train_the_tokenizer_of_a_prepared_split(tmp_path):
    config = write(tmp_path / "data", "json", ROWS, files=1)
    whole = prepare_data(config, context=64)
    config.tokenizer = TokenizerConfig(kind="char", rows=47)
    assert prepare_data(config, context=64).notes == whole.notes
    config.tokenizer = TokenizerConfig(kind="char", rows=5)
    data = prepare_data(config, context=64)
    # Of 47 rows in five stretches, the last of each.
    rows = [int(np.ceil(47 * (place + 1) / 5)) - 1 for place in range(5)]
    own = Tokenizer.train(CHAR, [text for row in rows for text in ROWS[row]], word_initial_space=True)
    assert data.tokenizer.to_json() == own.to_json()
    assert data.notes[0] == "tokenizer: trained on 5 of 47 rows, evenly spaced"


def test_documents_are_cut_into_windows_and_each_ends_with_its_token(tmp_path):
    for split, count in (("train", 30), ("valid", 2)):
        lines = (json.dumps({"text": f"document {n} of several" * (1 + n % 3)}) + "\n" for n in range(count))
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    config = DatasetConfig(path=str(tmp_path), task="lm", format="json", tokenizer=CHAR, buffer=8, streaming=True)
    data = prepare_data(config, context=16)
    assert data.tokenizer.ends_documents
    text = ""
    windows = []
    for batch in islice(batches_of(data, context=16), 30):
        assert torch.equal(batch.target_in_BT[:, 1:], batch.target_out_BT[:, :-1])
        windows += batch.target_in_BT.tolist()
    end = data.tokenizer.eos
    spelt = ["".join("|" if token == end else data.tokenizer.decode([token]) for token in row) for row in windows]
    text = "".join(f"document {n} of several" * (1 + n % 3) + "|" for n in range(30))
    assert all(window in text for window in spelt)
    assert sum("|" in window for window in spelt) > 5


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ([("a", "b"), ("", "c")], {}, r"the training stream of dataset 'custom', row 2: a side is empty .*empty=drop"),
        ([("", "c")] * 3, {"empty": "drop"}, "no row of the training stream of dataset 'custom' can be trained on"),
        ([("a" * 50, "b" * 50)], {"max_tokens": 4}, "no row of the training stream of dataset 'custom' can be trained"),
        (ROWS, {"source": "sorce"}, "dataset.source: column 'sorce' is not in"),
        (ROWS, {"splits": None}, "has no validation split .* none can be cut from the end of a stream"),
        (ROWS, {"splits": None, "valid_fraction": 0.1}, "dataset.valid_fraction=0.1 cannot cut one from the end of a"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_one_line(tmp_path, rows, changes, words):
    config = streamed(write(tmp_path / "data", "json", rows, files=1), **{k: v for k, v in changes.items() if v})
    if "splits" in changes:
        (tmp_path / "data/valid.jsonl").unlink()
    with pytest.raises(UserError, match=words):
        next(batches_of(prepare_data(config, context=64)))


def test_sides_of_unequal_length_stop_the_run_where_the_shorter_ends(tmp_path):
    config = streamed(write(tmp_path / "data", "parallel", ROWS, files=1))
    with open(tmp_path / "data/train-0.target", "a") as file:
        file.write("one more\n")
    config.tokenizer = TokenizerConfig(kind="char", rows=5)
    with pytest.raises(UserError, match=r"has 47 lines and .* has 48"):
        one_pass(prepare_data(config, context=64), 94)


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    config = streamed(write(tmp_path / "data", "json", ROWS, files=1))
    before = prepare_data(config, context=64).corpus
    assert prepare_data(config, context=64).corpus == before
    with open(tmp_path / "data/train-0.jsonl", "a") as file:
        file.write(json.dumps({"source": "a", "target": "b"}) + "\n")
    assert prepare_data(config, context=64).corpus != before


def test_a_file_is_compared_at_even_distances_and_by_its_name(tmp_path):
    config = DatasetConfig(path="unread", format="json")
    paths = [tmp_path / name for name in ("one/train.jsonl", "two/train.jsonl", "two/more.jsonl")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(7 << 20))
    before = local_stream(config, paths)[0].files
    assert list(before) == ["one/train.jsonl", "two/train.jsonl", "more.jsonl"]
    for start in (1 << 20, 3 << 20, (5 << 20) + 12345):
        with open(paths[2], "r+b") as file:
            file.seek(start)
            file.write(bytes([1]) * (1 << 19))
        after = local_stream(config, paths)[0].files
        assert [name for name in before if before[name] != after[name]] == ["more.jsonl"]
        paths[2].write_bytes(bytes(7 << 20))
    assert local_stream(config, paths)[0].files == before


TINY = ["model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dataset.format=text", "dataset.task=lm", "model=gpt_nano", "dataset.metrics=[]"], "a whole file is one"),
        (["dataset=normalize", "dataset.path=null"], "dataset 'normalize' has neither"),
        (["dataset.task=lm", "model=gpt_nano", "dataset.metrics=[]", "dataset.join=x"], "makes one text of all rows"),
        (["technique=shuffle", "technique.shuffle.examples=by_length"], "orders the batches of a whole epoch"),
        (
            ["technique=prune", "technique.prune.structure.vocabulary=true"],
            "is streamed, and .* needs all of its tokens",
        ),
    ],
)
def test_what_a_stream_cannot_do_is_refused_in_words(tmp_path, words, message):
    write(tmp_path / "data", "json", ROWS)
    base = ["dataset=json", f"dataset.path={tmp_path / 'data'}", *TINY[: 3 if "model=gpt_nano" in words else None]]

    with pytest.raises(UserError, match=message):
        Setup(compose([*base, "dataset.streaming=true", "trainer.budget.steps=2", *words])).prepare({})


@pytest.mark.parametrize("mix", [False, True])
def test_texts_that_a_technique_would_change_are_refused(tmp_path, mix):
    config = write(tmp_path / "data", "json", ROWS)
    if mix:
        config = compose([f"dataset.mix=[{{dataset: json, path: {tmp_path / 'data'}}}]"]).dataset
    with pytest.raises(UserError, match="changes all training texts"):
        prepare_data(config if mix else streamed(config), context=64, transform=lambda corpus: corpus)


def test_the_most_demanding_batches_are_of_the_first_rows_read(tmp_path):
    config = streamed(write(tmp_path / "data", "json", ROWS, files=1))
    data = prepare_data(config, context=64)
    options = {"batch_tokens": 90, "context": 64, "seed": 3}
    longest, widest = demanding_batches(data.splits["train"], data.tokenizer, **options)
    rows = {source.strip() for source, _ in ROWS[:10]}
    assert all(source in rows for source, _ in texts(data, [longest, widest]))
    assert len(widest.rows) >= len(longest.rows)
    assert longest.positions / len(longest.rows) >= widest.positions / len(widest.rows)
    first = prepare_data(config, context=64)
    mixture = Mixture(["a", "b"], [1.0, 1.0], [data.splits["train"], first.splits["train"]])
    assert len(demanding_batches(mixture, data.tokenizer, **options)) == 4
