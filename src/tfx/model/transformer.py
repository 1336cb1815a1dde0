"""The Transformer families, built from one kind of block: encoder-decoder (Vaswani 2017), decoder-only (Radford 2019),
and encoders (Devlin 2019), alone or with a layer for labels.

Shapes: B batch, S source positions, T target positions, D model width, V vocabulary, K head width.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tfx.config.schema import ModelConfig
from tfx.errors import UserError
from tfx.model.architecture import Architecture, BlockShape
from tfx.model.attention import Bias
from tfx.model.batch import Batch, Blend, Mix
from tfx.model.compilation import settle
from tfx.model.convolution import Convolution
from tfx.model.device import device_memory
from tfx.model.dropout import Dropout, TokenDropout
from tfx.model.engine import Engine
from tfx.model.exit_head import ExitHead
from tfx.model.layers import BlockStack, make_norm
from tfx.model.parameter_roles import Role, parameter_roles
from tfx.model.pooling import Pooling, make_pooling
from tfx.model.positions import (
    distances,
    document_mask,
    document_places,
    relative_buckets,
    rotary_table,
    sinusoidal_table,
)
from tfx.record.seeds import derive_seed

# Buffers that are computed from the architecture.
_TABLES = ("sinusoids", "rotary_cos", "rotary_sin")


class States(NamedTuple):
    """What enters each block of a model and what leaves the last one, (B, L, D) each, by stack."""

    encoder: list[Tensor]
    decoder: list[Tensor]


class Transformer(nn.Module):
    """An encoder-decoder, a decoder-only Transformer or an encoder, as its `Architecture` says.

    ``forward`` returns hidden states, and ``project`` turns them into logits. They are separate because the
    loss projects the hidden states in slices: the logits of a whole batch would be the largest tensor.
    """

    # Decodes in the place of this model, if set.
    engine: Engine | None = None
    sinusoids: Tensor | None
    rotary_cos: Tensor | None
    rotary_sin: Tensor | None

    def __init__(self, architecture: Architecture, config: ModelConfig | None = None) -> None:
        """``config`` gives the dropout rates; without it there is no dropout, as in a model that never trains."""
        super().__init__()
        self.architecture = architecture
        self.rates = rates = config or ModelConfig(dropout=0.0)
        width, vocab = architecture.width, architecture.vocab_size
        dropouts = {
            "dropout": rates.dropout,
            "attention_dropout": rates.attention_dropout,
            "ffn_dropout": rates.ffn_dropout,
            "layer_dropout": rates.layer_dropout,
        }
        self.embedding = nn.Embedding(vocab, width)
        self.source_embedding = self.embedding
        self.encoder: BlockStack | None = None
        if architecture.has_encoder:
            if architecture.tied_embeddings not in ("all", "inputs"):
                self.source_embedding = nn.Embedding(vocab, width)
            self.encoder = BlockStack(architecture, architecture.encoder, **dropouts)
        self.decoder = BlockStack(architecture, architecture.decoder, **dropouts)
        self.pooling: Pooling | None = None
        if architecture.outputs is not None:
            self.pooling = make_pooling(architecture, rates.dropout)
        has_bias = architecture.output_bias or self.pooling is not None
        self.output = nn.Linear(width, architecture.output_count, bias=has_bias)
        self._tie()
        self.exits = nn.ModuleList(ExitHead(architecture, rates.dropout) for _ in architecture.exits)
        self.dropout = Dropout(rates.dropout)
        self.token_dropout = TokenDropout(rates.token_dropout)
        self.position = nn.Embedding(architecture.context, width) if architecture.positions == "learned" else None
        self.token_type = nn.Embedding(architecture.token_types, width) if architecture.token_types else None
        self.embedding_norm = make_norm(architecture) if architecture.embedding_norm else None
        self.convolution = Convolution(architecture, rates.dropout) if architecture.convolution else None
        self.embedding_scale = math.sqrt(width) if architecture.embedding_scale else 1.0
        self._make_tables()

    @classmethod
    def holding(
        cls, architecture: Architecture, state: Mapping[str, Tensor], config: ModelConfig | None = None
    ) -> Transformer:
        """A model that uses these tensors as its weights, without a copy and without drawing any weights first."""
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of tensors without elements
            model = cls(architecture, config)
        model.load_state_dict(state, assign=True)
        model._tie()
        with torch.device("cpu"):  # the same bits on every device
            model._make_tables()
        for name in _TABLES:
            table = getattr(model, name)
            setattr(model, name, None if table is None else table.to(model.embedding.weight.device))
        return model

    def _tie(self) -> None:
        if self.architecture.tied_embeddings in ("all", "output") and self.architecture.outputs is None:
            self.output.weight = self.embedding.weight

    def _make_tables(self) -> None:
        architecture = self.architecture
        sinusoids = cos = sin = None
        if architecture.positions == "sinusoidal":
            sinusoids = sinusoidal_table(architecture.context, architecture.width)
        elif architecture.positions == "rotary":
            cos, sin = rotary_table(architecture)
        for name, table in zip(_TABLES, (sinusoids, cos, sin), strict=True):
            self.register_buffer(name, table, persistent=False)

    # --- the pieces ---------------------------------------------------------------------------------

    def embed(
        self,
        tokens_BT: Tensor,
        table: nn.Embedding,
        places: slice | Tensor | None = None,
        blend: Blend | None = None,
        types_BT: Tensor | None = None,
    ) -> Tensor:
        """Embeds tokens, scaled by sqrt(D) unless told not to, with dropout.

        ``places`` are their positions, the same for all rows or (B, T); None: from 0 on.
        With ``blend``, each row is the weighted sum of its own and its partner's; padding (not ``real``) adds 0.
        ``types`` are the token types, if the model has such embeddings; None: all 0.
        """
        x_BTD = self._looked_up(tokens_BT, table, None if blend is None else blend.real_BL)
        if blend is not None:
            partner_BTD = self._looked_up(blend.partner_BL, table, blend.partner_real_BL)
            x_BTD = torch.lerp(partner_BTD, x_BTD, blend.weight_B.to(x_BTD.dtype).view(-1, 1, 1))
        if places is None:
            places = slice(0, tokens_BT.shape[1])
        if self.sinusoids is not None:
            x_BTD = x_BTD + self.sinusoids[places]
        elif self.position is not None:
            # Position and type embeddings are stored like token embeddings, so they are scaled in the same way.
            x_BTD = x_BTD + self.position.weight[places] * self.embedding_scale
        if self.token_type is not None:
            kinds = torch.zeros_like(tokens_BT) if types_BT is None else types_BT
            kinds_BTD = self.token_type(kinds)
            if blend is not None and blend.partner_types_BL is not None:
                partner_BTD = self.token_type(blend.partner_types_BL)
                kinds_BTD = torch.lerp(partner_BTD, kinds_BTD, blend.weight_B.to(kinds_BTD.dtype).view(-1, 1, 1))
            x_BTD = x_BTD + kinds_BTD * self.embedding_scale
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(x_BTD)
        return self.dropout(x_BTD)

    def _looked_up(self, tokens_BT: Tensor, table: nn.Embedding, real_BT: Tensor | None) -> Tensor:
        x_BTD = self.token_dropout(table(tokens_BT) * self.embedding_scale)
        return x_BTD if real_BT is None else x_BTD * real_BT.unsqueeze(-1)

    def encode(
        self,
        source_BS: Tensor,
        source_mask_BS: Tensor | None,
        mix: Mix | None = None,
        types_BS: Tensor | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Returns the memory (B, S, D); ``source_mask`` is True on real tokens, None if all are real.

        ``types`` are the token types (see `embed`), and ``states`` is filled by `BlockStack`.
        """
        assert self.encoder is not None
        x_BSD, bias, rotary = self.entering(source_BS, source_mask_BS, mix, types_BS)
        return self.encoder(x_BSD, bias, rotary=rotary, states=states)

    def entering(
        self,
        source_BS: Tensor,
        source_mask_BS: Tensor | None,
        mix: Mix | None = None,
        types_BS: Tensor | None = None,
    ) -> tuple[Tensor, Bias, tuple[Tensor, Tensor] | None]:
        """What enters the first block of the encoder (B, S, D), with the bias and the rotary table of all blocks."""
        length = source_BS.shape[1]
        bias = Bias(key_mask(source_mask_BS))
        self._add_distances(bias, length, source_BS.device, is_causal=False)
        x_BSD = self.embed(source_BS, self.source_embedding, None, None if mix is None else mix.source, types_BS)
        if self.convolution is not None:
            x_BSD = self.convolution(x_BSD, source_mask_BS)
        return x_BSD, bias, self._rotary(length)

    def decode(
        self,
        target_BT: Tensor,
        memory_BSD: Tensor | None = None,
        source_mask_BS: Tensor | None = None,
        mix: Mix | None = None,
        states: list[Tensor] | None = None,
        document_start: int | None = None,
    ) -> Tensor:
        """Returns the hidden states (B, T, D) of target positions; `tfx.model.decoding` has them step by step.

        With a ``document_start`` each document has the states that it has alone: it begins with this token at position
        0, and sees no other one.
        """
        length = target_BT.shape[1]
        blend = None if mix is None else mix.target
        places_BT = None
        has_bias = self.architecture.positions in ("alibi", "relative")
        bias = Bias(causal=length > 1 and not has_bias and document_start is None)
        if document_start is not None:
            places_BT = _places(target_BT, document_start, blend)
            bias.mask = document_mask(places_BT)
        elif length > 1 and not bias.causal:
            # The kernel's causal mask cannot be combined with a bias.
            bias.mask = torch.ones(length, length, dtype=torch.bool, device=target_BT.device).tril()
        # Distances and rotary angles count from token to token: where a row's documents begin makes no difference.
        self._add_distances(bias, length, target_BT.device, is_causal=True)
        x_BTD = self.embed(target_BT, self.embedding, places_BT, blend)
        memory_bias = Bias(key_mask(source_mask_BS))
        return self.decoder(x_BTD, bias, memory_BSD, memory_bias, rotary=self._rotary(length), states=states)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return self.output(hidden)

    def forward(
        self,
        target_BT: Tensor,
        source_BS: Tensor | None = None,
        source_mask_BS: Tensor | None = None,
        mix: Mix | None = None,
        types_BS: Tensor | None = None,
        *,
        with_states: bool = False,
        document_start: int | None = None,
    ) -> Tensor | tuple[Tensor, States]:
        """Hidden states (B, T, D) at every target position, teacher-forced; a language model has no source.

        A classifier reads no target, and has one state (B, 1, D) for each source. ``with_states``: those between the
        blocks too. ``document_start``: see `decode`.
        """
        states = States([], []) if with_states else None
        memory_BSD = None
        if source_BS is not None:
            memory_BSD = self.encode(source_BS, source_mask_BS, mix, types_BS, states.encoder if states else None)
        if self.pooling is not None:
            assert memory_BSD is not None
            hidden_BTD = self.pooling(memory_BSD, source_mask_BS).unsqueeze(1)
        else:
            decoder_states = states.decoder if states else None
            hidden_BTD = self.decode(target_BT, memory_BSD, source_mask_BS, mix, decoder_states, document_start)
        return hidden_BTD if states is None else (hidden_BTD, states)

    def exits_at(self, threshold: float | None) -> None:
        """Sets the probability of its likeliest label from which a text leaves early; None: none does."""
        self.architecture = replace(self.architecture, exit_threshold=threshold)

    def projections(self, stack: BlockStack, number: int, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, L, K) of the self-attention of a stack's layer, from what enters the layer.

        Positions are those from 0 on. Query heads that share keys and values each get them.
        """
        block = stack.layers[number]
        return block.attention.projections(block.attended(x_BLD), None, self._rotary(x_BLD.shape[1]))

    def output_factors(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Two matrices (N, D) and (V, D), or with one more column each for the bias: the first times the second
        transposed is ``project(hidden)``, for losses that work on the product in slices.
        """
        if self.output.bias is None:
            return hidden_ND, self.output.weight
        ones_N1 = torch.ones_like(hidden_ND[:, :1])
        return torch.cat([hidden_ND, ones_N1], 1), torch.cat([self.output.weight, self.output.bias.unsqueeze(1)], 1)

    # --- details ------------------------------------------------------------------------------------

    def _add_distances(self, bias: Bias, length: int, device: torch.device, *, is_causal: bool) -> None:
        """Tells the bias of self-attention how far all positions are from each other."""
        if self.architecture.positions not in ("alibi", "relative"):
            return
        bias.distance_TS = distances(length, length, 0, device)
        if self.architecture.positions == "relative":
            bias.bucket_TS = relative_buckets(bias.distance_TS, self.architecture, is_causal=is_causal)

    def _rotary(self, length: int) -> tuple[Tensor, Tensor] | None:
        if self.rotary_cos is None or self.rotary_sin is None:
            return None
        return self.rotary_cos[:length], self.rotary_sin[:length]

    def set_checkpointing(self, enabled: bool) -> None:
        """Turns activation checkpointing on or off."""
        for stack in (self.encoder, self.decoder):
            if stack is not None:
                stack.checkpointing = enabled


