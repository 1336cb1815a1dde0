"""Which files become which split: names of all kinds, and nothing joined or left out without a word."""

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from tfx.config.schema import DatasetConfig, SplitConfig
from tfx.data.plain_text import TextFile
from tfx.data.split_files import find_files
from tfx.errors import UserError


def found(folder: Path, names: list[str], **options) -> tuple[dict[str, list[str]], list[str]]:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    notes: list[str] = []
    config = DatasetConfig(**{"path": str(folder), "format": "csv", **options})
    splits = find_files(config, notes)
    return {split: [str(path.relative_to(folder)) for path in paths] for split, paths in splits.items()}, notes


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["Train.csv", "Test.csv"], {"train": ["Train.csv"], "test": ["Test.csv"]}),
        (["TRAIN.CSV", "DEV.CSV"], {"train": ["TRAIN.CSV"], "valid": ["DEV.CSV"]}),
        (["a_training.csv", "a_test.csv"], {"train": ["a_training.csv"], "test": ["a_test.csv"]}),
        (["myTrain.csv", "myTest2.csv"], {"train": ["myTrain.csv"], "test": ["myTest2.csv"]}),
        (["train/a.csv", "test/a.csv"], {"train": ["train/a.csv"], "test": ["test/a.csv"]}),
        (["train_test_split/train.csv", "train_test_split/test.csv"],
         {"train": ["train_test_split/train.csv"], "test": ["train_test_split/test.csv"]}),
        (["inner/train.csv", "__MACOSX/notes.txt"], {"train": ["inner/train.csv"]}),
        (["inner/train.csv", "inner/val.csv"], {"train": ["inner/train.csv"], "valid": ["inner/val.csv"]}),
        (["a.csv", "contest.csv", "latest.csv"], {"train": ["a.csv", "contest.csv", "latest.csv"]}),
        (["train-00000-of-00002.csv", "train-00001-of-00002.csv", "dev-00000-of-00001.csv"],
         {"train": ["train-00000-of-00002.csv", "train-00001-of-00002.csv"], "valid": ["dev-00000-of-00001.csv"]}),
    ],
)  # fmt: skip
def test_a_split_is_known_by_its_name_wherever_it_stands(names, splits, tmp_path):
    assert found(tmp_path, names)[0] == splits


def test_aligned_files_of_campaigns_are_known(tmp_path):
    names = [f"{stem}.{side}" for stem in ("news-train", "newsdev2016", "newstest2013") for side in ("en", "de")]
    splits, _ = found(tmp_path, names, format="parallel", source="en", target="de")
    assert splits == {
        "train": ["news-train.en", "news-train.de"],
        "valid": ["newsdev2016.en", "newsdev2016.de"],
        "test": ["newstest2013.en", "newstest2013.de"],
    }


def test_what_is_joined_or_left_out_is_said(tmp_path):
    names = ["train.csv", "train_old.csv", "notes.csv", "valid.csv", "dev.csv", "test_a.csv", "test_b.csv"]
    splits, notes = found(tmp_path, names)
    assert splits == {"train": ["train.csv"], "valid": ["valid.csv"], "test": ["test_a.csv", "test_b.csv"]}
    assert notes == ["files that match no split left out: dev.csv, notes.csv, train_old.csv"]


def test_a_compressed_copy_is_not_read_twice(tmp_path):
    splits, notes = found(tmp_path, ["train.csv", "train.csv.gz", "valid.csv.xz"])
    assert splits == {"train": ["train.csv"], "valid": ["valid.csv.xz"]}
    assert notes == ["compressed files left out, because they exist uncompressed too: train.csv.gz"]


def test_names_of_the_config_come_first(tmp_path):
    names = SplitConfig(train=["big"], valid=["small"])
    splits, notes = found(tmp_path, ["big.csv", "small.csv", "train.csv"], splits=names)
    assert splits == {"train": ["big.csv"], "valid": ["small.csv"]}
    assert notes == ["files that match no split left out: train.csv"]


