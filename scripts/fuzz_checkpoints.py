"""Damaged model files for `fuzz_inputs.py`: made from whole ones, dense and compressed, read by each command."""

from __future__ import annotations

import json
import lzma
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzz_data import BREAKS, mutate


def prepare(base: Path) -> None:
    """Writes whole files: each family, as plain tensors and with codecs of several kinds; and a run to report on."""
    import torch

    from tfx.compression import checkpoint
    from tfx.compression.trellis import row_scales
    from tfx.config.schema import EvaluationConfig, ModelConfig
    from tfx.data.tokenizer import Tokenizer
    from tfx.model.architecture import Architecture
    from tfx.model.transformer import Transformer, initialise
    from tfx.techniques.quantize.rounding import GridKind, nearest
    from tfx.techniques.quantize.trellis import trellis

    folder = base / "models"
    folder.mkdir()
    for family, tokenizer_kind in (("seq2seq", "char"), ("lm", "bpe")):
        tokenizer = Tokenizer.load(base / "tokenizers" / f"{tokenizer_kind}.json")
        layers = 1 if family == "seq2seq" else 0
        positions = {"seq2seq": "sinusoidal", "lm": "rotary"}[family]
        config = ModelConfig(
            family=family, width=16, heads=2, ffn_width=24, encoder_layers=layers, decoder_layers=2, positions=positions
        )
        model = Transformer(Architecture.from_config(config, tokenizer.vocab_size)).eval()
        initialise(model, 3)
        generation = EvaluationConfig(new_tokens=5)
        checkpoint.save(folder / f"{family}-dense.safetensors", model, tokenizer, generation)
        generator = torch.Generator().manual_seed(1)
        grids = {}
        with torch.no_grad():
            for number, (name, weight) in enumerate(checkpoint.unique_tensors(model)[0].items()):
                weight.copy_(weight.half().float())
                if weight.ndim == 2:
                    weight *= torch.rand(weight.shape, generator=generator) < (0.2, 0.6, 1.0)[number % 3]
                    kind = GridKind((2, 4, 8)[number % 3], number % 2 == 0, (0, 8, None)[number % 3])
                    grids[name] = nearest(weight, kind)
                    weight.copy_(grids[name].values())
        for entropy in (True, False):
            storage = checkpoint.Storage(grids, torch.float16, entropy)
            name = f"{family}-{'coded' if entropy else 'packed'}.safetensors"
            checkpoint.save(folder / name, model, tokenizer, generation, storage)
        with torch.no_grad():
            for number, (name, grid) in enumerate(list(grids.items())):
                rows, columns = grid.codes_RC.shape
                exponents = torch.randint(0, 9, (rows,), generator=generator)
                step = torch.full((1, 1), 0.05) if number % 2 else row_scales(torch.tensor([0.1, 0.07]), exponents)
                grids[name] = trellis(grid.values(), torch.eye(columns), step)
                model.get_parameter(name).copy_(grids[name].values())
        file = folder / f"{family}-trellis.safetensors"
        checkpoint.save(file, model, tokenizer, generation, checkpoint.Storage(grids, torch.float16))


def make(rng: Random, place: Any) -> tuple[str, list[str]]:
    """What is wrong, in a word, and the arguments of the command."""
    source = rng.choice(sorted((place.base / "models").iterdir()))
    file = place.inputs / "model.safetensors"
    shutil.copyfile(source, file)
    label, damage = rng.choices(list(DAMAGES), [weight for _, _, weight in DAMAGES])[0][:2]
    damage(rng, file)
    target = file
    if rng.random() < 0.15:
        run = place.inputs / "run"
        run.mkdir()
        shutil.copyfile(place.base / "config.yaml", run / "config.yaml")
        target = run
        file.rename(run / file.name)
    pairs = ["dataset=parallel", f"dataset.path={place.base / 'pairs'}"]
    is_lm = source.name.startswith("lm")
    data = ["dataset=text", f"dataset.path={place.base / 'pairs' / 'train.en'}"] if is_lm else pairs
    train = ["train", "dry_run=true", *data, "trainer.device=cpu", "trainer.budget.steps=1"]
    command = rng.choices(
        [
            ["inspect", str(target)],
            ["inspect", str(target), "--json"],
            ["generate", str(target), "line 3"],
            ["evaluate", str(target), *data, "--device=cpu"],
            [*train, f"init_from={target}"],
            [*train, f"reference={target}"],
            ["report", str(target)],
        ],
        [25, 10, 30, 12, 12, 4, 2],
    )[0]
    return label, command


