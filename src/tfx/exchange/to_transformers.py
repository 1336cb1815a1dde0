"""A model as a folder that `from_pretrained` of `transformers` opens, with no code of ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tfx.compression.checkpoint import LoadedModel, unique_tensors
from tfx.errors import UserError
from tfx.exchange.families import BY_CLASS, FAMILIES
from tfx.exchange.family import Family
from tfx.exchange.fields import Fields
from tfx.exchange.target import Ids, ReopenedEncoder, Target, gathered, padded, refuse
from tfx.exchange.weights import write_state
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer
from tfx.record.files import replacing, write_json, write_text


def choose_family(architecture: Architecture) -> Family:
    """The family that says all of an architecture; raises `UserError` for the setting that the nearest one lacks."""
    families = [family for family in (*FAMILIES.values(), *BY_CLASS.values()) if family.kind == architecture.family]
    found = [(_lacks(family, architecture), family) for family in families]
    if not found:
        raise UserError(f"transformers has no class here for model.family={architecture.family}")
    lacks, family = min(found, key=lambda pair: len(pair[0]))
    if not lacks:
        return family
    name, (value, fits) = next(iter(lacks.items()))
    if name in ("encoder", "decoder", "head_width"):
        raise UserError(
            f"{family.class_name} has no model whose blocks differ in heads or feed-forward units, or with fewer heads "
            "than its width has: export a model without structured pruning of heads and units"
        )
    raise refuse(family.class_name, name, value, fits)


def _lacks(family: Family, architecture: Architecture) -> dict[str, tuple[Any, Any]]:
    """The fields that a family's config.json does not keep, with their values before and after it."""
    if not _is_uniform(architecture):
        return {"encoder": (None, None)}
    fitted = family.fit(architecture)
    names = ["final_logits_bias"] if fitted.output_bias else []
    try:
        back = family.read(Fields(family.write(architecture), Path("config.json")), names)
    except UserError:  # of all fields, only the activation is named by a word that may not be known
        return {"activation": (architecture.activation, "gelu")}
    values = {f.name: (getattr(fitted, f.name), getattr(back, f.name)) for f in fields(Architecture)}
    return {name: pair for name, pair in values.items() if pair[0] != pair[1] and _matters(name, fitted)}


def _is_uniform(architecture: Architecture) -> bool:
    """Whether all blocks have the same heads, and those of a stack the same feed-forward width."""
    blocks = (*architecture.encoder, *architecture.decoder)
    heads = {(shape.heads, shape.kv_heads) for shape in blocks}
    crossing = {(shape.cross_heads, shape.cross_kv_heads) for shape in blocks if shape.cross_heads}
    widths = (len({shape.ffn for shape in stack}) <= 1 for stack in (architecture.encoder, architecture.decoder))
    return len(heads | crossing) == 1 and all(widths)


def _matters(name: str, architecture: Architecture) -> bool:
    """Whether a field changes anything: those of rotary or relative positions only where there are such."""
    kind = name.partition("_")[0]
    return kind not in ("rotary", "relative") or architecture.positions == kind


def write_folder(loaded: LoadedModel, folder: Path, kind: str) -> None:
    """Writes config.json, weights, tokenizer and generation config."""
    tokenizer, architecture = loaded.tokenizer, loaded.model.architecture
    family = choose_family(architecture)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[kind]
    theirs = tensors_of(loaded) | family.tables(architecture)
    tensors = {name: value.to(dtype).contiguous() for name, value in theirs.items()}
    with replacing(folder / "model.safetensors") as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
    roles = roles_of(loaded)
    config = {"architectures": [family.class_name], "model_type": family.model_type, "dtype": kind}
    write_json(folder / "config.json", {**config, **family.write(architecture), **roles})
    write_json(folder / "generation_config.json", generation_of(loaded, roles))
    write_text(folder / "tokenizer.json", framing_tokenizer(loaded))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(loaded, tokenizer.token))


def tensors_of(loaded: LoadedModel) -> dict[str, Tensor]:
    """The weights by the names and in the layout of the class that says this model."""
    model = loaded.model
    family = choose_family(model.architecture)
    state = _with_zero_biases(model, family.fit(model.architecture))
    try:
        return write_state(family.places(_as_written(model.architecture, family)), state)
    except ValueError as error:
        raise UserError(f"{family.class_name}: {error}") from None


