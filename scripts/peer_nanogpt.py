"""The peer of `bench_train.py` for language models: a plain loop with the settings that nanoGPT publishes for a CPU.

    python scripts/peer_nanogpt.py TASK.json

Its README (github.com/karpathy/nanoGPT) trains on tinyshakespeare with 4 layers of width 128, 4 heads, a block of 64,
batches of 12, no dropout, no biases, AdamW (0.9, 0.99), weight decay 0.1, a learning rate of 1e-3 that falls by a
cosine to 1e-4 after 100 steps, gradients clipped to 1, 2,000 steps, and names a validation loss of 1.88.
``TASK.json`` names the arrays of ids and the loss to reach. Prints one line of JSON: seconds of training until the
validation loss, looked at every 250 steps, is that low (null: never), and the last loss.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, BLOCK, ROWS, STEPS, LOOK = 4, 4, 128, 64, 12, 2000, 250


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        rows, length, _ = x_BTD.shape
        parts = self.qkv(self.norms[0](x_BTD)).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(rows, length, WIDTH))
        return x_BTD + self.down(functional.gelu(self.up(self.norms[1](x_BTD))))


class Model(nn.Module):
    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, WIDTH), nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if writes else 0.02)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.tokens(ids_BT) + self.positions.weight[: ids_BT.shape[1]]
        return self.norm(self.blocks(x_BTD)) @ self.tokens.weight.t()


def validation_loss(model: Model, ids: Tensor) -> float:
    """Of every token, in windows that do not overlap."""
    count = (len(ids) - 1) // BLOCK * BLOCK
    x, y = ids[:count].view(-1, BLOCK), ids[1 : count + 1].view(-1, BLOCK)
    with torch.no_grad():
        sums = [
            functional.cross_entropy(model(a).flatten(0, 1), b.flatten(), reduction="sum")
            for a, b in zip(x.split(64), y.split(64), strict=True)
        ]
    return float(sum(sums)) / count


def learning_rate(step: int) -> float:
    if step < 100:
        return 1e-3 * (step + 1) / 101
    return 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / (STEPS - 100))) * 9e-4


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    torch.manual_seed(task["seed"])
    arrays = np.load(task["streams"])
    train, valid = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("train", "valid"))
    model = Model(task["vocab_size"])
    sets = [[p for p in model.parameters() if (p.ndim == 2) is is_matrix] for is_matrix in (True, False)]
    groups = [{"params": sets[0], "weight_decay": 0.1}, {"params": sets[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    seconds, reached, loss = 0.0, None, math.inf
    for step in range(STEPS):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        starts = torch.randint(len(train) - BLOCK, (ROWS,)).tolist()
        x = torch.stack([train[i : i + BLOCK] for i in starts])
        y = torch.stack([train[i + 1 : i + BLOCK + 1] for i in starts])
        functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.perf_counter() - start
        if (step + 1) % LOOK == 0:
            loss = validation_loss(model, valid)
            if reached is None and loss <= task["loss"]:
                reached = seconds
    print(json.dumps({"seconds_to_loss": reached, "seconds": seconds, "loss": loss}))


if __name__ == "__main__":
    main()