def _places(target_BT: Tensor, document_start: int, blend: Blend | None) -> Tensor:
    """The position (B, T) of each token in its document."""
    places_BT = document_places(target_BT, document_start)
    if blend is None:
        return places_BT
    # Where rows are mixed, a document of either ends at the first end of both.
    return torch.minimum(places_BT, document_places(blend.partner_BL, document_start))


def seen_targets(batch: Batch) -> Tensor:
    """Where a target position sees another one, (B, T, T) or (1, T, T): itself and those before it in its document."""
    if batch.document_start is not None:
        blend = None if batch.mix is None else batch.mix.target
        return document_mask(_places(batch.target_in_BT, batch.document_start, blend))[:, 0]
    length, device = batch.target_in_BT.shape[1], batch.target_in_BT.device
    return torch.ones(1, length, length, dtype=torch.bool, device=device).tril()


def run_batch(model: Transformer, batch: Batch) -> Tensor:
    """Teacher-forced hidden states (B, T, D) of a batch; of a classifier one for each row."""
    settle(model, batch, model.architecture.context)
    inputs = (batch.target_in_BT, batch.source_BS, batch.source_mask_BS, batch.mix, batch.types_BS)
    return model(*inputs, document_start=batch.document_start)


def run_batch_with_states(model: Transformer, batch: Batch) -> tuple[Tensor, States]:
    """The same with the states between the blocks."""
    settle(model, batch, model.architecture.context, with_states=True)
    inputs = (batch.target_in_BT, batch.source_BS, batch.source_mask_BS, batch.mix, batch.types_BS)
    return model(*inputs, with_states=True, document_start=batch.document_start)