def _as_written(architecture: Architecture, family: Family) -> Architecture:
    """The architecture with the biases that the class has, and all else of ours: scales of embeddings are folded."""
    fitted = family.fit(architecture)
    return replace(
        architecture,
        bias=fitted.bias,
        attention_bias=fitted.attention_bias,
        ffn_bias=fitted.ffn_bias,
        output_bias=fitted.output_bias,
    )


def _with_zero_biases(model: Transformer, fitted: Architecture) -> dict[str, Tensor]:
    """The weights by their names, with biases of zero where the class has some and the model none."""
    state = {name: value.detach().float() for name, value in model.state_dict().items()}
    with torch.device("meta"):
        wider = Transformer(replace(fitted, tied_embeddings=model.architecture.tied_embeddings))
    for name, value in unique_tensors(wider)[0].items():
        if name.endswith("bias"):
            state.setdefault(name, torch.zeros(value.shape))
    if (outputs := model.architecture.outputs) is not None:
        state["output.weight"] = state["output.weight"] * outputs.scale
        state["output.bias"] = state["output.bias"] * outputs.scale + outputs.offset
    return state


def roles_of(loaded: LoadedModel) -> dict[str, Any]:
    """The ids of special tokens, by the names of a generation config."""
    tokenizer = loaded.tokenizer
    found: dict[str, Any] = {
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad,
        "bos_token_id": tokenizer.bos,
    }
    if loaded.model.architecture.is_seq2seq:
        found["decoder_start_token_id"] = tokenizer.bos
    return found