# --- damage to bytes --------------------------------------------------------------------------------


def _bytes(change: Callable[[Random, bytes], bytes]) -> Callable[[Random, Path], None]:
    return lambda rng, file: file.write_bytes(change(rng, file.read_bytes())) and None


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    end = rng.choice([8, 200, 1000, len(data), len(data)])
    for _ in range(rng.choice([1, 1, 2, 10])):
        changed[rng.randrange(min(end, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("owned", "w"))


def _pickled(rng: Random, data: bytes) -> bytes:
    if rng.random() < 0.5:
        return pickle.dumps(_Bomb(), protocol=rng.randrange(6))
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"model": torch.zeros(3), "x": _Bomb()}, buffer)
    return buffer.getvalue()


def _lying_length(rng: Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    other = rng.choice([0, 1, length - 1, length + 1, len(data) - 8, len(data), 2**31, 2**50, 2**63, 2**64 - 1])
    return (other % 2**64).to_bytes(8, "little") + data[8:]


def _splice(rng: Random, data: bytes) -> bytes:
    start, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:start] + rng.choice([b"", data[start:end] * 2, rng.randbytes(end - start)]) + data[end:]


# --- damage to what the header says, with sums that fit ---------------------------------------------


def _outer(rng: Random, data: bytes) -> bytes:
    """The safetensors header itself: names, types, shapes and places of tensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice([1, 1, 3])):
        act = rng.randrange(4)
        names = [name for name in header if name != "__metadata__"]
        if act == 0 and names:
            header[rng.choice(["../../owned", "/owned", "", "x\0y", "tokenizer", "x" * 10000])] = header.pop(
                rng.choice(names)
            )
        elif act == 1 and names:
            header[rng.choice(names)]["shape"] = rng.choice([[], [0], [-1], [2**40, 2**40], [1] * 1000, [2**63], ["x"]])
        elif act == 2 and names:
            header[rng.choice(names)]["dtype"] = rng.choice(["F64", "I8", "BOOL", "F8_E4M3", "nope", "BF16", 3])
        else:
            mutate(rng, header)
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = b"[" * 200000 if rng.random() < 0.5 else b'{"a":' * 100000
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _forge(change: Callable[[Random, dict[str, Any], dict[str, bytes]], None]) -> Callable[[Random, Path], None]:
    """Lets ``change`` alter the record of the file and its streams, and writes a file whose checksum is right."""

    def act(rng: Random, file: Path) -> None:
        import numpy as np
        import safetensors.numpy

        from tfx.compression.checkpoint import _dense_head
        from tfx.compression.container import bytes_array, checksum, compress

        data = file.read_bytes()
        arrays = dict(safetensors.numpy.load(data))
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["tfx"])
        is_dense = header.get("format_version") == 1
        content = {name: array.tobytes() for name, array in arrays.items()}
        before = dict(content)
        record = header if is_dense else json.loads(lzma.decompress(content["description"]))
        change(rng, record, content)
        if not is_dense and content.get("description") == before["description"]:
            content["description"] = compress(json.dumps(record, separators=(",", ":")).encode())
        arrays = {
            name: arrays[name] if piece == before.get(name) else bytes_array(piece) for name, piece in content.items()
        }
        try:
            header["checksum"] = checksum(_dense_head(header) if is_dense else b"", content)
        except (ValueError, TypeError):  # what is no JSON keeps its old sum
            header["checksum"] = ""
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()},
            file,
            metadata={"tfx": json.dumps(header)},
        )

    return act


_LIES: dict[str, list[Any]] = {
    "vocab_size": [0, 1, -5, 2**24, 2**40, 10**30, 3.0, "9", None, True],
    "width": [0, 1, 15, 17, 2**24, 2**63, -16, 16.0],
    "head_width": [0, 1, 7, 9, 2**24, -8],
    "context": [0, 1, 2**24, 2**20, 2**62, -1],
    "encoder": [[], None, "x", [{}], [None], [{"heads": 1}]],
    "decoder": [[], None, "x", [{}], 3],
    "positions": ["rotary", "alibi", "learned", "sinusoidal", "nope", None, []],
    "norm_position": ["post", "x", {}],
    "norm": ["rmsnorm", "x"],
    "activation": ["swiglu", "relu2", "x"],
    "qk_norm": [True, 1, None],
    "bias": [False, 0, "x"],
    "tied_embeddings": ["none", "output", "x"],
    "family": ["lm", "seq2seq", "x", None],
}


def _lie(rng: Random, record: dict[str, Any], content: dict[str, bytes]) -> None:
    """Another architecture: of another size, of another kind, or none at all."""
    architecture = record["architecture"]
    for _ in range(rng.choice([1, 1, 2])):
        if rng.random() < 0.7:
            key = rng.choice(list(_LIES))
            architecture[key] = rng.choice(_LIES[key])
            continue
        blocks = architecture.get(rng.choice(["encoder", "decoder"]))
        if isinstance(blocks, list) and blocks:
            act = rng.randrange(4)
            if act == 0:
                blocks.extend(blocks * rng.choice([1, 100, 3000]))
            elif act == 1 and isinstance(blocks[0], dict):
                key = rng.choice(["heads", "kv_heads", "cross_heads", "cross_kv_heads", "ffn", "x"])
                blocks[0][key] = rng.choice([0, 1, 3, -1, 2**20, 2**24, 2**63, "x", None])
            elif act == 2:
                blocks.pop()
            else:
                mutate(rng, blocks)


def _codecs(rng: Random, record: dict[str, Any], content: dict[str, bytes]) -> None:
    """The records of tensors and tables (of a plain file: the aliases and codecs)."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        mutate(rng, record.get(rng.choice(["tensors", "tensors", "tables", "aliases", "codecs"])) or record)