@pytest.mark.parametrize("name", ["testset.csv", "devset.csv", "tst.csv", "devtest.csv", "valset2.csv"])
def test_a_file_of_another_split_is_never_training_data(name, tmp_path):
    with pytest.raises(UserError, match="holds no training split"):
        found(tmp_path, ["data.csv", name])


def test_held_out_data_are_for_the_user_to_place(tmp_path):
    with pytest.raises(UserError, match=r"eval\.csv, holdout\.csv: named like held-out data, but match no split"):
        found(tmp_path, ["data.csv", "eval.csv", "holdout.csv"])


def test_files_that_tell_no_split_are_training_data_and_named(tmp_path):
    splits, notes = found(tmp_path, ["a.csv", "b.csv"])
    assert splits == {"train": ["a.csv", "b.csv"]}
    assert notes == ["train: no name matches a split, so all 2 files are training data"]
    splits, notes = found(tmp_path, ["my_test.csv"], path=str(tmp_path / "my_test.csv"))
    assert splits == {"train": ["my_test.csv"]}
    assert notes == ["my_test.csv is named like test data, and is trained on: dataset.path names it alone"]


def test_names_of_several_words_are_names_of_splits(tmp_path):
    names = ["test_2016_flickr.lc.csv", "test_2017_flickr.lc.csv", "my_corpus-0.csv", "my_corpus-1.csv"]
    chosen = SplitConfig(train=["my_corpus"], test=["test_2016_flickr", "test"])
    splits, notes = found(tmp_path, names, splits=chosen)
    assert splits == {"train": names[2:], "test": names[:1]}
    assert "files that match no split left out: test_2017_flickr.lc.csv" in notes


def test_a_split_of_no_names_is_left_out(tmp_path):
    names = ["train.csv", "Test.csv", "val.csv"]
    splits, notes = found(tmp_path, names, splits=SplitConfig(test=[]))
    assert splits == {"train": ["train.csv"], "valid": ["val.csv"]}
    assert notes == ["files that match no split left out: Test.csv"]
    (tmp_path / "train.csv").rename(tmp_path / "rest.csv")
    (tmp_path / "val.csv").unlink()
    with pytest.raises(UserError, match="holds no training split"):
        found(tmp_path, [], splits=SplitConfig(test=[]))


def test_a_name_of_two_splits_is_for_the_user_to_place(tmp_path):
    both = r"test_for_train is named like train and like test data: .*=\[test_for_train\] or dataset\.splits\.test="
    with pytest.raises(UserError, match=both):
        found(tmp_path, ["test_for_train.csv", "train.csv"])
    splits, notes = found(tmp_path, [], splits=SplitConfig(test=["test_for_train"]))
    assert splits == {"train": ["train.csv"], "test": ["test_for_train.csv"]}
    # With a file of each of the two there, it is neither.
    splits, notes = found(tmp_path, ["test.csv"])
    assert splits == {"train": ["train.csv"], "test": ["test.csv"]}
    assert notes == ["files that match no split left out: test_for_train.csv"]


def test_the_folder_of_a_file_tells_where_its_name_does_not(tmp_path):
    with pytest.raises(UserError, match="holds no training split"):
        found(tmp_path / "one", ["test/a.csv"])
    with pytest.raises(UserError, match=r"train_test is named like train and like test data: .*=\[train_test\]"):
        found(tmp_path / "two", ["train_test/a.csv"])


