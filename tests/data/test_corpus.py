"""What can be wrong with data: each fault is one line that names the file and the remedy, or is read right."""

import gzip
import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tfx.config.schema import DatasetConfig, LimitConfig, SplitConfig
from tfx.data.corpus import load_corpus
from tfx.errors import UserError

REPOSITORY = Path(__file__).parents[2]
PAIR = {"source": "a", "target": "b"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))


def write(tmp_path: Path, files: dict[str, str | bytes]) -> str:
    folder = tmp_path / "data"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(tmp_path: Path, files: dict[str, str | bytes], **options):
    """The corpus of files; half of the rows of the training split are the validation split where there is none."""
    return load_corpus(DatasetConfig(**{"path": write(tmp_path, files), "valid_fraction": 0.5, **options}))


def pairs(corpus) -> list[tuple[str, str]]:
    return [(row["source"], row["target"]) for dataset in corpus.splits.values() for row in dataset]


def parallel(source: str | bytes, target: str | bytes, split: str = "train") -> dict[str, str | bytes]:
    return {f"{split}.en": source, f"{split}.de": target}


SIDES = {"format": "parallel", "source": "en", "target": "de"}

# --- aligned files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        pytest.param("a\nb\n", "c\nd\n", [("a", "c"), ("b", "d")], id="plain"),
        pytest.param("a\nb", "c\nd\n", [("a", "c"), ("b", "d")], id="no last line end"),
        pytest.param("a\r\nb\r\n", "c\nd\n", [("a", "c"), ("b", "d")], id="CRLF"),
        pytest.param(b"\xef\xbb\xbfa\nb\n", "c\nd\n", [("a", "c"), ("b", "d")], id="byte order mark"),
        pytest.param(
            "a\u2028x\nb\x0b\x0cx\n", "c\u0085x\nd\n", [("a\u2028x", "c\u0085x"), ("b\x0b\x0cx", "d")], id="U+2028"
        ),
        pytest.param("  a \nb\t\n", "c\nd\n", [("a", "c"), ("b", "d")], id="surrounding white space"),
    ],
)
def test_aligned_lines_stay_aligned(tmp_path, source, target, expected):
    assert pairs(load(tmp_path, parallel(source, target), **SIDES)) == expected


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (parallel("a\nb\0\n", "c\nd\n"), ["train.en, line 2", "NUL"]),
        (parallel("a\nb\n".encode("utf-16"), "c\nd\n"), ["train.en", "UTF-16"]),
        (parallel("c\nd\n", "a\né\n".encode("latin-1")), ["train.de, line 2", "not UTF-8 (byte 0xe9)", "convert"]),
        (parallel("a\nb\nc\n", "c\nd\n"), ["train.en has 3 lines", "train.de has 2"]),
        (parallel("", ""), ["train split", "empty"]),
        (parallel("a\nb\n", "c\nd\n") | parallel("", "", "valid"), ["valid split", "empty"]),
        (
            parallel("a\nb\n", "c\nd\n") | parallel("a\n", "\n", "test"),
            ["test split", "example 1", "target is empty", "drop"],
        ),
        ({"train.en": "a\n"}, ["train.de is missing", "dataset.target"]),
        ({"train.fr": "a\n"}, ["holds no file", "*.en, *.de"]),
        (parallel("a\n", "b\n", "valid"), ["no training split", "dataset.splits.train"]),
    ],
)
def test_faulty_aligned_files_are_refused(tmp_path, files, says):
    with pytest.raises(UserError) as caught:
        load(tmp_path, files, **SIDES)
    assert all(words in str(caught.value) for words in says), caught.value
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pairs_with_an_empty_side_are_dropped_and_counted(tmp_path):
    corpus = load(
        tmp_path, parallel("a\n \nc\nd\n", "x\ny\n\nz\n") | parallel("a\n", "b\n", "valid"), **SIDES, empty="drop"
    )
    assert pairs(corpus) == [("a", "x"), ("d", "z"), ("a", "b")]
    assert "train: 2 pairs with an empty side dropped" in corpus.notes


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_side_that_names_a_folder_is_refused(tmp_path, side):
    with pytest.raises(UserError, match=f"dataset.{side}=../../etc/passwd is not the suffix of a file"):
        load(tmp_path, parallel("a\n", "b\n"), **SIDES | {side: "../../etc/passwd"})


def test_suffixes_may_have_points_and_sides_must_differ(tmp_path):
    files = {"train.tok.en": "a\nb\n", "train.tok.de": "c\nd\n"}
    assert pairs(load(tmp_path, files, format="parallel", source="tok.en", target=".tok.de")) == [
        ("a", "c"),
        ("b", "d"),
    ]
    with pytest.raises(UserError, match="both 'en'"):
        load(tmp_path, parallel("a\n", "b\n"), format="parallel", source="en", target="en")