def _anything(rng: Random, record: dict[str, Any], content: dict[str, bytes]) -> None:
    for _ in range(rng.choice([1, 1, 2, 4])):
        mutate(rng, record)


def _generation(rng: Random, record: dict[str, Any], content: dict[str, bytes]) -> None:
    key = rng.choice(list(record["generation"]))
    record["generation"][key] = rng.choice(
        [None, -1, 0, 10**9, 2**63, 10**30, 1e308, float("nan"), "x", "sample", "greedy", [], True, 1e-300]
    )


def _streams(rng: Random, record: dict[str, Any], content: dict[str, bytes]) -> None:
    """Other bytes in a stream, under a checksum that fits."""
    name = rng.choice([name for name in content if name not in ("tokenizer", "description")])
    content[name] = _flip(rng, content[name]) if rng.random() < 0.6 else _splice(rng, content[name])


def _text(rng: Random, record: dict[str, Any], content: dict[str, bytes]) -> None:
    """The tokenizer with its merges, and the compressed description."""
    from tfx.compression.container import compress

    name = rng.choice([name for name in ("tokenizer", "tokenizer", "merges", "description") if name in content])
    act = rng.randrange(7)
    if act == 0:
        content[name] = compress(b" " * (300 << 20)) if rng.random() < 0.1 else compress(b"\0" * (9 << 20))
    elif act == 1:
        content[name] = rng.choice([b"", b"\0", rng.randbytes(99), lzma.compress(b"{}"), compress(b"[" * 200000)])
    elif act == 2:
        content[name] = content[name][: rng.randrange(len(content[name]))]
    elif act == 3:
        content[name] = _flip(rng, content[name])
    elif name == "merges":
        change = rng.choice([_flip, _splice])
        content[name] = compress(change(rng, lzma.decompress(content[name])))
    else:
        value = json.loads(lzma.decompress(content[name]))
        for _ in range(rng.choice([1, 1, 3])):
            mutate(rng, value)
        content[name] = compress(json.dumps(value).encode())


DAMAGES: list[tuple[str, Callable[[Random, Path], None], int]] = [
    ("cut", _bytes(lambda rng, data: data[: rng.randrange(len(data))]), 8),
    ("more behind", _bytes(lambda rng, data: data + rng.randbytes(rng.choice([1, 8, 1000]))), 3),
    ("flipped", _bytes(_flip), 14),
    ("spliced", _bytes(_splice), 6),
    ("no model at all", lambda rng, file: rng.choice(list(BREAKS.values()))(rng, file), 6),
    ("a pickle", _bytes(_pickled), 4),
    ("header length", _bytes(_lying_length), 6),
    ("header of safetensors", _bytes(_outer), 12),
    ("architecture", _forge(_lie), 14),
    ("codecs", _forge(_codecs), 16),
    ("description", _forge(_anything), 10),
    ("generation", _forge(_generation), 6),
    ("streams", _forge(_streams), 10),
    ("tokenizer or description", _forge(_text), 10),
]
