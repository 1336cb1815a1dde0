"""Small random models of `transformers`, each with a tokenizer of its kind, saved as that library saves them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("transformers") is None:
    collect_ignore_glob = ["test_*.py"]  # `make test-exchange` has an environment with the libraries
else:
    import transformers
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SENTENCE = "the quick brown fox jumps over a lazy dog while eleven good boys sing and nobody listens"
WORDS = SENTENCE.split()
TEXTS = [" ".join(WORDS[i % 16] for i in range(k, k + 3 + k % 5)) for k in range(60)]


def byte_level(*specials: str, size: int = 320) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def unigram(*specials: str, unknown: str, end: str, size: int = 60) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=list(specials), unk_token=unknown, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, backend.token_to_id(end))]
    )
    return backend


def seq2seq_sizes(vocabulary: int) -> dict[str, int]:
    return {
        "vocab_size": vocabulary,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 20,
        "max_position_embeddings": 48,
    }


def _gpt2(**changes):
    backend = byte_level("<|endoftext|>")
    size = backend.get_vocab_size()
    config = transformers.GPT2Config(
        **{"vocab_size": size, "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 0}
        | {"eos_token_id": 0, "layer_norm_epsilon": 1e-3}
        | changes
    )
    return transformers.GPT2LMHeadModel(config), backend


def _llama(**changes):
    backend = byte_level("<unk>", "<s>", "</s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    config = transformers.LlamaConfig(
        **{"vocab_size": backend.get_vocab_size(), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48, "rms_norm_eps": 1e-3}
        | {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}
        | changes
    )
    return transformers.LlamaForCausalLM(config), backend


def _marian(**changes):
    backend = unigram("</s>", "<unk>", "<pad>", unknown="<unk>", end="</s>")
    roles = {"pad_token_id": 2, "decoder_start_token_id": 2, "eos_token_id": 0, "forced_eos_token_id": 0}
    config = transformers.MarianConfig(
        **seq2seq_sizes(backend.get_vocab_size())
        | roles
        | {"scale_embedding": True, "activation_function": "swish"}
        | changes
    )
    model = transformers.MarianMTModel(config)
    model.final_logits_bias = torch.randn_like(model.final_logits_bias)
    model.generation_config.bad_words_ids = [[2]]
    return model, backend


def _pegasus(**changes):
    backend = unigram("<pad>", "</s>", "<unk>", unknown="<unk>", end="</s>")
    config = transformers.PegasusConfig(
        **seq2seq_sizes(backend.get_vocab_size()) | {"activation_function": "relu"} | changes
    )
    return transformers.PegasusForConditionalGeneration(config), backend


def _t5(name="T5", **changes):
    backend = unigram("<pad>", "</s>", "<unk>", unknown="<unk>", end="</s>")
    config = getattr(transformers, f"{name}Config")(
        **{"vocab_size": backend.get_vocab_size() + 4, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2}
        | {"num_decoder_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8, "decoder_start_token_id": 0}
        | {"relative_attention_max_distance": 12}
        | changes
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), backend


def _encoder(name="Bert", **changes):
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if name == "Bert" else ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=specials))
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = getattr(transformers, f"{name}Config")(
        **{"vocab_size": backend.get_vocab_size(), "hidden_size": 16, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 40}
        | changes
    )
    return getattr(transformers, f"{name}Model")(config), backend


MAKERS = {"encoder": _encoder, "t5": _t5, "gpt2": _gpt2, "llama": _llama, "marian": _marian, "pegasus": _pegasus}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _make(kind: str, folder: Path, *, seed: int = 5, shard: str = "5GB", **changes):
    """A model of a kind in a folder. Its layers weigh more than the library draws them, so that a wrong one shows."""
    torch.manual_seed(seed)
    model, backend = MAKERS[kind](**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                # T5's attention is unscaled: with larger weights it would look at a single token.
                large = 0.2 if kind == "t5" else 0.5
                parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.dim() == 1 else large)
    model.eval()
    model.save_pretrained(folder, max_shard_size=shard)
    backend.save(str(folder / "tokenizer.json"))
    return model


def _edit(folder: Path, name: str = "config.json", **changes) -> None:
    """Other fields in a JSON file of a folder."""
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(scope="session")
def make():
    """Makes a model of a kind (`MAKERS`) in a folder, and returns it."""
    return _make


@pytest.fixture
def edit():
    """Changes fields of a JSON file in a folder."""
    return _edit


@pytest.fixture(scope="session")
def texts():
    """What the tokenizers were trained on."""
    return TEXTS