@pytest.mark.parametrize("named", ["train.en", "*.en"])
def test_a_change_of_the_side_that_is_not_named_changes_the_fingerprint(tmp_path, named):
    folder = write(tmp_path, parallel("a\nb\n", "c\nd\n"))
    config = DatasetConfig(path=f"{folder}/{named}", valid_fraction=0.5, **SIDES)
    before = load_corpus(config)
    Path(folder, "train.de").write_text("c\ne\n")
    after = load_corpus(config)
    assert pairs(after) == [("a", "c"), ("b", "e")]
    assert before.fingerprint != after.fingerprint


# --- finding files ----------------------------------------------------------------------------------


def test_joined_files_are_named_with_their_rows(tmp_path):
    files = {"a.json": lines(PAIR), "b.json": lines({"source": "c", "target": "d"}, {"source": "e", "target": "f"})}
    assert load(tmp_path, files, format="json").notes[:2] == [
        "train: no name matches a split, so all 2 files are training data",
        "train: 2 files joined: a.json (1 row), b.json (2 rows)",
    ]


@pytest.mark.parametrize(("mask", "what"), [(True, "kept apart, each a document"), (False, "joined")])
def test_texts_are_told_by_what_happens_to_them(tmp_path, mask, what):
    found = load(tmp_path, {"a.txt": "one\n", "b.txt": "two\n"}, task="lm", format="text", document_mask=mask)
    assert f"train: 2 files {what}: a.txt" in " ".join(found.notes)


def test_files_of_one_name_are_told_by_their_folders(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.json").write_text(lines(PAIR, PAIR))
    files = load_corpus(DatasetConfig(path=str(tmp_path), format="json", valid_fraction=0.5)).files
    assert {split: [file.file for file in found] for split, found in files.items()} == {
        "train": ["train/a.json"],
        "test": ["test/a.json"],
    }


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("none", "does not exist"),
        ("*.foo", "matches no file"),
        ("train.txt/x", "does not exist"),
        ("loop", "does not exist"),
        ("/dev/null", "is a pipe or a device"),
        ("sub", "holds no file"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_a_path_without_files_is_refused(tmp_path, path, says):
    folder = Path(write(tmp_path, {"train.txt": "text"}))
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "sub").mkdir()
    with pytest.raises(UserError, match=says):
        load_corpus(DatasetConfig(task="lm", format="text", path=str(folder / path), valid_fraction=0.5))


def test_a_folder_in_the_place_of_a_file_is_passed_over(tmp_path):
    folder = Path(write(tmp_path, {"train.txt": "text"}))
    (folder / "valid.txt").mkdir()
    corpus = load_corpus(DatasetConfig(task="lm", format="text", path=str(folder), valid_fraction=0.5))
    assert corpus.splits["valid"]["text"][:] == ["xt"]


def test_a_glob_over_a_loop_of_links_finds_each_file_once(tmp_path):
    folder = Path(write(tmp_path, {"one.txt": "1", "two.txt": "2"}))
    (folder / "again").symlink_to(folder)
    corpus = load_corpus(DatasetConfig(task="lm", format="text", path=f"{folder}/**/*.txt", valid_fraction=0.5))
    assert [corpus.splits[name]["text"][:] for name in ("train", "valid")] == [["1"], ["2"]]


def test_splits_are_found_by_name_and_by_shard(tmp_path):
    files = {f"{stem}.txt": stem for stem in ("train-1", "train-2", "dev", "my_test", "README", "other")}
    corpus = load(tmp_path, files, task="lm", format="text", splits=SplitConfig(test=["none", "my_test"]))
    assert {name: dataset["text"][:] for name, dataset in corpus.splits.items()} == {
        "train": ["train-1", "train-2"],
        "valid": ["dev"],
        "test": ["my_test"],
    }


# --- text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "a"])
def test_a_text_too_short_for_two_splits_is_refused(tmp_path, content):
    with pytest.raises(UserError, match=r"train split .* is empty"):
        load(tmp_path, {"train.txt": content}, task="lm", format="text")


def test_the_end_of_a_text_is_cut_off_as_in_nanogpt(tmp_path):
    text = "0123456789" * 100 + "rest of it"
    corpus = load(tmp_path, {"input.txt": text}, task="lm", format="text", valid_fraction=0.1)
    end = int(0.9 * len(text))
    assert corpus.splits["train"]["text"][:] == [text[:end]]
    assert corpus.splits["valid"]["text"][:] == [text[end:]]
    assert "test" not in corpus.splits


@pytest.mark.parametrize(
    ("fraction", "length", "valid"), [(0.1, 100, 10), (0.9, 100, 90), (0.3, 10, 3), (0.05, 163, 9)]
)
def test_the_last_pairs_are_cut_off(tmp_path, fraction, length, valid):
    files = parallel(*("".join(f"{side}{row}\n" for row in range(length)) for side in "st"))
    corpus = load(tmp_path, files, **SIDES, valid_fraction=fraction)
    assert len(corpus.splits["valid"]) == valid
    assert pairs(corpus) == [(f"s{row}", f"t{row}") for row in range(length)]


def test_a_missing_validation_split_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match=r"no validation split .*dataset\.splits\.valid.*dataset\.valid_fraction"):
        load(tmp_path, {"train.txt": "text"}, task="lm", format="text", valid_fraction=0)


