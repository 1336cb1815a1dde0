"""The model file: exact, as specified, and refused if damaged."""

import hashlib
import json
import lzma
import pickle
import random

import numpy as np
import pytest
import safetensors.numpy
import torch

from tfx.cli import main
from tfx.compression import checkpoint
from tfx.config.schema import EvaluationConfig, ModelConfig, TokenizerConfig
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise

TOKENIZER = Tokenizer.train(TokenizerConfig(kind="char", vocab_size=30), ["abcdefgh é"], word_initial_space=False)
KINDS = [(family, tied) for family in ("seq2seq", "lm") for tied in ("all", "output", "none")]


def build(family: str, tied: str) -> Transformer:
    layers = 1 if family == "seq2seq" else 0
    config = ModelConfig(
        family=family, width=8, heads=2, ffn_width=12, encoder_layers=layers, decoder_layers=2, tied_embeddings=tied
    )
    model = Transformer(Architecture.from_config(config, TOKENIZER.vocab_size)).eval()
    initialise(model, 3)
    return model


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, build("seq2seq", "all"), TOKENIZER, EvaluationConfig())
    return path


@pytest.mark.parametrize(("family", "tied"), KINDS)
def test_loading_gives_back_the_saved_model_bit_for_bit(family, tied, tmp_path):
    model = build(family, tied)
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        checkpoint.save(path, model, TOKENIZER, EvaluationConfig(beam=3))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    loaded = checkpoint.load(paths[0])
    tokens = torch.randint(4, 12, (2, 5))
    source = tokens if family == "seq2seq" else None
    assert torch.equal(model.project(model(tokens, source)), loaded.model.project(loaded.model(tokens, source)))
    assert loaded.generation.beam == 3
    assert loaded.tokenizer.to_json() == TOKENIZER.to_json()
    assert (loaded.model.output.weight is loaded.model.embedding.weight) == (tied != "none")
    account = checkpoint.read_header(paths[0]).bytes
    assert account.file == paths[0].stat().st_size == account.weights + account.header + account.tokenizer
    assert account.weights == 4 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("storage", [None, checkpoint.Storage()], ids=["plain", "compressed"])
@pytest.mark.parametrize("ends", [False, True])
def test_a_file_records_whether_training_documents_ended_with_an_end_token(storage, ends, tmp_path):
    tokenizer = Tokenizer.from_json(TOKENIZER.to_json())
    tokenizer.ends_documents = ends
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, build("lm", "all"), tokenizer, EvaluationConfig(), storage)
    assert checkpoint.load(path).tokenizer.ends_documents == ends
    assert ("ends_documents" in checkpoint.read_header(path).raw) == ends  # as in files of older writers


def test_a_reader_made_from_the_specification_alone_agrees(file):
    tensors = safetensors.numpy.load(file.read_bytes())
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]["tfx"])
    digest = hashlib.sha256()
    rest = {key: value for key, value in header.items() if key != "checksum"}
    digest.update(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name].tobytes())
    assert digest.hexdigest() == header["checksum"]
    assert lzma.decompress(tensors["tokenizer"].tobytes()).decode() == TOKENIZER.to_json()
    model = build("seq2seq", "all")
    for name, weight in model.state_dict().items():
        np.testing.assert_array_equal(tensors[header["aliases"].get(name, name)], weight.numpy())
    assert header["architecture"] == json.loads(json.dumps(model.architecture.to_dict()))


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_file_is_refused_at_any_length(file):
    data = file.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        file.write_bytes(data[:size])
        refused(file)


def test_a_flipped_bit_is_refused_or_changes_nothing(file):
    data = file.read_bytes()
    rng = random.Random(0)
    before = checkpoint.load(file).model.state_dict()
    for _ in range(150):
        position = rng.randrange(len(data))
        changed = bytearray(data)
        changed[position] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            after = checkpoint.load(file).model.state_dict()
        except UserError:
            continue
        assert all(torch.equal(before[name], after[name]) for name in before), position


def test_other_files_are_refused_and_nothing_in_them_runs(file, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file.write_bytes(pickle.dumps(Bomb()))
    refused(file)
    assert not (tmp_path / "ran").exists()
    file.write_bytes((2**50).to_bytes(8, "little") + b"{}")
    assert "claims" in refused(file)
    safetensors.numpy.save_file({"a": np.zeros(3)}, file)
    assert "not a tfx model" in refused(file)
    assert "does not exist" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize(("key", "value", "word"), [("format_version", 99, "update tfx"), ("vocab_size", 7, "damaged")])
def test_a_newer_version_and_a_lying_header_are_refused(key, value, word, file):
    tensors = safetensors.numpy.load(file.read_bytes())
    header = dict(checkpoint.read_header(file).raw)
    if key in header:
        header[key] = value
    else:
        header["architecture"] = header["architecture"] | {key: value}
    safetensors.numpy.save_file(tensors, file, metadata={"tfx": json.dumps(header)})
    assert word in refused(file)


@pytest.mark.parametrize(
    ("name", "value"), [("max_length_ratio", 1e308), ("new_tokens", 10**9), ("temperature", 1e-300), ("beam", 0)]
)
def test_generation_defaults_out_of_range_are_refused(name, value, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, build("seq2seq", "all"), TOKENIZER, EvaluationConfig(**{name: value}))
    assert main(["generate", str(path), "abc"]) == 2
    assert f"evaluation.{name}=" in capsys.readouterr().err


def test_more_blocks_than_tensors_are_refused_before_any_is_built(file):
    tensors = safetensors.numpy.load(file.read_bytes())
    header = dict(checkpoint.read_header(file).raw)
    header["architecture"]["encoder"] *= 999
    safetensors.numpy.save_file(tensors, file, metadata={"tfx": json.dumps(header)})
    assert "1,001 blocks" in refused(file)
