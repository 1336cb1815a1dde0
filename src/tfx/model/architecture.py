"""The shape of a model without its weights, as the header of a checkpoint records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from math import isfinite
from typing import Any

from tfx.config.schema import ModelConfig, is_in_range
from tfx.errors import UserError

# Limits on what a file's header may ask for, all above what anyone trains. A config has the same limit on blocks.
_MAX_BLOCKS = 1000
_MAX_HEADS = 1024
_MAX_WIDTH = 1 << 24
# Limit on a table of sines or angles: 256 MB, which every process with the model keeps in memory.
_MAX_TABLE_ELEMENTS = 1 << 26


# Each label is a name in the header of the file, which is read at once.
MAX_LABELS = 100_000
_PREDICTIONS = ("one", "several", "number")

# The activations that gate, and what is applied to the gate.
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class BlockShape:
    """Widths of one block. Each block has its own because structured pruning changes them one by one.

    Heads are counts: every head is ``Architecture.head_width`` wide. ``cross_heads`` is 0 if the block has
    no cross-attention. Each key/value head serves ``heads / kv_heads`` query heads. ``ranks`` are those of the matrices
    that are products of two, by their name in the block (`Architecture.matrices`).
    """

    heads: int
    kv_heads: int
    cross_heads: int
    cross_kv_heads: int
    ffn: int
    ranks: tuple[tuple[str, int], ...] = ()

    def keeping(self, kv_heads: int, cross_kv_heads: int, ffn: int) -> BlockShape:
        """The shape with these numbers of key/value heads and units; query heads go with their key/value head."""
        return replace(
            self,
            heads=kv_heads * (self.heads // self.kv_heads),
            kv_heads=kv_heads,
            cross_heads=cross_kv_heads * (self.cross_heads // self.cross_kv_heads) if self.cross_heads else 0,
            cross_kv_heads=cross_kv_heads,
            ffn=ffn,
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """The numbers of heads and of units."""
        return (self.heads, self.kv_heads, self.cross_heads, self.cross_kv_heads, self.ffn)

    def to_dict(self) -> dict[str, Any]:
        """The shape as plain JSON values; without ranks, which earlier versions do not know, if there are none."""
        values = asdict(self)
        ranks = dict(values.pop("ranks"))
        return {**values, "ranks": ranks} if ranks else values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BlockShape:
        """The inverse of `to_dict`."""
        return cls(**{**values, "ranks": tuple(values.get("ranks", {}).items())})


@dataclass(frozen=True)
class Outputs:
    """What the outputs of a classifier stand for, where they are no tokens.

    ``predicts`` is ``one`` label a text, ``several`` at once, or a ``number``: then there are no ``labels``, and the
    number is ``offset + scale`` times the one output. ``pairs``: each input is a pair of texts. ``windows``: a text
    longer than the context is read in windows.
    """

    predicts: str
    labels: tuple[str, ...] = ()
    offset: float = 0.0
    scale: float = 1.0
    pairs: bool = False
    windows: bool = False

    @property
    def count(self) -> int:
        """How many outputs there are."""
        return max(1, len(self.labels))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outputs:
        """From plain JSON values; raises `KeyError`, `TypeError` or `ValueError` for a record that is none."""
        found = cls(**{**values, "labels": tuple(values.get("labels", ()))})
        numbers = (found.offset, found.scale)
        if found.predicts not in _PREDICTIONS or {type(found.pairs), type(found.windows)} != {bool}:
            raise ValueError(f"its outputs are {found.predicts!r}")
        if not all(isinstance(label, str) for label in found.labels) or len(set(found.labels)) < len(found.labels):
            raise ValueError("its labels are not different words")
        if len(found.labels) > MAX_LABELS or bool(found.labels) == (found.predicts == "number"):
            raise ValueError(f"it has {len(found.labels):,} labels")
        if not all(type(number) in (int, float) and isfinite(number) for number in numbers) or found.scale == 0:
            raise ValueError("the scale of its numbers is none")
        return found


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build the module for a set of weights."""

    family: str
    vocab_size: int
    width: int
    head_width: int
    context: int
    encoder: tuple[BlockShape, ...]
    decoder: tuple[BlockShape, ...]
    positions: str
    norm_position: str
    norm: str
    activation: str
    qk_norm: bool
    bias: bool
    tied_embeddings: str
    norm_eps: float | None = None
    attention_bias: bool | None = None
    ffn_bias: bool | None = None
    output_bias: bool = False
    embedding_scale: bool = True
    embedding_norm: bool = False
    token_types: int = 0
    rotary_base: float = 10000.0
    rotary_scaling: str = "none"
    rotary_factor: float = 1.0
    rotary_low: float = 1.0
    rotary_high: float = 4.0
    rotary_context: int = 8192
    relative_buckets: int = 32
    relative_distance: int = 128
    pooling: str = "mean"
    pooler: bool = False
    outputs: Outputs | None = None
    # Of a classifier: after how many encoder blocks a head of its own reads the states, and the probability of its
    # likeliest label from which a text is done there (None: none is).
    exits: tuple[int, ...] = ()
    exit_threshold: float | None = None
    passes: int = 1
    convolution: int = 0

    @classmethod
    def from_config(cls, model: ModelConfig, vocab_size: int, outputs: Outputs | None = None) -> Architecture:
        """Builds an architecture of equal blocks from a config; raises `UserError` if it cannot be built.

        A classifier also needs what its ``outputs`` stand for, which the data says.
        """
        check_model(model)
        kv_heads = model.kv_heads or model.heads
        is_seq2seq = model.family == "seq2seq"
        encoder = BlockShape(model.heads, kv_heads, 0, 0, model.ffn_width)
        decoder = encoder
        if is_seq2seq:
            decoder = BlockShape(model.heads, kv_heads, model.heads, kv_heads, model.ffn_width)
        same = {f.name: getattr(model, f.name) for f in fields(cls) if hasattr(model, f.name)}
        return cls(
            **same,
            vocab_size=vocab_size,
            head_width=model.width // model.heads,
            encoder=(encoder,) * model.encoder_layers,
            decoder=(decoder,) * model.decoder_layers,
            outputs=outputs,
        )

    def to_config(self, model: ModelConfig) -> ModelConfig:
        """The settings of this architecture, with the rates and the name of ``model``.

        Blocks that differ, or heads of another width than the model's by their number, have no setting: that of the
        first block, and that of ``model``, stand for them.
        """
        shape = (self.decoder or self.encoder)[0]
        same: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if hasattr(model, f.name)}
        heads = shape.heads if self.width == shape.heads * self.head_width else model.heads
        kv_heads = shape.kv_heads if heads == shape.heads and shape.kv_heads != heads else None
        same |= {"encoder_layers": len(self.encoder), "decoder_layers": len(self.decoder)}
        return replace(model, **same, heads=heads, kv_heads=kv_heads, ffn_width=shape.ffn)

    def to_dict(self) -> dict[str, Any]:
        """The architecture as plain JSON values.

        Fields that were added later are left out at their defaults: the file is smaller, and earlier versions read it.
        """
        values = asdict(self)
        values |= {stack: tuple(shape.to_dict() for shape in getattr(self, stack)) for stack in ("encoder", "decoder")}
        return {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Architecture:
        """The inverse of `to_dict`; fields that an older record lacks take their defaults.

        Raises `UserError` if the record is malformed, no config could make it, or a newer tfx has added fields.
        """
        try:
            if newer := sorted(values.keys() - {f.name for f in fields(cls)}):
                raise ValueError(f"this version of tfx does not know its {', '.join(newer)}")
            known = {f.name: values[f.name] for f in fields(cls) if f.name in values or f.default is MISSING}
            for stack in ("encoder", "decoder"):
                if len(known[stack]) > _MAX_BLOCKS:
                    raise ValueError(f"its {stack} has {len(known[stack]):,} blocks, more than {_MAX_BLOCKS:,}")
                known[stack] = tuple(BlockShape.from_dict(shape) for shape in known[stack])
            if known.get("outputs") is not None:
                known["outputs"] = Outputs.from_dict(known["outputs"])
            known["exits"] = tuple(known.get("exits", ()))
            architecture = cls(**known)
            architecture.check()
            return architecture
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the architecture in the file's header is not readable: {error}") from error

    def check(self) -> None:
        """Raises `ValueError` for a value of the wrong type or out of range."""
        widths = {name: getattr(self, name) for name in ("vocab_size", "width", "head_width", "context")}
        blocks = (*self.encoder, *self.decoder)
        inner = [value for shape in blocks for value in shape.widths]
        if not all(type(value) is int and 1 <= value <= _MAX_WIDTH for value in widths.values()):
            raise ValueError(f"{widths} must be whole numbers from 1 to {_MAX_WIDTH:,}")
        if not all(type(value) is int and 0 <= value <= _MAX_WIDTH for value in inner):
            raise ValueError("a width of a block is not a number in range")
        if any(max(shape.widths[:4]) > _MAX_HEADS for shape in blocks):
            raise ValueError(f"a block has more than {_MAX_HEADS:,} heads")
        for shape in blocks:
            for name, rank in shape.ranks:
                if name not in self.matrices(shape) or type(rank) is not int or not 1 <= rank <= _MAX_WIDTH:
                    raise ValueError(f"a block has the rank {rank!r} of '{name}'")
        for f in fields(self):
            setting = ModelConfig.__dataclass_fields__.get(f.name)
            if setting is not None and not _is_allowed(getattr(self, f.name), str(f.type), setting.metadata):
                raise ValueError(f"{f.name} is {getattr(self, f.name)!r}")
        if (self.outputs is None) == (self.family == "classification"):
            raise ValueError(f"a model of family {self.family} has {'no' if self.outputs is None else 'such'} outputs")
        self._check_exits()
        if self.convolution and (self.convolution % 2 == 0 or not is_encoder(self.family)):
            raise ValueError(f"a model of family {self.family} has a convolution of {self.convolution} tokens")
        if _table_elements(self.positions, self.context, self.width, self.head_width) > _MAX_TABLE_ELEMENTS:
            raise ValueError(f"its context of {self.context:,} tokens is too long for {self.positions} positions")

    def _check_exits(self) -> None:
        if not all(type(depth) is int and 0 < depth < len(self.encoder) for depth in self.exits):
            raise ValueError(f"its exits {list(self.exits)} are not after inner blocks")
        if list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"its exits {list(self.exits)} do not come one after another")
        if self.exits and (self.outputs is None or self.outputs.predicts != "one"):
            raise ValueError("it has exits, and does not predict one label")
        threshold = self.exit_threshold
        if threshold is not None and not (type(threshold) in (int, float) and self.exits and 0 < threshold <= 1):
            raise ValueError(f"texts leave it at the probability {threshold!r}")

    def matrices(self, shape: BlockShape) -> dict[str, tuple[int, int]]:
        """The linear layers of a block of this shape by their name in it: outputs and inputs."""
        sizes: dict[str, tuple[int, int]] = {}
        for part, heads, groups in (
            ("attention", shape.heads, shape.kv_heads),
            ("cross", shape.cross_heads, shape.cross_kv_heads),
        ):
            if heads:
                own, shared = heads * self.head_width, groups * self.head_width
                rows_of = {"q": own, "k": shared, "v": shared}
                sizes |= {f"{part}.{layer}": (rows, self.width) for layer, rows in rows_of.items()}
                sizes[f"{part}.o"] = (self.width, own)
        sizes |= {f"ffn.{layer}": (shape.ffn, self.width) for layer in (("up", "gate") if self.is_gated else ("up",))}
        return {**sizes, "ffn.down": (self.width, shape.ffn)}

    @property
    def is_seq2seq(self) -> bool:
        """Whether there are an encoder and a decoder."""
        return self.family == "seq2seq"

    @property
    def has_encoder(self) -> bool:
        """Whether a source is encoded."""
        return self.family != "lm"

    @property
    def output_count(self) -> int:
        """How many outputs a hidden state is projected to: tokens, or those of a classifier."""
        return self.vocab_size if self.outputs is None else self.outputs.count

    @property
    def is_gated(self) -> bool:
        """Whether a third linear layer gates the feed-forward units (Shazeer 2020, arXiv 2002.05202)."""
        return self.activation in GATED

    @property
    def epsilon(self) -> float:
        """What is added to the variance in a norm."""
        return self.norm_eps or (1e-6 if self.norm == "rmsnorm" else 1e-5)


