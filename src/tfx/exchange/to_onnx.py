"""A model as ONNX files, written by torch's exporter: each is a function of its inputs, caches among them."""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from torch import Tensor, nn
from torch.export import Dim

from tfx.compression.checkpoint import LoadedModel
from tfx.errors import UserError
from tfx.exchange.labels import config_of_labels
from tfx.exchange.onnx_graphs import Classifier, Decoder, Encoder
from tfx.exchange.onnx_int8 import own_matrices, quantize
from tfx.exchange.run_onnx import CONFIG, DECODER, ENCODER, GENERATION, ONE, TYPES, OnnxModel
from tfx.exchange.search import Search, ends_of
from tfx.exchange.target import Ids, ReopenedEncoder, Target, gathered
from tfx.exchange.to_transformers import framing_tokenizer, generation_of, roles_of
from tfx.model.architecture import Architecture, Outputs
from tfx.model.transformer import Transformer
from tfx.record.files import write_json, write_text

# Operators of this version are in every release of onnxruntime since 1.15.
_OPSET = 18
# A file is one message of protocol buffers, which must stay below 2 GiB.
_MOST_BYTES = 2_000_000_000
# Sizes of the inputs that the exporter follows. They differ, so that it takes none for another, and none is 0 or 1.
_BATCH, _SOURCE, _PAST, _NEW = 2, 5, 4, 3


def write(loaded: LoadedModel, folder: Path, kind: str) -> None:
    """Writes encoder.onnx and decoder.onnx, or model.onnx, how to decode or what labels there are, and the tokenizer.

    The tokenizer of a classifier puts begin and end tokens around texts, and cuts long ones.
    """
    model = loaded.model
    if (size := 4 * sum(weight.numel() for weight in model.parameters())) > _MOST_BYTES:
        raise UserError(f"onnx: the weights have {size / 1e9:.1f} GB in float32, and a file holds at most 2 GB")
    for name, graph in _graphs(model).items():
        if kind == "int8":
            quantize(graph, loaded)
        (folder / name).write_bytes(graph.SerializeToString())
    if (outputs := model.architecture.outputs) is not None:
        facts = {"max_position_embeddings": model.architecture.context, **roles_of(loaded)}
        write_json(folder / CONFIG, config_of_labels(outputs) | facts)
        tokenizer = tokenizers.Tokenizer.from_str(framing_tokenizer(loaded))
        if not outputs.windows:
            tokenizer.enable_truncation(model.architecture.context)
        write_text(folder / "tokenizer.json", tokenizer.to_str())
        return
    write_json(folder / GENERATION, generation_of(loaded, roles_of(loaded)))
    write_text(folder / "tokenizer.json", loaded.tokenizer.to_json())


def _graphs(model: Transformer) -> dict[str, Any]:
    if model.architecture.family == "encoder":
        return {ONE: _encoder(model, projects=False)}
    if model.architecture.outputs is not None:
        return {ONE: _classifier(model, model.architecture.outputs)}
    if model.architecture.is_seq2seq:
        return {ENCODER: _encoder(model, projects=True), DECODER: _decoder(model)}
    return {ONE: _decoder(model)}


def _encoder(model: Transformer, *, projects: bool) -> Any:
    ids = torch.zeros(_BATCH, _SOURCE, dtype=torch.long)
    sizes = {0: "batch", 1: "source"}
    outputs = _names("cross", _crossing(model)) if projects else ["last_hidden_state"]
    return _exported(
        Encoder(model, projects=projects),
        (ids, torch.ones_like(ids)),
        (sizes, sizes),
        ["input_ids", "attention_mask"],
        outputs,
    )


def _classifier(model: Transformer, outputs: Outputs) -> Any:
    names = ["input_ids", "attention_mask"]
    if outputs.pairs and model.architecture.token_types:
        names.append(TYPES)
    # One tensor in two places would be one input.
    arguments = tuple(torch.ones(_BATCH, _SOURCE, dtype=torch.long) for _ in names)
    sizes = {0: "batch", 1: "source"}
    return _exported(Classifier(model), arguments, (sizes,) * len(names), names, ["logits"])