@pytest.mark.parametrize(
    ("split", "names", "is_said"), [("valid", ["nope"], True), ("test", ["train"], True), ("valid", ["valid"], False)]
)
def test_a_name_of_a_split_that_no_file_has_is_said(tmp_path, split, names, is_said):
    files = {f"{name}.txt": f"{name}\n" for name in ("train", "valid", "test")}
    corpus = load(tmp_path, files, task="lm", format="text", splits=SplitConfig(**{split: names}))
    said = f"{split}: no other file is named {names[0]}, so {split}.txt is taken"
    assert (said in corpus.notes) == is_said


def test_limits_take_the_first_examples_of_each_split(tmp_path):
    files = {
        f"{split}.jsonl": lines(*({"text": f"{split}{row}"} for row in range(5)))
        for split in ("train", "valid", "test")
    }
    corpus = load(tmp_path, files, task="lm", format="json", limit=LimitConfig(train=2, valid=3, test=9))
    assert [len(corpus.splits[name]) for name in ("train", "valid", "test")] == [2, 3, 5]
    assert corpus.splits["train"]["text"][:] == ["train0", "train1"]
    assert corpus.notes == ["train: the first 2 of 5 examples", "valid: the first 3 of 5 examples"]


def test_a_limit_of_texts_on_a_single_text_is_said_to_do_nothing(tmp_path):
    files = {"train.txt": "one\ntwo\nthree\n", "valid.txt": "four\n"}
    corpus = load(tmp_path, files, task="lm", format="text", limit=LimitConfig(train=2))
    said = [note for note in corpus.notes if "limit" in note]
    assert said == ["dataset.limit.train=2 has no effect: it counts texts, a file or a row each, and there is one"]


def test_one_line_of_20_megabytes_is_read(tmp_path):
    long = "ab " * 7_000_000
    assert pairs(load(tmp_path, parallel(f"{long}\nx\n", "y\nz\n"), **SIDES)) == [(long.strip(), "y"), ("x", "z")]
    row = f'source,target\n"{long}",y\nx,z\n'
    assert pairs(load(tmp_path / "data", {"a.csv": row}, format="csv"))[0][0] == long.strip()


# --- tables -----------------------------------------------------------------------------------------

TABLES = {
    "json": lambda rows: lines(*rows).encode(),
    "list": lambda rows: json.dumps(rows, indent=1).encode(),
    "csv": lambda rows: "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]).encode(),
    "tsv": lambda rows: "\n".join(["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]).encode(),
}


def table(tmp_path: Path, kind: str, rows: list[dict]) -> dict:
    """The files and the format of a table."""
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(tmp_path / "made.parquet")
        return {"files": {"a.parquet": (tmp_path / "made.parquet").read_bytes()}, "format": "parquet"}
    suffix = {"list": "json"}.get(kind, kind)
    return {"files": {f"a.{suffix}": TABLES[kind](rows)}, "format": {"tsv": "csv"}.get(suffix, suffix)}


@pytest.mark.parametrize("kind", [*TABLES, "parquet"])
def test_tables_keep_text_as_it_is_written(tmp_path, kind):
    # Readers that guess types turn these into numbers, missing values and times of the day.
    rows = [{"source": "007", "target": "2021-03-04"}, {"source": "NA", "target": "null"}] * 2
    expected = [(row["source"], row["target"]) for row in rows]
    assert pairs(load(tmp_path, **table(tmp_path, kind, rows))) == expected
    # The names of the settings, not those of the columns, decide which side is which.
    swapped = load(tmp_path, **table(tmp_path, kind, rows), source="target", target="source")
    assert pairs(swapped) == [(target, source) for source, target in expected]


@pytest.mark.parametrize("kind", [*TABLES, "parquet"])
def test_a_missing_column_is_refused_with_a_suggestion(tmp_path, kind):
    with pytest.raises(UserError, match=r"dataset.source: column 'sorce' is not in .*did you mean 'source'") as caught:
        load(tmp_path, **table(tmp_path, kind, [PAIR, PAIR]), source="sorce")
    assert str(tmp_path) in str(caught.value)


ROW = {"n": 1, "x": 2.50, "none": None, "deep": {"a": "A", "b": {"c": "C"}}, "list": ["p", None, "q"], "word": "w"}


@pytest.mark.parametrize("kind", ["json", "parquet"])
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("n", "1"),
        ("x", "2.5"),
        ("deep.a", "A"),
        ("deep.b.c", "C"),
        ("{word}: {deep.b.c}{none} {{n}}", "w: C {n}"),
    ],
)
def test_columns_paths_and_templates(tmp_path, kind, spec, expected):
    corpus = load(tmp_path, **table(tmp_path, kind, [ROW, ROW]), source=spec, target="list")
    assert pairs(corpus) == [(expected, "p")] * 2
    assert corpus.splits["train"]["references"][:] == [["p", "q"]]