@pytest.mark.parametrize(
    ("names", "splits", "note"),
    [
        (["train.csv", "test/a.csv"], {"train": ["train.csv"]}, "folders left out: test/ (1 file)"),
        (["train/a.csv", "other/a.csv"], {"train": ["train/a.csv"]}, "folders left out: other/ (1 file)"),
        (["a.csv", "other/a.csv", "docs/a.pdf"], {"train": ["a.csv"]}, "folders left out: other/ (1 file)"),
    ],
)
def test_folders_that_are_not_read_are_named(names, splits, note, tmp_path):
    assert found(tmp_path, names) == (splits, [note])


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["infos.csv", "data/train.csv"],
            r"holds infos\.csv, which matches no training split, and data/, .* dataset\.path=.*/data or .*'.*/\*\.csv'",
        ),
        (
            ["a.csv", "test/b.csv"],
            r"a\.csv, which matches no training split, and test/, .* dataset\.path='.*/\*\*/\*\.csv' or .*'.*/\*\.csv'",
        ),
        (["dev.csv", "train/b.csv"], r"holds dev\.csv, which matches no training split, and train/, .*"),
        (["a/a.csv", "b/b.csv"], r"only in folders that match no split \(a/, b/\): name one of them"),
    ],
)
def test_data_in_two_places_are_for_the_user_to_place(names, says, tmp_path):
    with pytest.raises(UserError, match=says):
        found(tmp_path, names)


def test_a_test_file_alone_is_no_training_data(tmp_path):
    with pytest.raises(UserError, match=r"holds no training split: no file is named train"):
        found(tmp_path, ["my_test.csv", "other.csv"])


# --- bytes to text ----------------------------------------------------------------------------------

TEXT = "eins\nzwei ü\n"


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["a.txt.gz", "a.txt.bz2", "a.txt.xz", "a.txt.zip", "a.txt.zst", "a.txt", "named_wrongly"]
)
def test_a_compressed_file_is_read_as_it_is(name, tmp_path):
    data = TEXT.encode()
    file = tmp_path / name
    if name.endswith("zst"):
        with pa.output_stream(str(file), compression="zstd") as stream:
            stream.write(data)
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zip": lambda _: zipped(inner=TEXT)}
        file.write_bytes(pack.get(name.rpartition(".")[2], gzip.compress if "." not in name else bytes)(data))
    assert TextFile(file).text() == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(TEXT.encode() * 100)[:-20], "is compressed and cannot be unpacked"),
        (lzma.compress(TEXT.encode())[:-20], "is compressed and cannot be unpacked"),
        (b"PK\x03\x04 no archive", "is compressed and cannot be unpacked"),
        (zipped(a="1", b="2"), r"holds 2 files \(a, b\), and one is needed"),
        (gzip.compress("ü".encode("latin-1")), r"a\.gz, line 1: not UTF-8"),
    ],
    ids=["cut gzip", "cut xz", "no zip", "two files", "latin-1"],
)
def test_a_damaged_archive_is_one_line(data, message, tmp_path):
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(UserError, match=message):
        TextFile(tmp_path / "a.gz").text()


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\rb\rc", ["a", "b", "c"]),
        (b"a\rb\r", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\nc\n", ["a", "b", "c"]),
        ("a\u2028b\n".encode(), ["a\u2028b"]),
        (b"", []),
    ],
)
def test_lines_end_as_their_file_ends_them(data, lines, tmp_path):
    (tmp_path / "a").write_bytes(data)
    assert list(TextFile(tmp_path / "a").lines()) == lines


def test_a_file_with_links_is_known_by_its_own_name(tmp_path):
    (tmp_path / "train.csv").write_text("x")
    for name in ("a.csv", "z.csv"):
        (tmp_path / name).symlink_to(tmp_path / "train.csv")
    splits, notes = found(tmp_path, [], path=str(tmp_path / "*.csv"))
    assert splits == {"train": ["train.csv"]}
    assert notes == ["links to files of the same glob left out: 2"]


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "train.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(UserError, match=r"train\.csv is a link to .*gone\.csv, which does not exist"):
        found(tmp_path, ["valid.csv"])


def test_a_text_that_begins_like_an_archive_is_a_text(tmp_path):
    (tmp_path / "a.txt").write_text("BZhang was here\n")
    assert list(TextFile(tmp_path / "a.txt").lines()) == ["BZhang was here"]
