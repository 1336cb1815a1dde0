"""A language model as a GGUF file, which llama.cpp and what is built on it read.

The names of fields and tensors are those of llama.cpp's own converter, which reads folders of `transformers`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tfx.compression.checkpoint import LoadedModel
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.exchange.target import Target, refuse
from tfx.exchange.to_transformers import InTransformers, choose_family, tensors_of
from tfx.model.architecture import Architecture

FILE = "model.gguf"
# Of a token: a piece of text, or one that steers the model and is not shown.
_NORMAL, _CONTROL = 1, 3


def check(architecture: Architecture) -> None:
    """Raises `UserError` for a model that is neither a GPT-2 nor a Llama as llama.cpp knows them."""
    if architecture.family != "lm":
        raise UserError("gguf: llama.cpp reads language models here: export this model to transformers or onnx")
    family = choose_family(architecture)
    if family.model_type == "gpt2":
        if architecture.activation != "gelu_tanh":
            raise refuse("gguf", "activation", architecture.activation, "gelu_tanh")
        return
    if architecture.activation != "swiglu":
        raise refuse("gguf", "activation", architecture.activation, "swiglu")
    fitted = family.fit(architecture)
    for name in ("attention_bias", "ffn_bias"):
        if getattr(fitted, name):
            raise refuse("gguf", name, True, False)
    if architecture.rotary_scaling != "none":
        raise refuse("gguf", "rotary_scaling", architecture.rotary_scaling, "none")


def write(loaded: LoadedModel, folder: Path, kind: str) -> None:
    """Writes model.gguf: sizes, tokenizer and weights; norms and biases stay in float32."""
    import gguf

    architecture = loaded.model.architecture
    family = choose_family(architecture)
    merges = _merges(loaded.tokenizer)
    writer = gguf.GGUFWriter(folder / FILE, family.model_type)
    _sizes(writer, architecture)
    _tokens(writer, loaded.tokenizer, architecture.vocab_size, merges)
    writer.add_file_type({"float32": 0, "float16": 1, "q8_0": 7}[kind])
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == family.model_type)
    names = gguf.get_tensor_name_map(arch, len(architecture.decoder))
    for name, tensor in tensors_of(loaded).items():
        array = tensor.float().numpy()
        if family.model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = _interleaved(array, architecture.head_width)
        elif family.model_type == "gpt2" and name.endswith(_STORED_TRANSPOSED):
            array = array.T
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        _add(writer, place, np.ascontiguousarray(array), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_STORED_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def _interleaved(matrix: NDArray[Any], head_width: int) -> NDArray[Any]:
    """Rows of a projection in llama.cpp's order: it rotates neighbours (2i, 2i + 1), not (i, i + half a head)."""
    halves = matrix.reshape(-1, 2, head_width // 2, matrix.shape[1])
    return halves.swapaxes(1, 2).reshape(matrix.shape)


def _add(writer: Any, name: str, array: NDArray[Any], kind: str) -> None:
    from gguf import GGMLQuantizationType, quants

    if array.ndim == 1 or kind == "float32" or name == "position_embd.weight":
        writer.add_tensor(name, array)
    elif kind == "float16":
        writer.add_tensor(name, array.astype(np.float16))
    else:
        # Blocks of 32 inputs: a matrix of other widths keeps float16, as llama.cpp does it.
        fits = array.shape[1] % 32 == 0
        coded = GGMLQuantizationType.Q8_0 if fits else GGMLQuantizationType.F16
        writer.add_tensor(name, quants.quantize(array, coded), raw_dtype=coded)


def _sizes(writer: Any, architecture: Architecture) -> None:
    shape = architecture.decoder[0]
    writer.add_context_length(architecture.context)
    writer.add_embedding_length(architecture.width)
    writer.add_block_count(len(architecture.decoder))
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    if architecture.positions == "learned":
        writer.add_layer_norm_eps(architecture.epsilon)
        return
    writer.add_vocab_size(architecture.vocab_size)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(architecture.epsilon)
    writer.add_rope_dimension_count(architecture.head_width)
    writer.add_rope_freq_base(architecture.rotary_base)
    writer.add_key_length(architecture.head_width)
    writer.add_value_length(architecture.head_width)


def _merges(tokenizer: Tokenizer) -> list[str]:
    """The merges of a byte-level BPE; raises `UserError` for another kind of tokenizer."""
    content = json.loads(tokenizer.to_json())
    first = content["pre_tokenizer"] or {}
    plain = first.get("type") == "ByteLevel" and first.get("use_regex", True) and not first.get("add_prefix_space")
    if content["model"]["type"] != "BPE" or not plain or content["normalizer"]:
        raise UserError(
            f"gguf: llama.cpp has no tokenizer like this one ({tokenizer.kind}): train with dataset.tokenizer.kind=bpe "
            "and dataset.tokenizer.split_digits=false"
        )
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]


def _tokens(writer: Any, tokenizer: Tokenizer, count: int, merges: list[str]) -> None:
    tokens = [tokenizer.token(index) if index < tokenizer.vocab_size else f"<id {index}>" for index in range(count)]
    steering = {tokenizer.bos, tokenizer.eos, tokenizer.pad, *range(tokenizer.vocab_size, count)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if index in steering else _NORMAL for index in range(count)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.eos)
    writer.add_pad_token_id(tokenizer.pad)
    if tokenizer.unk >= 0:
        writer.add_unk_token_id(tokenizer.unk)
    writer.add_add_bos_token(bool(tokenizer.text_start))


class FromGguf(InTransformers):
    """A file, opened by the reader of GGUF that transformers has."""

    def open(self, folder: Path, loaded: LoadedModel) -> Any:
        import transformers
        from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

        architecture = loaded.model.architecture
        sizes = {}
        if architecture.positions == "learned":  # its reader has no name for these two of GPT-2
            sizes = {"n_positions": architecture.context, "n_inner": architecture.decoder[0].ffn}
        config = transformers.AutoConfig.from_pretrained(folder, gguf_file=FILE, **sizes)
        # Not `from_pretrained`, which asks for another package to place the tensors.
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        tensors = load_gguf_checkpoint(str(folder / FILE), return_tensors=True, model_to_load=model)["tensors"]
        missing, unknown = model.load_state_dict(tensors, strict=False)
        model.tie_weights()
        assert not unknown, unknown
        assert set(missing) <= {"lm_head.weight"}, missing
        return model


GGUF = Target(
    "gguf",
    "one file for llama.cpp: language models like GPT-2 and Llama",
    ("gguf", "transformers"),
    ("float32", "float16", "q8_0"),
    check,
    write,
    FromGguf,
)
