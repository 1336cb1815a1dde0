"""Rows of tables: every value as it is written, no row lost, no object learned as Python spells it."""

import csv
import datetime
import io
import json

import pytest
from datasets import Dataset

from tfx.config.schema import DatasetConfig
from tfx.data.corpus import load_corpus
from tfx.data.table_rows import csv_rows, json_rows, text_of
from tfx.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))


def rows_of(tmp_path, name: str, text: str):
    file = tmp_path / name
    file.write_text(text, encoding="utf-8", newline="")
    notes: list[str] = []
    read = json_rows if name.endswith("json") else csv_rows
    return [row for _, row in read(file, notes)], notes


# --- tab separated ----------------------------------------------------------------------------------


def test_a_quotation_mark_in_a_tsv_file_swallows_no_row(tmp_path):
    text = "a\tb\n" + '"Well\tx\n' + "he said\ty\n" * 20 + 'and left"\tz\n'
    rows, notes = rows_of(tmp_path, "t.tsv", text)
    assert len(rows) == 22
    assert rows[0] == {"a": '"Well', "b": "x"}
    assert notes == ["t.tsv: 1 cells begin with a quotation mark, which is read as text"]


def test_quotes_of_a_spreadsheet_are_taken_off_in_a_tsv_file(tmp_path):
    rows, notes = rows_of(tmp_path, "t.tsv", 'a\tb\n"say ""hi"""\tx\n"u, v"\ty\n')
    assert rows == [{"a": 'say "hi"', "b": "x"}, {"a": "u, v", "b": "y"}]
    assert notes == ["t.tsv: 2 cells have double quotes around them, which are removed"]


@pytest.mark.parametrize(
    ("rows", "cell"),
    [
        (['"Stop!"\tx', "go\ty"], '"Stop!"'),
        (['"Stop, now"\tx', "go\ty"], '"Stop, now"'),
        (['"Stop!"\tx', '"say ""hi"""\ty'], '"Stop!"'),
        (['"Stop!"\t"x"', '"go"\t"y"'], '"Stop!"'),  # all cells, but not the header
        (['"Stop!"\tx', '"""go"""\ty', '"a"\t"b"'], '"Stop!"'),
    ],
)
def test_quotes_of_a_sentence_stay_in_a_tsv_file(rows, cell, tmp_path):
    read, notes = rows_of(tmp_path, "t.tsv", "a\tb\n" + "\n".join(rows))
    assert read[0]["a"] == cell
    assert notes[0].endswith("cells begin with a quotation mark, which is read as text")


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_MINIMAL])
def test_a_tsv_file_of_a_csv_writer_is_read_back(quoting, tmp_path):
    rows = [{"a": 'say "hi"', "b": 1.5}, {"a": "x", "b": -2}, {"a": '"y"', "b": 3}]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ["a", "b"], delimiter="\t", quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    read, notes = rows_of(tmp_path, "t.tsv", buffer.getvalue())
    assert [row["a"] for row in read] == ['say "hi"', "x", '"y"']
    assert "cells have double quotes around them, which are removed" in notes[0]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.json"])
def test_a_carriage_return_ends_a_line_and_is_counted(name, tmp_path):
    sep = "," if name.endswith("csv") else "\t"
    text = {"t.json": '{"a": "1"}\r{"a": "2"}\r\n{"a": "3"}\n'}.get(name, f"a{sep}b\r1{sep}x\r\n2{sep}y\r3{sep}z\n")
    rows, notes = rows_of(tmp_path, name, text)
    assert [row["a"] for row in rows] == ["1", "2", "3"]
    assert notes == [f"{name}: {1 if name == 't.json' else 2} lines end in \\r alone, which is read as a line end"]


def test_a_carriage_return_in_a_quoted_cell_is_text(tmp_path):
    rows, notes = rows_of(tmp_path, "t.csv", 'a,b\n"1\rx\r\ny",2\n')
    assert rows == [{"a": "1\rx\r\ny", "b": "2"}]
    assert not any("alone" in note for note in notes)


def test_a_quoted_cell_with_a_line_end_is_read_and_said(tmp_path):
    for name, sep in (("t.tsv", "\t"), ("t.csv", ",")):
        rows, notes = rows_of(tmp_path, name, f'a{sep}b\n"one\ntwo"{sep}x\nc{sep}d\n')
        assert rows == [{"a": "one\ntwo", "b": "x"}, {"a": "c", "b": "d"}]
        assert notes[0].startswith(f"{name}: 1 row over several lines, the first from line 2 on")


def test_a_ragged_tsv_file_names_the_line(tmp_path):
    with pytest.raises(UserError, match=r"t\.tsv, line 3: 3 cells under a header of 2"):
        rows_of(tmp_path, "t.tsv", 'a\tb\n"c\td\ne\tf\tg\n')


