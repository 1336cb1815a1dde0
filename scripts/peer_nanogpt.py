"""A peer for language models: a plain loop with the settings that nanoGPT publishes for characters.

    python scripts/peer_nanogpt.py TASK.json

Its README and configs (github.com/karpathy/nanoGPT) train on tinyshakespeare with two sizes. On a CPU: 4 layers of
width 128, 4 heads, a block of 64, batches of 12, no dropout, 2,000 steps, to a validation loss of 1.88. On a GPU: 6
layers of width 384, 6 heads, a block of 256, batches of 64, dropout 0.2, 5,000 steps, to 1.4697; there the model is
compiled and computes in bfloat16. Both: no biases, AdamW (0.9, 0.99), weight decay 0.1, a learning rate of 1e-3 that
falls by a cosine to 1e-4 after 100 steps, gradients clipped to 1.

``TASK.json`` has the arrays of ids, the `Settings`, and either a ``loss`` to reach or ``warm`` steps that do not count.
Prints one line of JSON: tokens and seconds of training after those; with a ``loss`` also the seconds until the
validation loss is that low (null: never), and the last one. Training ends there. Compiling counts. Validation does not,
and so comes every 100 steps.
"""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

WARM_UP, HIGHEST, LOWEST = 100, 1e-3, 1e-4


@dataclass(frozen=True)
class Settings:
    """Sizes of the model and of a batch, and how long it trains; those for a CPU."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    block: int = 64
    rows: int = 12
    dropout: float = 0.0
    bias: bool = False
    steps: int = 2000
    look: int = 100


class Block(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width, bias = settings.width, settings.bias
        self.heads, self.dropout = settings.heads, settings.dropout
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width, bias=bias)
        self.up, self.down = nn.Linear(width, 4 * width, bias=bias), nn.Linear(4 * width, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        rows, length, width = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = (
            part.view(rows, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norms[0](x_BTD)).split(width, 2)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, dropout_p=dropout, is_causal=True)
        x_BTD = x_BTD + self._dropped(self.out(mixed.transpose(1, 2).reshape(rows, length, width)))
        return x_BTD + self._dropped(self.down(functional.gelu(self.up(self.norms[1](x_BTD)))))

    def _dropped(self, x_BTD: Tensor) -> Tensor:
        return functional.dropout(x_BTD, self.dropout, self.training)


class Model(nn.Module):
    def __init__(self, vocab: int, settings: Settings) -> None:
        super().__init__()
        self.dropout = settings.dropout
        self.tokens, self.positions = (nn.Embedding(count, settings.width) for count in (vocab, settings.block))
        self.blocks = nn.Sequential(*(Block(settings) for _ in range(settings.layers)))
        self.norm = nn.LayerNorm(settings.width, bias=settings.bias)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                writes = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * settings.layers) if writes else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.tokens(ids_BT) + self.positions.weight[: ids_BT.shape[1]]
        x_BTD = functional.dropout(x_BTD, self.dropout, self.training)
        return self.norm(self.blocks(x_BTD)) @ self.tokens.weight.t()


def validation_loss(model: Model, ids: Tensor, settings: Settings, device: torch.device) -> float:
    """Of every token, in windows that do not overlap."""
    count = (len(ids) - 1) // settings.block * settings.block
    x, y = (part.view(-1, settings.block) for part in (ids[:count], ids[1 : count + 1]))
    model.eval()
    with torch.no_grad(), precision(device):
        sums = [
            functional.cross_entropy(model(a.to(device)).flatten(0, 1), b.to(device).flatten(), reduction="sum")
            for a, b in zip(x.split(64), y.split(64), strict=True)
        ]
    model.train()
    return float(sum(sums)) / count


def learning_rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return HIGHEST * (step + 1) / (WARM_UP + 1)
    part = (step - WARM_UP) / (steps - WARM_UP)
    return LOWEST + 0.5 * (1 + math.cos(math.pi * part)) * (HIGHEST - LOWEST)


def precision(device: torch.device) -> AbstractContextManager[None]:
    """Nothing on a CPU, for which nanoGPT has fp32."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def optimizer_of(model: Model, device: torch.device) -> torch.optim.AdamW:
    sets = [[p for p in model.parameters() if (p.ndim == 2) is is_matrix] for is_matrix in (True, False)]
    groups = [{"params": sets[0], "weight_decay": 0.1}, {"params": sets[1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=HIGHEST, betas=(0.9, 0.99), fused=device.type == "cuda")


def random_batch(ids: Tensor, settings: Settings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows from anywhere, and the ids that follow; copied to a GPU while it computes."""
    starts = torch.randint(len(ids) - settings.block, (settings.rows, 1))
    windows = ids[starts + torch.arange(settings.block + 1)]
    if device.type == "cuda":
        windows = windows.pin_memory().to(device, non_blocking=True)
    return windows[:, :-1], windows[:, 1:]


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def train(task: dict[str, Any]) -> dict[str, Any]:
    """What a training measures."""
    device, settings = torch.device(task["device"]), Settings(**task["settings"])
    torch.manual_seed(task["seed"])
    arrays = np.load(task["streams"])
    ids, valid = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("train", "valid"))
    model = Model(task["vocab_size"], settings).to(device)
    trained = model
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        trained = torch.compile(model)
    optimizer = optimizer_of(model, device)
    aim, warm = task.get("loss"), task.get("warm", 0)
    seconds, start, loss, reached = 0.0, now(device), None, None
    for step in range(settings.steps):
        if step == warm:
            seconds, start = 0.0, now(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps)
        x, y = random_batch(ids, settings, device)
        with precision(device):
            average = functional.cross_entropy(trained(x).flatten(0, 1), y.flatten())
        average.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if aim is not None and (step + 1) % settings.look == 0:
            seconds += now(device) - start
            loss = validation_loss(model, valid, settings, device)
            if loss <= aim:
                reached = seconds
                break
            start = now(device)
    if reached is None:
        seconds += now(device) - start
    tokens = (step + 1 - warm) * settings.rows * settings.block
    return {"tokens": tokens, "seconds": seconds, "seconds_to_loss": reached, "loss": loss}


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    print(json.dumps(train(task)))


if __name__ == "__main__":
    main()