def generation_of(loaded: LoadedModel, roles: dict[str, Any]) -> dict[str, Any]:
    """How the run was decoded. Their length penalty has another formula, and is left at its default."""
    generation, is_seq2seq = loaded.generation, loaded.model.architecture.is_seq2seq
    context = loaded.model.architecture.context
    # Not max_length: the library warns where a user then gives max_new_tokens.
    found = {**roles, "max_new_tokens": context - 1 if is_seq2seq else min(generation.new_tokens, context // 2)}
    if loaded.tokenizer.never:
        found["bad_words_ids"] = [[index] for index in loaded.tokenizer.never]
    if generation.method == "sample":
        rates = {"top_k": generation.top_k or 0, "top_p": generation.top_p or 1.0}
        return {**found, "do_sample": True, "temperature": generation.temperature, **rates}
    beam = generation.beam if is_seq2seq and generation.method in ("auto", "beam") else 1
    return {**found, "num_beams": beam}


def framing_tokenizer(loaded: LoadedModel) -> str:
    """The tokenizer's JSON, which frames a text as the model has seen it: an end token behind a source."""
    tokenizer = loaded.tokenizer
    content = json.loads(tokenizer.to_json())
    before = [tokenizer.text_start[0]] if tokenizer.text_start else []
    behind = [tokenizer.eos] if loaded.model.architecture.is_seq2seq else []
    if loaded.model.architecture.family in ("encoder", "classification"):
        if tokenizer.roles is None:  # one that came with an encoder frames texts itself
            content["post_processor"] = _template([tokenizer.bos], [tokenizer.eos], tokenizer.token, is_pair=True)
    else:
        content["post_processor"] = _template(before, behind, tokenizer.token) if before or behind else None
    return json.dumps(content, ensure_ascii=False)


def _template(before: list[int], behind: list[int], name: Any, *, is_pair: bool = False) -> dict[str, Any]:
    """What stands around a text; ``is_pair``: around the second of a pair too, whose tokens have their own type."""

    def special(ids: list[int], type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": name(index), "type_id": type_id}} for index in ids]

    def sequence(letter: str, type_id: int) -> list[dict[str, Any]]:
        return [{"Sequence": {"id": letter, "type_id": type_id}}]

    single = [*special(before, 0), *sequence("A", 0), *special(behind, 0)]
    pair = [*special(before, 0), *sequence("A", 0), *sequence("B", 0), *special(behind, 0)]
    if is_pair:
        pair = [*single, *sequence("B", 1), *special(behind, 1)]
    used = {name(index): {"id": name(index), "ids": [index], "tokens": [name(index)]} for index in {*before, *behind}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": used}


def _tokenizer_config(loaded: LoadedModel, name: Any) -> dict[str, Any]:
    tokenizer = loaded.tokenizer
    roles = {"pad": tokenizer.pad, "bos": tokenizer.bos, "eos": tokenizer.eos, "unk": tokenizer.unk}
    found = {f"{role}_token": name(index) for role, index in roles.items() if index >= 0}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": loaded.model.architecture.context,
        "clean_up_tokenization_spaces": False,
        **found,
    }


class InTransformers(ReopenedEncoder):
    """A folder, opened by `from_pretrained`."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        self._seq2seq = loaded.model.architecture.is_seq2seq
        self._model = self.open(folder, loaded).eval()
        self._tokenizer = loaded.tokenizer

    def open(self, folder: Path, loaded: LoadedModel) -> Any:
        """The model of a folder."""
        import transformers

        kinds = {"seq2seq": "AutoModelForSeq2SeqLM", "lm": "AutoModelForCausalLM", "encoder": "AutoModel"}
        kinds["classification"] = "AutoModelForSequenceClassification"
        kind = getattr(transformers, kinds[loaded.model.architecture.family])
        return kind.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def scores(self, sources: Sequence[Ids] | None, targets: Sequence[Ids]) -> list[list[float]]:
        tokenizer = self._tokenizer
        if sources is not None:
            source, mask = padded(sources, tokenizer.pad)
            inputs, _ = padded([[tokenizer.bos, *row[:-1]] for row in targets], tokenizer.pad)
            logits = self._model(input_ids=source, attention_mask=mask, decoder_input_ids=inputs).logits
        else:
            inputs, mask = padded([row[:-1] for row in targets], tokenizer.pad)
            logits = self._model(input_ids=inputs, attention_mask=mask).logits
        return gathered(logits, targets if sources is not None else [row[1:] for row in targets])

    @torch.no_grad()
    def greedy(self, inputs: Sequence[Ids], limits: Sequence[int]) -> list[list[int]]:
        found = []
        for row, limit in zip(inputs, limits, strict=True):
            ids = torch.tensor([list(row)])
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                max_length=None,
                num_beams=1,
                do_sample=False,
            )[0].tolist()
            found.append(_before_end(output[1:] if self._seq2seq else output[len(row) :], self._tokenizer.eos))
        return found

    @torch.no_grad()
    def beam(self, sources: Sequence[Ids], limit: int, width: int) -> list[list[int]]:
        source, mask = padded(sources, self._tokenizer.pad)
        outputs = self._model.generate(
            source,
            attention_mask=mask,
            max_new_tokens=limit,
            max_length=None,
            num_beams=width,
            length_penalty=0.0,
            do_sample=False,
        )
        return [_before_end(row[1:], self._tokenizer.eos) for row in outputs.tolist()]

    def outputs(self, sources: Sequence[Ids], types: Sequence[Ids] | None) -> Tensor:
        source, mask = padded(sources, self._tokenizer.pad)
        kinds = None if types is None else padded(types, 0)[0]
        return self._model(input_ids=source, attention_mask=mask, token_type_ids=kinds).logits

    @torch.no_grad()
    def hidden(self, sources: Sequence[Ids]) -> list[Tensor]:
        source, mask = padded(sources, self._tokenizer.pad)
        states = self._model(input_ids=source, attention_mask=mask).last_hidden_state
        return [row[: len(ids)] for row, ids in zip(states, sources, strict=True)]


def _before_end(ids: Iterable[int], end: int) -> list[int]:
    found = list(ids)
    return found[: found.index(end)] if end in found else found


def _check(architecture: Architecture) -> None:
    choose_family(architecture)


TRANSFORMERS = Target(
    "transformers",
    "a folder for from_pretrained: Marian, Pegasus or T5, GPT-2 or Llama, BERT",
    ("transformers",),
    ("float32", "bfloat16", "float16"),
    _check,
    write_folder,
    InTransformers,
)
