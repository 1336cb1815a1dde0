"""Measurements in fresh processes: a script that reads its task from a file, and the tasks of tfx's peers.

Each script (`train_worker.py`, `peer_trainer.py`, `peer_nanogpt.py`) takes the path of a JSON file and prints a line of
JSON. The peers get the arrays of ids that tfx trains on, and sizes from the same config.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfx.config.schema import ModelConfig, Root
from tfx.errors import UserError
from tfx.model.device import choose_device
from tfx.tasks.prepare import PreparedData

HERE = Path(__file__).parent
# What `peer_nanogpt.py` builds, beside the sizes.
NANOGPT = {
    "positions": ("learned",),
    "activation": ("gelu", "gelu_tanh"),
    "norm": ("layernorm",),
    "norm_position": ("pre",),
    "tied_embeddings": ("all", "output"),
    "passes": (1,),
}

Result = dict[str, Any]


def run(
    script: str,
    task: Result,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Result:
    """What a script prints for a task; raises `UserError` with the end of its output if it fails."""
    file = folder / "task.json"
    file.write_text(json.dumps(task))
    done = subprocess.run(
        [python, str(HERE / script), str(file)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UserError(f"{script} failed: {done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def require_transformers(python: str) -> None:
    """Raises `UserError` where a Python lacks what `peer_trainer.py` needs."""
    try:
        found = subprocess.run([python, "-c", "import transformers, accelerate"], capture_output=True).returncode == 0
    except OSError as error:
        raise UserError(f"--peer-python {python} does not run: {error.strerror}") from None
    if not found:
        raise UserError(
            f"{python} has no transformers and accelerate: make a Python that has them with `python3 -m venv peers && "
            "peers/bin/pip install torch transformers accelerate`, and name it with --peer-python peers/bin/python"
        )


def trainer_task(config: Root, data: PreparedData, folder: Path) -> Result:
    """Pairs and sizes for `peer_trainer.py`."""
    pairs = data.splits["train"]
    arrays = {}
    for side in ("source", "target"):
        ragged = getattr(pairs, side)
        rows = [ragged[row] for row in range(len(ragged))]
        arrays |= {side: np.concatenate(rows), f"{side}_ends": np.cumsum([len(ids) for ids in rows])}
    np.savez(folder / "pairs.npz", **arrays)
    sizes = ("width", "heads", "ffn_width", "encoder_layers", "decoder_layers", "context", "dropout")
    return {
        "pairs": str(folder / "pairs.npz"),
        "model": {name: getattr(config.model, name) for name in sizes} | {"vocab_size": data.tokenizer.vocab_size},
        "special": {name: getattr(data.tokenizer, name) for name in ("pad", "bos", "eos")},
        "device": choose_device(config.trainer.device).type,
    }


def nanogpt_task(config: Root, data: PreparedData, folder: Path) -> Result:
    """Ids, sizes and batch for `peer_nanogpt.py`. Raises `UserError` where nanoGPT has no such model."""
    model = config.model
    require_nanogpt(model)
    np.savez(
        folder / "streams.npz",
        **{name: np.concatenate([*data.splits[name].tokens_of_all]) for name in ("train", "valid")},
    )
    return {
        "streams": str(folder / "streams.npz"),
        "vocab_size": data.tokenizer.vocab_size,
        "settings": {
            "layers": model.decoder_layers,
            "heads": model.heads,
            "width": model.width,
            "block": model.context,
            "rows": max(1, config.dataset.batch_size // model.context),
            "dropout": model.dropout,
            "bias": model.bias,
        },
        "device": str(choose_device(config.trainer.device)),
        "threads": config.trainer.threads,
        "seed": config.seed,
    }


def require_nanogpt(model: ModelConfig) -> None:
    """Raises `UserError` if a language model is not built as nanoGPT's."""
    wrong = [
        f"model.{name}={getattr(model, name)}" for name, known in NANOGPT.items() if getattr(model, name) not in known
    ]
    if model.ffn_width != 4 * model.width:
        wrong.append(f"model.ffn_width={model.ffn_width}")
    if model.kv_heads not in (None, model.heads):
        wrong.append(f"model.kv_heads={model.kv_heads}")
    if wrong:
        raise UserError(f"nanoGPT's model has no {', '.join(wrong)}: name gpt_nano, gpt_baby, gpt_small or gpt_medium")