def test_a_line_cut_by_a_carriage_return_names_it(tmp_path):
    with pytest.raises(UserError, match=r"line 3: 1 cells under a header of 2.*t\.tsv: 1 lines end in \\r alone"):
        rows_of(tmp_path, "t.tsv", "a\tb\n1\t2\nx\ry\tz\n")


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_two_columns_of_one_name_are_an_error(name, tmp_path):
    sep = "," if name.endswith("csv") else "\t"
    with pytest.raises(UserError, match="line 1: two columns are named 'b': rename one"):
        rows_of(tmp_path, name, sep.join("abb") + "\n" + sep.join("123") + "\n")


def test_a_byte_order_mark_that_begins_a_line_is_said(tmp_path):
    for name, text in (("t.csv", "a,b\n1,\ufeff2\n\ufeffa,b\n"), ("t.tsv", "a\tb\n1\t2\n\ufeffa\tb\n")):
        rows, notes = rows_of(tmp_path, name, text)
        assert rows[-1]["a"].startswith("\ufeff")
        assert notes == [f"{name}: 1 byte order marks (U+FEFF) begin lines, the first line 3, and are taken as text"]


def test_blank_lines_are_counted(tmp_path):
    rows, notes = rows_of(tmp_path, "t.csv", "a,b\n1,2\n\n\n3,4\n")
    assert [row["a"] for row in rows] == ["1", "3"]
    assert notes == ["t.csv: 2 blank lines left out"]