@pytest.mark.parametrize("kind", ["json", "parquet"])
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("deep.z", "no 'z'"),
        ("word.a", "no 'a'"),
        ("{deep.z}", "no 'z'"),
        ("{absent} x", "column 'absent'"),
        ("{word.__class__}", "no '__class__'"),
        ("{deep.__class__.__init__}", "no '__class__'"),
        ("{list[0]}", "column 'list"),
        ("{word!r}", "between braces"),
        ("{word:>9}", "between braces"),
        ("{word:{n}}", "between braces"),
        ("{} x", "between braces"),
        ("{word", "not a template"),
        ("none", "source is empty"),
    ],
)
def test_paths_and_templates_reach_nothing_but_the_row(tmp_path, kind, spec, says):
    with pytest.raises(UserError) as caught:
        load(tmp_path, **table(tmp_path, kind, [ROW, ROW]), source=spec, target="word")
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value) or "'" + spec in str(caught.value)


GOOD = lines(PAIR)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", GOOD * 2 + '{"source": "a", "tar\n' + GOOD, "line 3: not JSON"),
        ("a.json", '[\n{"source": "a"},\n{]', "line 3: not JSON"),
        ("a.json", '{"source": "\\ud800", "target": "b"}\n', "line 1: half of a surrogate pair"),
        ("a.json", '"text"\n', 'line 1: "text" is not an object'),
        ("a.json", "[1, 2]", "line 1: 1 is not an object"),
        ("a.json", GOOD.encode() + b'{"source": "\xe9"}', "line 2: not UTF-8"),
        ("a.json", "[" * 100_000, "line 1: not JSON"),
        ("a.json", "{}", "column 'source' is not in"),
        ("a.json", "", "split of dataset 'custom' is empty"),
        ("a.csv", "source,target\na,b\nc,d,e\n", "line 3: 3 cells under a header of 2"),
        ("a.csv", "source,target\na\n", "line 2: 1 cells"),
        ("a.csv", 'source,target\na,"b\nc,d\n', "line 3"),
        ("a.csv", "source,target\n", "split of dataset 'custom' is empty"),
        ("a.csv", "source,target\né,b\n".encode("latin-1"), "line 2: not UTF-8"),
        ("a.csv", "", "split of dataset 'custom' is empty"),
        ("a.csv", "source,target\n,b\nc,d\n", "example 1: the source is empty"),
        ("a.json", '{"source": "a", "target": "b"}\n\n{"source": "c"}\n', "line 3: the key 'target' is missing"),
        ("a.json", '{"data": [{"source": "a", "target": "b"}]}', "rows are a list in one object, under the key 'data'"),
        ("a.parquet", b"PAR1garbagePAR1", "not readable as dataset.format=parquet"),
        ("a.parquet", b"", "not readable as dataset.format=parquet"),
    ],
)
def test_broken_tables_are_refused_with_file_and_line(tmp_path, name, content, says):
    with pytest.raises(UserError) as caught:
        load(tmp_path, {name: content}, format=name.split(".")[1])
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("rows", ["source/target\na/b\n", '"source"/"target"\n"a"/"b"\n', 'source/target\na, b/"b"\n'])
def test_another_separator_is_named(tmp_path, separator, rows):
    content = rows.replace("/", separator)
    with pytest.raises(UserError, match=r"one column: .* separates nothing; commas do in \.csv, tabs in \.tsv"):
        load(tmp_path, {"a.csv": content}, format="csv")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ([{"source": "a", "target": 7}], "column 'target' is text in .*a.parquet and integer in b.parquet"),
        ([{"source": "a", "target": "b", "z": "c"}], "column 'z' is missing in .*a.parquet and text in b.parquet"),
    ],
)
def test_parquet_files_of_other_columns_are_not_joined(tmp_path, other, says):
    for name, rows in (("a", [PAIR]), ("b", other)):
        Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=says):
        load_corpus(DatasetConfig(path=str(tmp_path), format="parquet", valid_fraction=0.5))