def _decoder(model: Transformer) -> Any:
    is_seq2seq = model.architecture.is_seq2seq
    ids = torch.zeros(_BATCH, _NEW, dtype=torch.long)
    own, crossing = list(range(len(model.decoder.blocks))), _crossing(model)
    kept = [part for shape in model.architecture.decoder for part in _empty(model, shape.kv_heads, _PAST)]
    source = [
        part for index in crossing for part in _empty(model, model.architecture.decoder[index].cross_kv_heads, _SOURCE)
    ]
    names: list[str] = ["input_ids"]
    sizes: list[Any] = [{0: "batch", 1: "new"}]
    mask, positions = torch.ones(_BATCH, _SOURCE if is_seq2seq else _PAST + _NEW, dtype=torch.long), None
    if is_seq2seq:
        names.append("encoder_attention_mask")
        sizes += [{0: "batch", 1: "source"}, None]
    else:
        names += ["attention_mask", "position_ids"]
        positions = torch.arange(_PAST, _PAST + _NEW).expand(_BATCH, -1)
        sizes += [{0: "batch", 1: "past + new"}, {0: "batch", 1: "new"}]
    names += _names("past", own) + _names("cross", crossing)
    sizes += [[{0: "batch", 2: "past"}] * len(kept), [{0: "batch", 2: "source"}] * len(source)]
    outputs = ["logits", *_names("present", own)]
    return _exported(Decoder(model), (ids, mask, positions, kept, source), tuple(sizes), names, outputs)


def _crossing(model: Transformer) -> list[int]:
    """The numbers of the blocks that read the source."""
    return [index for index, shape in enumerate(model.architecture.decoder) if shape.cross_heads]


def _names(kind: str, blocks: Sequence[int]) -> list[str]:
    return [f"{kind}.{index}.{part}" for index in blocks for part in ("key", "value")]


def _empty(model: Transformer, kv_heads: int, length: int) -> Iterator[Tensor]:
    for _ in range(2):
        yield torch.zeros(_BATCH, kv_heads, length, model.architecture.head_width)


def _exported(
    module: nn.Module, arguments: tuple[Any, ...], sizes: tuple[Any, ...], names: list[str], outputs: list[str]
) -> Any:
    """The graph of a module, as a `ModelProto`. ``sizes`` names the free sizes of each argument, by axis."""
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            arguments,
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=_free(sizes),
            opset_version=_OPSET,
        )
    assert program is not None
    found = program.model_proto  # made anew at each call
    _name_sizes(found.graph, names, sizes)
    return found


def _free(sizes: Any) -> Any:
    """The same with what the exporter takes for a free size: one that it relates to others by itself."""
    if isinstance(sizes, dict):
        return dict.fromkeys(sizes, Dim.DYNAMIC)
    return None if sizes is None else type(sizes)(map(_free, sizes))


def _name_sizes(graph: Any, names: Sequence[str], sizes: tuple[Any, ...]) -> None:
    """Gives the free sizes of all tensors our names: the exporter numbers them."""
    ours = [each for entry in sizes if entry is not None for each in (entry if isinstance(entry, list) else [entry])]
    found: dict[str, str] = {}
    inputs = {value.name: value for value in graph.input}
    for name, own in zip(names, ours, strict=True):
        for axis, size in own.items():
            found.setdefault(inputs[name].type.tensor_type.shape.dim[axis].dim_param, size)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda match: found.get(match[0], match[0]), dim.dim_param)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings and logs, which concern its own code."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class InOnnx(Search, ReopenedEncoder):
    """A folder, run by onnxruntime."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        self._run = OnnxModel(folder, loaded)
        # The search is the model's own, and asks the folder for every step.
        twin = copy.copy(loaded.model)
        twin.engine = self._run
        super().__init__(twin, ends_of(loaded.tokenizer))

    def scores(self, sources: Sequence[Ids] | None, targets: Sequence[Ids]) -> list[list[float]]:
        found = []
        for row, target in enumerate(targets):
            if sources is None:
                caches, inputs, wanted = self._run.no_caches(1), target[:-1], target[1:]
            else:
                caches, inputs, wanted = self._run.read([sources[row]]), [self.ends.bos, *target[:-1]], target
            logits = self._run.step(np.asarray([inputs], np.int64), caches)
            found += gathered(torch.from_numpy(logits), [wanted])
        return found

    def outputs(self, sources: Sequence[Ids], types: Sequence[Ids] | None) -> Tensor:
        return torch.from_numpy(self._run.once(sources, types))

    def hidden(self, sources: Sequence[Ids]) -> list[Tensor]:
        states = torch.from_numpy(self._run.once(sources))
        return [row[: len(ids)] for row, ids in zip(states, sources, strict=True)]


def check(architecture: Architecture) -> None:
    """Any architecture has a place here."""


ONNX = Target(
    "onnx",
    "graphs for onnxruntime, those of decoders with caches",
    ("onnx", "onnxscript", "onnxruntime"),
    ("float32", "int8"),
    check,
    write,
    InOnnx,
    lambda loaded, kind: own_matrices(loaded) if kind == "int8" else 0,
)