def with_outputs(encoder: Architecture, model: ModelConfig, outputs: Outputs | None) -> Architecture:
    """The classifier on an encoder, pooled as the config says."""
    return replace(
        encoder,
        family="classification",
        outputs=outputs,
        pooling=model.pooling,
        pooler=model.pooler,
        tied_embeddings="all",
        output_bias=False,
    )


def is_encoder(family: str) -> bool:
    """Whether models of a family are an encoder alone, or with a layer for labels."""
    return family in ("classification", "encoder")


def check_model(model: ModelConfig) -> None:
    """Raises `UserError` for combinations of model settings that cannot be built."""
    if model.width % model.heads:
        raise UserError(f"model.width={model.width} must be a multiple of model.heads={model.heads}")
    if model.kv_heads is not None and model.heads % model.kv_heads:
        raise UserError(f"model.heads={model.heads} must be a multiple of model.kv_heads={model.kv_heads}")
    if model.family == "lm" and model.encoder_layers:
        raise UserError(f"model.family=lm has no encoder: set model.encoder_layers=0 (not {model.encoder_layers})")
    is_alone = is_encoder(model.family)
    if model.convolution and not is_alone:
        raise UserError(f"model.convolution is for encoders, and model.family is {model.family}: leave it out")
    if model.convolution and model.convolution % 2 == 0:
        raise UserError(f"model.convolution={model.convolution} has no middle token: use {model.convolution + 1}")
    if model.family != "lm" and not model.encoder_layers:
        raise UserError(f"model.family={model.family} needs an encoder: set model.encoder_layers to 1 or more")
    if is_alone != (model.decoder_layers == 0):
        what = (
            "no decoder: set model.decoder_layers=0" if is_alone else "a decoder: set model.decoder_layers to 1 or more"
        )
        raise UserError(f"model.family={model.family} has {what} (not {model.decoder_layers})")
    if model.positions == "rotary" and (model.width // model.heads) % 2:
        raise UserError(f"model.positions=rotary needs an even head width, not {model.width // model.heads}")
    if model.positions == "sinusoidal" and model.width % 2:
        raise UserError(f"model.positions=sinusoidal needs an even model.width, not {model.width}")
    if _table_elements(model.positions, model.context, model.width, model.width // model.heads) > _MAX_TABLE_ELEMENTS:
        raise UserError(
            f"model.context={model.context} makes a table of {model.positions} positions with more than "
            f"{_MAX_TABLE_ELEMENTS:,} entries: lower it, or use model.positions=alibi"
        )


def _is_allowed(value: Any, kind: str, metadata: Mapping[str, Any]) -> bool:
    """Whether a value from a file has the type of its field, and lies in the range of the setting of its name."""
    if value is None:
        return "None" in kind
    types = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}
    if type(value) not in types[kind.partition(" ")[0]]:
        return False
    if metadata["choices"]:
        return value in metadata["choices"]
    return type(value) is bool or (isfinite(value) and is_in_range(value, metadata))


def _table_elements(positions: str, context: int, width: int, head_width: int) -> int:
    return context * {"sinusoidal": width, "rotary": 2 * head_width}.get(positions, 0)