def test_compressed_parquet_files_of_one_name_are_each_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Dataset.from_list([{"source": name, "target": name}]).to_parquet(tmp_path / f"{name}.parquet")
        packed = gzip.compress((tmp_path / f"{name}.parquet").read_bytes())
        (tmp_path / name / "train.parquet.gz").write_bytes(packed)
    config = DatasetConfig(path=f"{tmp_path}/*/train.parquet.gz", format="parquet", valid_fraction=0.5)
    assert pairs(load_corpus(config)) == [("a", "a"), ("b", "b")]


def test_two_parquet_columns_of_one_name_are_an_error(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["source", "target", "target"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: two columns are named 'target': rename one"):
        load_corpus(DatasetConfig(path=str(tmp_path), format="parquet", valid_fraction=0.5))


def test_a_parquet_file_without_rows_adds_nothing(tmp_path):
    Dataset.from_list([PAIR] * 2).to_parquet(tmp_path / "a.parquet")
    Dataset.from_list([PAIR]).select([]).to_parquet(tmp_path / "b.parquet")
    config = DatasetConfig(path=str(tmp_path), format="parquet", valid_fraction=0.5)
    assert pairs(load_corpus(config)) == [("a", "b")] * 2
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match="train split of dataset 'custom' is empty"):
        load_corpus(config)


@pytest.mark.parametrize(("kind", "task"), [("parquet", "seq2seq"), ("text", "lm"), ("csv", "seq2seq")])
def test_a_pointer_of_git_lfs_is_not_the_data(tmp_path, kind, task):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    with pytest.raises(UserError, match=r"is a pointer of Git LFS .*git lfs pull"):
        load(tmp_path, {f"a.{kind}" if kind != "text" else "a.txt": pointer}, format=kind, task=task)


def test_quoted_cells_hold_line_ends_and_separators(tmp_path):
    content = '\ufeffsource,target\r\n"a, ""b""","c\r\nd"\r\n\r\ne,f\r\n'
    assert pairs(load(tmp_path, {"a.csv": content}, format="csv")) == [('a, "b"', "c\r\nd"), ("e", "f")]


def test_a_number_with_a_point_keeps_its_spelling(tmp_path):
    assert (
        pairs(load(tmp_path, {"a.json": '{"source": 1.50, "target": 7}\n' * 2}, format="json")) == [("1.50", "7")] * 2
    )


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_row_without_text_is_left_out_and_zero_is_not(tmp_path, kind):
    made = table(tmp_path, kind, [{"text": 0}, {"text": None}, {"text": 3}, {"text": 4}])
    corpus = load(tmp_path, **made, task="lm", valid_fraction=0.4)
    assert [row for dataset in corpus.splits.values() for row in dataset["text"][:]] == ["0", "3", "4"]
    assert "train: 1 row without text left out" in corpus.notes


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_rows_are_joined_into_one_text(tmp_path, kind):
    rows = [{"text": text} for text in ["a\n", "", "b", "c", "d"]]
    corpus = load(tmp_path, **table(tmp_path, kind, rows), task="lm", join="|", valid_fraction=0.4)
    assert corpus.splits["train"]["text"][:] == ["a\n||b"]
    assert corpus.splits["valid"]["text"][:] == ["c|d"]


def test_one_row_of_a_table_is_cut_as_a_text(tmp_path):
    made = table(tmp_path, "parquet", [{"deep": {"play": "0123456789"}}])
    corpus = load(tmp_path, **made, task="lm", text="deep.play", valid_fraction=0.3)
    assert corpus.splits["train"]["text"][:] == ["0123456"]
    assert corpus.splits["valid"]["text"][:] == ["789"]


def test_limits_hold_beside_a_single_text(tmp_path):
    for split, texts in (("train", ["a text"]), ("valid", ["b"] * 2), ("test", ["c", "d", "e"])):
        Dataset.from_dict({"text": texts}).to_parquet(tmp_path / f"{split}.parquet")
    config = DatasetConfig(path=str(tmp_path), format="parquet", task="lm", limit=LimitConfig(test=2))
    assert load_corpus(config).splits["test"]["text"][:] == ["c", "d"]


def test_parquet_that_changed_at_the_same_time_of_day_is_read_anew(tmp_path):
    for text in ("a", "b"):
        made = table(tmp_path, "parquet", [{"source": text, "target": text}] * 2)
        folder = write(tmp_path, made["files"])
        os.utime(Path(folder, "a.parquet"), (1, 1))
        assert (
            pairs(load_corpus(DatasetConfig(path=folder, format="parquet", valid_fraction=0.5))) == [(text, text)] * 2
        )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), min_size=1).filter(
            lambda text: text.strip() and not text.startswith("\ufeff")
        ),
        min_size=2,
        max_size=6,
    )
)
def test_any_text_survives_every_format(tmp_path, texts):
    rows = [{"source": text, "target": "t"} for text in texts]
    stripped = [text.strip() for text in texts]
    files = parallel("\n".join(texts), "t\n" * len(texts)) | {"a.json": lines(*rows)}
    assert [source for source, _ in pairs(load(tmp_path, files, **SIDES))] == stripped
    assert [source for source, _ in pairs(load(tmp_path, files, format="json"))] == stripped