def key_mask(mask_BS: Tensor | None) -> Tensor | None:
    """The mask of a `Bias` from that of the keys' tokens, True on real ones."""
    return None if mask_BS is None else mask_BS[:, None, None, :]


def count_parameters(architecture: Architecture) -> int:
    """Number of weights in a model. Counts each shape of block once, on the meta device, which takes no memory."""

    def count(encoder: tuple[BlockShape, ...], decoder: tuple[BlockShape, ...]) -> int:
        with torch.device("meta"):
            model = Transformer(replace(architecture, encoder=encoder, decoder=decoder))
        return sum(parameter.numel() for parameter in model.parameters())

    bare = count((), ())
    encoder = sum(n * (count((shape,), ()) - bare) for shape, n in Counter(architecture.encoder).items())
    return bare + encoder + sum(n * (count((), (shape,)) - bare) for shape, n in Counter(architecture.decoder).items())


def check_fits(architecture: Architecture, device: torch.device, parts: int = 1) -> None:
    """Raises `UserError` if fp32 weights, gradients and one moment need more memory than the device has.

    Where they are divided into several ``parts``, a device holds one, and at times all weights beside it.
    """
    parameters, available = count_parameters(architecture), device_memory(device)
    needed = 3 * 4 * parameters // parts + (4 * parameters if parts > 1 else 0)
    if available is not None and needed > available:
        raise UserError(
            f"a model of {parameters:,} parameters needs at least {needed / 1e9:,.0f} GB to train, and {device} has "
            f"{available / 1e9:,.0f} GB: lower model.width, model.ffn_width, the layers or the vocabulary"
        )


