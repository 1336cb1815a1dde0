"""A model of `transformers` comes in as the same function, or is refused by the field that says otherwise."""

from __future__ import annotations

import importlib.util
import json

import pytest
import tokenizers
import torch

import tfx
from tfx.config.schema import EvaluationConfig
from tfx.errors import UserError
from tfx.exchange.importing import import_folder, local_model, read_folder
from tfx.model.decoding import Ends, continue_text, make_picker, translate

GREEDY = EvaluationConfig(method="greedy")
VARIANTS = [
    ("gpt2", {}),
    ("gpt2", {"n_inner": 20, "activation_function": "gelu", "tie_word_embeddings": False}),
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 6}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_theta": 100.0,
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    ("llama", {"rope_parameters": {"rope_theta": 100.0, "rope_type": "linear", "factor": 2.0}, "hidden_act": "gelu"}),
    ("marian", {}),
    ("marian", {"share_encoder_decoder_embeddings": False, "scale_embedding": False, "activation_function": "gelu"}),
    ("pegasus", {}),
    ("pegasus", {"scale_embedding": True, "activation_function": "gelu_new"}),
    ("t5", {}),
    ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("t5", {"name": "MT5"}),
]


def inputs(tokenizer, texts, count=5):
    """Padded sources with their mask, and targets, as `transformers` takes them."""
    rows = [[*ids, tokenizer.eos] for ids in tokenizer.encode(texts[:count])]
    longest = max(map(len, rows))
    source = torch.tensor([row + [tokenizer.pad] * (longest - len(row)) for row in rows])
    mask = torch.arange(longest) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
    return source, mask, torch.randint(tokenizer.vocab_size, (count, 9), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def check_same_logits(theirs, loaded, texts):
    """In double precision: random models amplify the rounding of single precision a thousand times."""
    theirs.double()
    loaded.model.double()
    source, mask, target = inputs(loaded.tokenizer, texts)
    if loaded.model.architecture.is_seq2seq:
        expected = theirs(input_ids=source, attention_mask=mask.long(), decoder_input_ids=target).logits
        found = loaded.model.project(loaded.model(target, source, mask))
    else:
        expected = theirs(input_ids=target).logits
        found = loaded.model.project(loaded.model(target))
    assert expected.std() > 0.1
    torch.testing.assert_close(found.double(), expected.double(), atol=3e-5, rtol=0)
    theirs.float()
    loaded.model.float()


@torch.no_grad()
def check_same_greedy_output(theirs, loaded, texts):
    tokenizer = loaded.tokenizer
    source, mask, _ = inputs(tokenizer, texts)
    ends = Ends(tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.never)
    if loaded.model.architecture.is_seq2seq:
        found = translate(loaded.model, source, mask, torch.full((len(source),), 20), ends, GREEDY)
        rows = theirs.generate(source, attention_mask=mask.long(), max_new_tokens=20, num_beams=1, do_sample=False)
        expected = [row.tolist()[1:] for row in rows]
        expected = [row[: row.index(tokenizer.eos)] if tokenizer.eos in row else row for row in expected]
    else:
        prompts = [row[:4] for row in tokenizer.encode(texts[:3])]
        pick = make_picker(GREEDY, 0, torch.device("cpu"))
        found = [continue_text(loaded.model, prompt, 20, tokenizer.eos, pick) for prompt in prompts]
        expected = []
        for prompt in prompts:
            row = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :].tolist()
            expected.append(row[: row.index(tokenizer.eos)] if tokenizer.eos in row else row)
    # A forced end at the limit is theirs alone.
    assert [row[:19] for row in found] == [row[:19] for row in expected]
    # Not more than that: vocabularies differ a little each time that they are trained, and some of these random models
    # repeat one token.
    assert any(found)


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_a_model_of_transformers_gives_the_same_logits_and_the_same_greedy_output(tmp_path, make, texts, kind, changes):
    theirs = make(kind, tmp_path / "theirs", **changes)
    import_folder(tmp_path / "theirs", tmp_path / "ours.safetensors")
    loaded = tfx.load(tmp_path / "ours.safetensors")
    check_same_logits(theirs, loaded, texts)
    check_same_greedy_output(theirs, loaded, texts)


def test_shards_and_bfloat16_are_read(tmp_path, make, texts):
    made = make("llama", tmp_path / "theirs").to(torch.bfloat16)
    made.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    theirs = type(made).from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    check_same_logits(theirs, read_folder(tmp_path / "theirs"), texts)
    next((tmp_path / "theirs").glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"model-00002-of-\d+\.safetensors is missing"):
        read_folder(tmp_path / "theirs")


def test_a_bare_model_without_the_layer_of_its_task_comes_in_too(tmp_path, make, texts):
    theirs = make("gpt2", tmp_path / "theirs")
    theirs.transformer.save_pretrained(tmp_path / "theirs")
    check_same_logits(theirs, read_folder(tmp_path / "theirs"), texts)


def test_tokens_keep_their_numbers_and_roles(tmp_path, make, texts):
    make("marian", tmp_path / "marian")
    imported = read_folder(tmp_path / "marian")
    tokenizer = imported.tokenizer
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk) == (2, 2, 0, 1)
    assert tokenizer.never == (2,)
    assert tokenizer.decode(tokenizer.encode([texts[3]])[0]) == texts[3]
    assert tokenizer.to_json() == tokenizers.Tokenizer.from_file(str(tmp_path / "marian" / "tokenizer.json")).to_str()
    make("llama", tmp_path / "llama")
    tokenizer = read_folder(tmp_path / "llama").tokenizer
    assert (tokenizer.bos, tokenizer.pad, tokenizer.eos, tokenizer.unk) == (1, 2, 2, -1)
    assert tokenizer.roles.begins_texts
    import_folder(tmp_path / "llama", tmp_path / "ours.safetensors")
    loaded = tfx.load(tmp_path / "ours.safetensors")
    assert loaded.tokenizer.roles == tokenizer.roles
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint


REFUSED = [
    ("gpt2", {"model_type": "gpt_neox"}, r"model_type='gpt_neox' is not supported: supported are gpt2, llama"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"activation_function": "quick_gelu"}, r"activation_function='quick_gelu' is not supported: supported"),
    ("gpt2", {"new_gate": 3}, r"new_gate=3 is not supported: tfx does not know this field"),
    ("gpt2", {"n_embd": "wide"}, r"n_embd='wide' is not supported: it must be of type int"),
    ("gpt2", {"n_embd": None}, r"n_embd is missing"),
    ("gpt2", {"n_embd": 32}, r"has the shape .* and config\.json asks for another"),
    ("gpt2", {"n_layer": 3}, r"the weights have no 'transformer\.h\.2\.ln_1\.weight'"),
    ("gpt2", {"n_layer": 1}, r"the weights have 'transformer\.h\.1\.[a-z0-9_.]+', which a gpt2 model does not"),
    ("gpt2", {"vocab_size": 10**9}, r"vocab_size"),
    ("gpt2", {"quantization_config": {"bits": 4}}, r"quantization_config is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, r"rope_parameters=.*yarn.*is not supported"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "turns": 1}}, r"does not know its turns"),
    ("llama", {"pretraining_tp": 2}, r"pretraining_tp=2 is not supported: only 1 is"),
    ("marian", {"decoder_vocab_size": 7}, r"decoder_vocab_size=7"),
    ("marian", {"normalize_before": True}, r"normalize_before=True"),
    ("marian", {"decoder_attention_heads": 2}, r"decoder_attention_heads=2"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_what_has_no_place_is_refused_by_the_name_of_its_field(tmp_path, make, edit, kind, changes, message):
    make(kind, tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        import_folder(tmp_path, tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()


def test_folders_without_a_readable_model_are_refused_in_words(tmp_path, make, edit):
    def message():
        with pytest.raises(UserError) as error:
            read_folder(tmp_path)
        return str(error.value)

    assert "it has no config.json" in message()
    make("gpt2", tmp_path)
    tokenizer = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in message()
    (tmp_path / "source.spm").write_text("")
    (tmp_path / "target.spm").write_text("")
    assert "has source.spm, target.spm and no tokenizer.json: a tokenizer for each side" in message()
    (tmp_path / "target.spm").unlink()
    assert "only source.spm, which the `tokenizers` library has no like for" in message()
    framed = json.loads(tokenizer)
    pieces = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    framed["post_processor"] = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"x": {"id": "x", "ids": [7], "tokens": ["x"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(framed))
    assert "its post_processor makes" in message()
    (tmp_path / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not a tokenizer.json" in message()
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    edit(tmp_path, "generation_config.json", eos_token_id=None)
    edit(tmp_path, eos_token_id=None)
    assert "eos_token_id is missing" in message()
    edit(tmp_path, eos_token_id=10**6)
    assert "it has no token 1000000" in message()
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-9])
    assert "is not a whole safetensors file" in message()
    (tmp_path / "model.safetensors").unlink()
    assert "has no model.safetensors" in message()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "pytorch_model.bin may run code when it is read" in message()
    (tmp_path / "config.json").write_text("[]")
    assert "config.json is not a JSON object" in message()


def test_a_folder_is_converted_once_until_its_content_changes(tmp_path, make, edit, monkeypatch):
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    make("gpt2", tmp_path / "theirs")
    file = local_model(tmp_path / "theirs")
    before = file.stat().st_mtime_ns
    assert local_model(tmp_path / "theirs") == file
    assert file.stat().st_mtime_ns == before
    edit(tmp_path / "theirs", layer_norm_epsilon=1e-2)
    changed = local_model(tmp_path / "theirs")
    assert changed != file
    assert tfx.load(changed).model.architecture.norm_eps == 1e-2
    assert local_model(file) == file


@pytest.mark.parametrize(
    ("kind", "name", "model_type"), [("t5", "spiece.model", "unigram"), ("llama", "tokenizer.model", "bpe")]
)
def test_a_sentencepiece_file_is_converted_to_the_same_tokens(
    tmp_path, make, edit, texts, monkeypatch, kind, name, model_type
):
    sentencepiece = pytest.importorskip("sentencepiece")
    make(kind, tmp_path, **{"vocab_size": 160} if kind == "t5" else {})
    for file in tmp_path.glob("tokenizer*.json"):
        file.unlink()
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    roles = (
        {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
        if kind == "t5"
        else {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"),
        model_prefix=str(tmp_path / "made"),
        vocab_size=50,
        model_type=model_type,
        hard_vocab_limit=False,
        minloglevel=2,
        byte_fallback=False,
        **roles,
    )
    (tmp_path / "made.model").rename(tmp_path / name)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / name))
    found = read_folder(tmp_path).tokenizer
    sentences = [*texts[:5], "a jumping quick  fox"]
    assert found.encode(sentences) == [processor.encode(text) for text in sentences]
    assert found.decode(found.encode(texts[:1])[0]) == texts[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"only {name}: to convert that, pip install 'path/to/tfx\[sentencepiece\]'"):
        read_folder(tmp_path)
