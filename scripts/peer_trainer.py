"""The peer of `bench_train.py`: Seq2SeqTrainer of `transformers` on a Marian model, in a Python of its own.

    python scripts/peer_trainer.py TASK.json

``TASK.json`` names the arrays of tokenized pairs, the model's sizes, how many steps, and the arm: ``defaults``,
``grouped`` (batches of similar lengths) or ``grouped_bf16`` (and autocast to bfloat16). Prints one line of JSON: the
real tokens of both sides, and their seconds, after the steps that warm up.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


class Collator:
    """Pads pairs as `DataCollatorForSeq2Seq` does, and counts their real tokens."""

    def __init__(self, pad: int, start: int) -> None:
        self.pad, self.start = pad, start
        self.tokens: list[int] = []

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        self.tokens.append(sum(len(row["input_ids"]) + len(row["labels"]) for row in rows))
        source = _padded([row["input_ids"] for row in rows], self.pad)
        labels = _padded([row["labels"] for row in rows], -100)
        before = torch.full((len(rows), 1), self.start)
        return {
            "input_ids": source,
            "attention_mask": (source != self.pad).long(),
            "labels": labels,
            "decoder_input_ids": torch.cat([before, labels[:, :-1].masked_fill(labels[:, :-1] < 0, self.pad)], 1),
        }


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    torch.manual_seed(1)
    model, special = task["model"], task["special"]
    pairs = np.load(task["pairs"])
    sides = [np.split(pairs[side], pairs[f"{side}_ends"][:-1]) for side in ("source", "target")]
    rows = [
        {"input_ids": [*source.tolist(), special["eos"]], "labels": [*target.tolist(), special["eos"]]}
        for source, target in zip(*sides, strict=True)
    ]
    config = MarianConfig(
        vocab_size=model["vocab_size"],
        d_model=model["width"],
        encoder_layers=model["encoder_layers"],
        decoder_layers=model["decoder_layers"],
        encoder_attention_heads=model["heads"],
        decoder_attention_heads=model["heads"],
        encoder_ffn_dim=model["ffn_width"],
        decoder_ffn_dim=model["ffn_width"],
        activation_function="relu",
        dropout=model["dropout"],
        max_position_embeddings=model["context"],
        scale_embedding=True,
        pad_token_id=special["pad"],
        bos_token_id=special["bos"],
        eos_token_id=special["eos"],
        decoder_start_token_id=special["bos"],
        forced_eos_token_id=special["eos"],
    )
    collator, clock = Collator(special["pad"], special["bos"]), Clock()
    grouped = {"train_sampling_strategy": "group_by_length"} if task["arm"].startswith("grouped") else {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder,
            max_steps=task["warm"] + task["steps"],
            per_device_train_batch_size=task["rows"],
            label_smoothing_factor=0.1,
            bf16=task["arm"] == "grouped_bf16",
            use_cpu=task["device"] == "cpu",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            **grouped,
        )
        Seq2SeqTrainer(
            MarianMTModel(config), arguments, data_collator=collator, train_dataset=rows, callbacks=[clock]
        ).train()
    first, last = task["warm"] - 1, task["warm"] + task["steps"] - 1
    tokens = sum(collator.tokens[first + 1 : last + 1])
    print(json.dumps({"tokens": tokens, "seconds": clock.ends[last] - clock.ends[first]}))


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    out = torch.full((len(rows), max(map(len, rows))), value)
    for number, row in enumerate(rows):
        out[number, : len(row)] = torch.tensor(row)
    return out


if __name__ == "__main__":
    main()
