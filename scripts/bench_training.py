"""How fast tfx trains, against a plain PyTorch program on the same batches.

    python scripts/bench_training.py [--rounds 8] [--steps 15] [overrides of `tfx train` …]

The peer is what one writes with torch alone: `nn.Transformer` of the same widths, tied embeddings, cross-entropy with
label smoothing on all logits, AdamW, fp32. Both take the same real batches in turn, in one process; tokens are real
ones of both sides. Prints the median over rounds, and the ratio to the peer of the same round with its spread.
The arms of tfx differ in precision only, so that what each part brings can be seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from in_turn import options_and_overrides, race
from torch import Tensor, nn

from tfx.config.compose import compose
from tfx.config.schema import ModelConfig
from tfx.errors import UserError
from tfx.model.batch import Batch
from tfx.model.device import choose_device
from tfx.model.positions import sinusoidal_table
from tfx.run.setup import build_model
from tfx.tasks.prepare import prepare_data
from tfx.techniques.stack import Stack
from tfx.training.loop import Observer, Trainer


class Peer(nn.Module):
    """An encoder-decoder of torch's own modules."""

    def __init__(self, config: ModelConfig, vocab: int) -> None:
        super().__init__()
        self.width = config.width
        self.embedding = nn.Embedding(vocab, config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.positions = sinusoidal_table(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.transformer = nn.Transformer(
            config.width,
            config.heads,
            config.encoder_layers,
            config.decoder_layers,
            config.ffn_width,
            config.dropout,
            batch_first=True,
            norm_first=True,
        )

    def embed(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.embedding(ids_BT) * math.sqrt(self.width) + self.positions[: ids_BT.shape[1]].to(ids_BT.device)
        return self.dropout(x_BTD)

    def forward(self, batch: Batch) -> Tensor:
        padding = None if batch.source_mask_BS is None else ~batch.source_mask_BS
        causal = nn.Transformer.generate_square_subsequent_mask(batch.target_in_BT.shape[1], batch.target_in_BT.device)
        hidden = self.transformer(
            self.embed(batch.source_BS),
            self.embed(batch.target_in_BT),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return hidden @ self.embedding.weight.t()


def main() -> None:
    options, overrides = options_and_overrides(__doc__)

    base = compose([*overrides, "trainer.budget.steps=1000000"])
    if base.dataset.task != "seq2seq":
        raise UserError("the peer is an encoder-decoder: name a dataset that is text to text")
    device = choose_device(base.trainer.device)
    data = prepare_data(base.dataset, base.model.context)
    vocab = data.tokenizer.vocab_size

    peer = Peer(base.model, vocab).to(device).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3, betas=(0.9, 0.98))

    def plain(batch: Batch) -> None:
        logits = peer(batch.to(device))
        target_N = batch.target_out_BT.to(device).flatten()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), target_N, ignore_index=-100, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()

    arms: dict[str, Callable[[Batch], object]] = {"plain PyTorch, fp32": plain}
    for precision, name in (("fp32", "adamw"), ("mixed", "adamw"), ("mixed", "muon")):
        words = [*overrides, f"trainer.precision={precision}", f"optimizer={name}", "trainer.budget.steps=1000000"]
        config = compose(words)
        student = build_model(config, data, device, None)
        trainer = Trainer(config, student, data, device, Observer(), Stack.from_config(config))
        student.train()
        arms[f"tfx, {precision}, {name}"] = lambda batch, trainer=trainer: trainer.stepper.take([batch], 1.0, 0, 0.5)

    race(arms, base, data, options.rounds, options.steps)


if __name__ == "__main__":
    main()