# --- what is read as what ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "text", "task": "seq2seq"}, "dataset.format=parallel"),
        ({"format": "parallel", "task": "lm"}, "is for dataset.task=seq2seq"),
        ({"format": "normalize", "task": "lm", "path": None}, "is for dataset.task=seq2seq"),
        ({"format": "stdlib", "task": "seq2seq", "path": None}, "is for dataset.task=lm"),
        ({"format": "normalize"}, "reads no dataset.path"),
        ({"format": "json", "path": None}, "dataset.path="),
    ],
)
def test_a_format_of_another_task_or_without_its_files_is_refused(tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        load(tmp_path, {"train.txt": "text"}, **options)


@pytest.mark.parametrize(
    "change",
    [
        {"join": ""},
        {"text": "other"},
        {"valid_fraction": 0.25},
        {"limit": LimitConfig(train=1)},
    ],
)
def test_whatever_changes_the_text_changes_the_fingerprint(tmp_path, change):
    files = {"a.json": lines(*({"text": str(row), "other": "o"} for row in range(4)))}
    same = [load(tmp_path, files, format="json", task="lm", name=name).fingerprint for name in "ab"]
    assert same[0] == same[1]
    assert load(tmp_path, files, format="json", task="lm", **change).fingerprint != same[0]


@pytest.mark.parametrize(
    ("name", "content", "fingerprint"),
    [
        ("a.json", '{"source": "007", "target": 1.50}\n{"source": 7, "target": "b"}\n', "95520fa6ff74bbad"),
        ("c.tsv", "source\ttarget\na\tb\nc\td\n", "ea5a5a24ae338630"),
        ("e.csv", "source,target\na,b\nc,d\n", "eca8b1e9e92b5c4a"),
        ("f.txt", "one\ntwo\nthree\n", "1358bbebfc6bb28f"),
    ],
)
def test_data_that_are_read_as_ever_keep_their_fingerprint(tmp_path, name, content, fingerprint):
    kind = {".json": {"format": "json"}, ".txt": {"format": "text", "task": "lm"}}.get(Path(name).suffix)
    folder = write(tmp_path, {name: content})
    config = DatasetConfig(path=f"{folder}/{name}", valid_fraction=0.5, **(kind or {"format": "csv"}))
    assert load_corpus(config).fingerprint[:16] == fingerprint


@pytest.mark.parametrize(
    ("name", "content", "options", "before"),
    [
        ("b.json", '{"source": "007", "target": true}\n{"source": "7", "target": "b"}\n', {}, "1f1e7e3149b3e1ee"),
        ("d2.tsv", 'source\ttarget\n"a"\tb\nc\td\n', {"format": "csv"}, "8c0d4e5848c6f2c7"),
        ("g.txt", "one\r\ntwo\rthree\n", {"format": "text", "task": "lm"}, "97a2ccb4d28137ec"),
    ],
)
def test_data_that_are_read_otherwise_than_before_have_another_fingerprint(tmp_path, name, content, options, before):
    folder = write(tmp_path, {name: content})
    config = DatasetConfig(**{"path": f"{folder}/{name}", "format": "json", "valid_fraction": 0.5, **options})
    assert load_corpus(config).fingerprint[:16] != before


def test_line_ends_are_one_and_counted(tmp_path):
    corpus = load(tmp_path, {"t.txt": "one\r\ntwo\rthree\n"}, format="text", task="lm")
    assert "".join(text for dataset in corpus.splits.values() for text in dataset["text"]) == "one\ntwo\nthree\n"
    assert corpus.notes[:2] == [
        "t.txt: 1 lines end in \\r alone, which is read as a line end",
        "t.txt: 1 lines end in \\r\\n, of which \\n is kept",
    ]
    assert pairs(load(tmp_path, parallel("a\rb\nc\n", "d\r\ne\r\nf\r\n"), **SIDES)) == [
        ("a", "d"),
        ("b", "e"),
        ("c", "f"),
    ]
    with pytest.raises(UserError, match=r"has 3 lines and .* has 2: .*\(train.en: 1 lines end in \\r alone"):
        load(tmp_path, parallel("a\rb\nc\n", "d\ne\n"), **SIDES)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cache folder .* cannot be written .*TFX_CACHE"):
        load(tmp_path, **table(tmp_path, "parquet", [PAIR, PAIR]))


# --- the hub ----------------------------------------------------------------------------------------


def hub(monkeypatch, splits: dict[str, list[dict]]) -> None:
    """Puts tables in the place of what the hub would give."""
    found = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: found)