def initialise(model: Transformer, seed: int) -> None:
    """Draws every weight anew, each from a generator keyed by the weight's name.

    So a model with one part more or less starts from the same weights in all other parts. Matrices are
    Xavier-uniform (Glorot 2010). In a pre-norm model, those that write to the residual stream are divided by
    the square root of the number of writes in their stack (Radford 2019). Embeddings have variance 1/D, which
    gives unit variance once they are scaled by sqrt(D).
    """
    architecture = model.architecture
    writes = {
        "encoder": architecture.passes * 2 * len(architecture.encoder),
        "decoder": architecture.passes * sum(3 if shape.cross_heads else 2 for shape in architecture.decoder),
    }
    # It writes to the stream of the encoder.
    writes["convolution"] = writes["encoder"]
    roles = parameter_roles(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(derive_seed(seed, f"init/{name}"))
            value = torch.empty(parameter.shape)
            if roles[name] in (Role.EMBEDDING, Role.HEAD):
                value.normal_(std=model.architecture.width**-0.5, generator=generator)
            elif roles[name] is Role.MATRIX:
                bound = math.sqrt(6.0 / sum(parameter.shape))
                if name.endswith(("o.weight", "down.weight")) and model.architecture.norm_position == "pre":
                    bound /= math.sqrt(writes[name.split(".", 1)[0]])
                value.uniform_(-bound, bound, generator=generator)
            else:
                value.fill_(0.0 if roles[name] is Role.BIAS else 1.0)
            parameter.copy_(value)