# --- JSON -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("7", "7"), ("-0", "-0"), ("1.50", "1.50"), ("1E400", "1E400"), ("true", "true"), ("false", "false"),
        ('"True"', "True"), ("null", ""), ("NaN", ""), ("12345678901234567890123", "12345678901234567890123"),
    ],
)  # fmt: skip
def test_a_value_is_the_text_that_json_writes(written, text, tmp_path):
    (row,), _ = rows_of(tmp_path, "t.json", f'{{"a": {written}}}')
    assert text_of(row["a"]) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"), (0.1, "0.1"), (float("nan"), ""), (b"caf\xc3\xa9", "café"),
        (datetime.date(2020, 1, 2), "2020-01-02"), (datetime.datetime(2020, 1, 2, 3, 4), "2020-01-02T03:04:00"),
    ],
)  # fmt: skip
def test_values_of_typed_columns_are_no_python(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize("value", [{"a": 1}, [1], b"\xff", {}, float("inf"), datetime.timedelta(1), object()])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(ValueError, match=r"not text|decode"):
        text_of(value)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"s": "a", "t": {"x": 1}}], {}, r"line 1: dataset\.target=t: an object is not text: name one .* such as x"),
        ([{"s": "a", "t": "b"}, {"s": ["a"], "t": "b"}], {}, r"line 2: dataset\.source=s: a list is not text"),
        ([{"s": "a", "t": [["b"]]}], {}, r"line 1: dataset\.target=t: a list is not text"),
        ([{"s": "a", "t": [{"x": "b"}]}], {"target": "t.x"}, r"'t\.x' leads through a list \(at 'x'\)"),
        ([{"s": "a", "t": "b"}], {"source": "{s} {t.x}"}, "t.x"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_objects_and_lists_are_never_learned_as_text(kind, rows, options, message, tmp_path):
    rows = rows * 4 if len(rows) == 1 else rows * 2
    file = tmp_path / f"t.{kind}"
    if kind == "json":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        if len({type(row["s"]) for row in rows}) > 1:
            pytest.skip("a column of Parquet has one type")
        Dataset.from_list(rows).to_parquet(file)
        message = message.replace("line 1: ", "").replace(": an", ", row 1: an").replace(": a list", ", row 1: a list")
    config = DatasetConfig(**{"path": str(file), "format": kind, "source": "s", "target": "t", **options})
    config.valid_fraction = 0.5
    with pytest.raises(UserError, match=message):
        load_corpus(config)


def test_a_half_surrogate_in_a_list_is_found_in_its_line(tmp_path):
    text = '[\n {"a": "x"},\n\n {"a": "\\ud83d\\ude00"},\n {"a": "\\ud800"}\n]'
    with pytest.raises(UserError, match="line 5: half of a surrogate pair"):
        rows_of(tmp_path, "t.json", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}\n{"a": 2}]', "line 2: not JSON: ',' or ']' is missing"),
        ('[{"a": 1},\n{"a": }]', "line 2: not JSON"),
        ('[{"a": 1}]\n[]', "line 2: there is more after the list"),
        ('{"a": 1}\n{"a": 1, "a": 2}', "line 2: not JSON .the key 'a' is repeated"),
        ('{"a": Infinity}', "line 1: not JSON .Infinity is not a JSON value"),
        ('[{"a": 1},\n7]', "line 2: 7 is not an object"),
    ],
)
def test_broken_json_names_its_line(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        rows_of(tmp_path, "t.json", text)


@pytest.mark.parametrize("text", ["[]", " [ ] ", '[{"a":"1"}]', '\n[ {"a":"1"} , {"a":"2"} ]\n'])
def test_a_list_is_read_as_json_reads_it(text, tmp_path):
    assert rows_of(tmp_path, "t.json", text)[0] == json.loads(text)


# --- what a corpus says -----------------------------------------------------------------------------


def corpus_of(tmp_path, **options):
    return load_corpus(DatasetConfig(path=str(tmp_path / "d"), format="json", source="s", target="t", **options))


def test_a_corpus_names_its_files_its_repetitions_and_what_it_strips(tmp_path):
    (tmp_path / "d").mkdir()
    train = [{"s": "a", "t": "b"}, {"s": "a", "t": "b"}, {"s": " c", "t": "d"}]
    test = [{"s": "a", "t": "b"}, {"s": "x", "t": "e\u0301"}]
    for name, rows in (("train", train), ("dev", test[1:]), ("test", test)):
        (tmp_path / "d" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = corpus_of(tmp_path)
    assert {split: [(f.file, f.rows) for f in files] for split, files in corpus.files.items()} == {
        "train": [("train.jsonl", 3)], "valid": [("dev.jsonl", 1)], "test": [("test.jsonl", 2)],
    }  # fmt: skip
    assert corpus.notes[0] == "train: 1 pair with white space around a text, which is removed"
    assert corpus.notes[1].startswith("valid: 0 sources and the targets of 1 pairs are not in Unicode's composed form")
    assert corpus.notes[3] == "train: 1 row repeats another of the split, and is kept"
    assert corpus.notes[4] == "test: 1 row is also in train, and is kept"


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_what_is_left_empty_out_or_unlike_is_counted_in_every_split(kind, tmp_path):
    (tmp_path / "d").mkdir()
    rows = [
        {"a": "x", "b": None, "t": ["one", "two"]},
        {"a": "y", "b": "z", "t": ["three", "", "e\u0301"]},
        {"a": "e\u0301", "b": "z", "t": [" four"]},
    ]
    if kind == "json":
        (tmp_path / "d" / "train.json").write_text(json.dumps(rows))
    else:
        Dataset.from_list(rows).to_parquet(tmp_path / "d" / "train.parquet")
    config = DatasetConfig(path=str(tmp_path / "d"), format=kind, source="{a} {b}", target="t", valid_fraction=0.33)
    for _ in range(2):  # the second time from the cache
        corpus = load_corpus(config)
        assert corpus.splits["train"]["references"] == [["one", "two"], ["three", "e\u0301"]]
        assert corpus.notes[1:5] == [
            "train: 1 row without a value of a template, which is left empty",
            "train: 1 pair with white space around a text, which is removed",
            "train: 1 pair with empty references besides others, which are left out",
            "train: 2 pairs with several targets, of which only the first trains",
        ]
        assert corpus.notes[5].startswith("train: 0 sources and the targets of 1 pairs are not in Unicode's composed")
        assert corpus.notes[6] == "valid: 1 pair with white space around a text, which is removed"
        assert corpus.notes[7].startswith("valid: 1 sources and the targets of 0 pairs are not in Unicode's composed")
        assert len(corpus.notes) == 8


def test_bytes_that_are_read_as_text_are_counted(tmp_path):
    Dataset.from_dict({"text": [b"a", b"\xc3\xa9", b"c"]}).to_parquet(tmp_path / "d.parquet")
    corpus = load_corpus(DatasetConfig(path=str(tmp_path), format="parquet", task="lm", valid_fraction=0.33))
    assert corpus.splits["train"]["text"] == ["a", "\u00e9"]
    assert "train: 2 rows with bytes instead of text, which are read as UTF-8" in corpus.notes


def test_one_example_is_not_said_to_be_none(tmp_path):
    (tmp_path / "d").write_text('{"s": "a", "t": "b"}')
    for fraction, says in ((0.05, "cuts all"), (1e-9, "keeps none")):
        with pytest.raises(UserError, match=rf"{fraction} {says} of the training examples of dataset '\w+' \(1\)"):
            corpus_of(tmp_path, valid_fraction=fraction)


def test_a_misspelt_column_among_many_shows_columns(tmp_path):
    row = {f"column{number}": "x" for number in range(30)}
    (tmp_path / "d").write_text("\n".join([json.dumps(row)] * 4))
    with pytest.raises(UserError, match=r"column 's' is not in .*: choose one of column0, column1, .* … \(30 in all\)"):
        corpus_of(tmp_path, valid_fraction=0.5)