def test_an_unreachable_hub_is_one_line_that_tells_of_the_path(monkeypatch):
    # HF_HUB_OFFLINE=1, which the library reads only once, when it is imported.
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"cannot be loaded from the hub \(no/such\): .*dataset\.path=") as caught:
        load_corpus(DatasetConfig(hub="no/such"))
    assert "\n" not in str(caught.value)


def test_hub_tables_are_read_by_path_and_template(monkeypatch):
    row = {"id": 1, "translation": {"en": "e", "de": "d"}, "answers": {"text": ["x", "y"]}}
    hub(monkeypatch, {"train": [row] * 3, "validation": [row], "other": [row]})
    corpus = load_corpus(DatasetConfig(hub="some/set", source="q: {translation.en}", target="answers.text"))
    assert {name: len(dataset) for name, dataset in corpus.splits.items()} == {"train": 3, "valid": 1}
    assert corpus.splits["train"][0] == {"source": "q: e", "target": "x", "references": ["x", "y"]}
    assert {split: [(f.file, f.rows) for f in files] for split, files in corpus.files.items()} == {
        "train": [("some/set: train", 3)],
        "valid": [("some/set: validation", 1)],
    }
    assert corpus.notes[0] == "splits of some/set left out: other"


def test_hub_lines_are_joined(monkeypatch):
    hub(
        monkeypatch,
        {
            "train": [{"text": " = A = \n"}, {"text": ""}, {"text": "b\n"}],
            "test": [{"text": "t"}],
            "dev": [{"text": "v"}],
        },
    )
    corpus = load_corpus(DatasetConfig(hub="some/set", task="lm", join=""))
    assert {name: dataset["text"][:] for name, dataset in corpus.splits.items()} == {
        "train": [" = A = \nb\n"],
        "valid": ["v"],
        "test": ["t"],
    }


def test_a_hub_repository_without_the_split_is_refused(monkeypatch):
    hub(monkeypatch, {"training": [PAIR]})
    with pytest.raises(UserError, match=r"no split train .*dataset\.splits\.train.*: did you mean 'training'"):
        load_corpus(DatasetConfig(hub="some/set"))


# --- the embedded sets, the presets and real data ----------------------------------------------------


def preset(name: str, **options) -> DatasetConfig:
    written = OmegaConf.load(REPOSITORY / "conf" / "dataset" / f"{name}.yaml")
    written.pop("defaults", None)  # the model that goes with it
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DatasetConfig), written, options))
    assert isinstance(config, DatasetConfig)
    return config


@pytest.mark.parametrize("path", sorted((REPOSITORY / "conf" / "dataset").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_fits_the_schema_and_says_what_it_is(path):
    from tfx.evaluation.metrics import check_metrics

    config = preset(path.stem)
    written = path.read_text(encoding="utf-8").splitlines()
    assert config.name == path.stem
    assert written[0].startswith("# ")
    assert all("  # " in line or line.endswith(":") for line in written[1:])
    assert max(map(len, written)) <= 120
    check_metrics(config.metrics, config.task)
    assert (config.task == "lm") == (not config.metrics)


@pytest.mark.parametrize("name", ["normalize", "stdlib"])
def test_the_embedded_sets_are_there_without_a_file(name):
    corpus = load_corpus(preset(name))
    assert set(corpus.splits) == {"train", "valid", "test"}
    assert min(map(len, corpus.splits.values())) > 10


TRANSLATION = {"translation": {"de": "zwei Hunde", "en": "two dogs"}}
TRANSLATED = {"source": "two dogs", "target": "zwei Hunde"}
QUESTION = {"id": "5", "title": "t", "context": "A dog ran.", "question": "Who?"}
ANSWERS = {"answers": {"text": ["A dog", "dog"], "answer_start": [0, 2]}}
# Rows as the hub's repositories have them, its splits, and what a run reads of a row.
PRESETS = {
    "multi30k": ({"en": "two dogs", "de": "zwei Hunde"}, ("train", "validation", "test"), TRANSLATED),
    "wmt14_en_de": (TRANSLATION, ("train", "validation", "test"), TRANSLATED),
    "opus_books": ({"id": "0"} | TRANSLATION, ("train",), TRANSLATED),
    "wikitext2": ({"text": " = A = \n"}, ("test", "train", "validation"), {"text": " = A = \n" * 4}),
    "wikitext103": ({"text": " = A = \n"}, ("test", "train", "validation"), {"text": " = A = \n" * 4}),
    "tinystories": ({"text": "Once."}, ("train", "validation"), {"text": "Once."}),
    "tinyshakespeare": ({"text": "First Citizen:\n"}, ("train", "validation", "test"), {"text": "First Citizen:\n"}),
    "cnn_dailymail": (
        {"article": "long", "highlights": "short", "id": "x"},
        ("train", "validation", "test"),
        {"source": "long", "target": "short"},
    ),
    "xsum": (
        {"document": "long", "summary": "short", "id": "x"},
        ("train", "validation", "test"),
        {"source": "long", "target": "short"},
    ),
    "sst2": ({"sentence": "fine", "label": 1, "idx": 0}, ("train", "validation"), {"text": "fine", "labels": ["1"]}),
    "stsb": (
        {"sentence1": "a", "sentence2": "b", "label": 2.5, "idx": 0},
        ("train", "validation"),
        {"text": "a", "pair": "b", "labels": ["2.5"]},
    ),
    "imdb": ({"text": "a film", "label": 0}, ("train", "test"), {"text": "a film", "labels": ["0"]}),
    "ag_news": ({"text": "news", "label": 3}, ("train", "test"), {"text": "news", "labels": ["3"]}),
    "squad": (
        QUESTION | ANSWERS,
        ("train", "validation"),
        {"source": "question: Who? context: A dog ran.", "target": "A dog", "references": ["A dog", "dog"]},
    ),
}


@pytest.mark.parametrize("name", PRESETS)
def test_each_hub_preset_reads_the_rows_of_its_repository(name, monkeypatch):
    row, splits, expected = PRESETS[name]
    asked = []
    found = DatasetDict({split: Dataset.from_list([row] * 4) for split in splits})
    monkeypatch.setattr("datasets.load_dataset", lambda *words, **options: asked.append((words, options)) or found)
    config = preset(name)
    corpus = load_corpus(config)
    ((words, options),) = asked
    assert words == (config.hub, config.hub_config)
    assert options["revision"] == config.hub_revision
    assert set(corpus.splits) == {"train", "valid", *(["test"] if "test" in splits else [])}
    got = corpus.splits["train"][0]
    assert expected.items() <= got.items()


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"multi30k", "wikitext2", "wikitext103", "tinyshakespeare"}))
def test_each_hub_preset_reads_a_local_copy_of_the_repository(name, tmp_path):
    row, splits, expected = PRESETS[name]
    for split in splits:
        Dataset.from_list([row] * 40).to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    corpus = load_corpus(preset(name, path=str(tmp_path)))
    assert set(corpus.splits) == {"train", "valid", *(["test"] if "test" in splits else [])}
    assert expected.items() <= corpus.splits["train"][0].items()


REAL = {
    "multi30k": ("multi30k", {"train": 29_000, "valid": 1_014, "test": 1_000}),
    "tatoeba_deu": ("parallel", {"train": 163_053, "valid": 2_724, "test": 2_737}),
    "wikitext2": ("wikitext2", {"train": 1, "valid": 1, "test": 1}),
    "tinyshakespeare": ("tinyshakespeare", {"train": 1, "valid": 1}),
    "trec": ("trec", {"train": 4_914, "valid": 528, "test": 500}),
}


@pytest.mark.parametrize("folder", REAL)
def test_real_data_load_as_they_are(real_data, folder):
    name, sizes = REAL[folder]
    corpus = load_corpus(preset(name, path=str(real_data(folder))))
    assert {split: len(dataset) for split, dataset in corpus.splits.items()} == sizes
    if folder == "tinyshakespeare":
        assert [len(corpus.splits[split][0]["text"]) for split in sizes] == [1_003_854, 111_540]
