"""Compressed files: a reader written from docs/FORMAT.md alone reads them, and tfx refuses forged ones."""

import hashlib
import json
import lzma
import random
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import torch

from tfx.cli import main
from tfx.compression import checkpoint
from tfx.compression.checkpoint import Storage
from tfx.compression.container import bytes_array, checksum, compress, write_container
from tfx.compression.grid import Grid
from tfx.compression.trellis import row_scales
from tfx.config.schema import EvaluationConfig, ModelConfig, TokenizerConfig
from tfx.data.tokenizer import Tokenizer
from tfx.errors import UserError
from tfx.model.architecture import Architecture
from tfx.model.transformer import Transformer, initialise

TOKENIZER = Tokenizer.train(TokenizerConfig(vocab_size=270), ["abcdefgh abcd é"] * 3, word_initial_space=False)


# --- a reader from the page alone -------------------------------------------------------------------


class Reader:
    """Uses plain integers and numpy, but neither tfx nor the coder's library."""

    def __init__(self, data: bytes) -> None:
        length = int.from_bytes(data[:8], "little")
        self.header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["tfx"])
        tensors = {name: array.tobytes() for name, array in safetensors.numpy.load(data).items()}
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(name.encode() + b"\0" + tensors[name])
        assert digest.hexdigest() == self.header["checksum"]
        self.tokenizer = json.loads(lzma.decompress(tensors["tokenizer"]))
        if "merges" in tensors:
            self.merge(self.tokenizer["model"], lzma.decompress(tensors["merges"]))
        self.description = json.loads(lzma.decompress(tensors["description"]))
        self.packed, self.place = tensors.get("packed", b""), 0
        self.words = np.frombuffer(tensors.get("coded", b""), "<u4").tolist()
        self.state = 0
        for _ in range(min(2, len(self.words))):
            self.state = self.state << 32 | self.words.pop()
        self.ends = [self.cumulative(bytes.fromhex(table)) for table in self.description["tables"]]
        self.exponents = {}
        self.tensors = {record["name"]: self.tensor(record) for record in self.description["tensors"]}
        self.trellises()
        assert self.state == 0
        assert not self.words
        assert self.place == len(self.packed)

    @staticmethod
    def merge(model: dict, planes: bytes) -> None:
        m = len(planes) // 8
        ids = [sum(planes[p * 2 * m + i] << 8 * (3 - p) for p in range(4)) for i in range(2 * m)]
        pieces = {index: piece for piece, index in model["vocab"].items()}
        for left, right in zip(ids[:m], ids[m:], strict=True):
            model["merges"].append([pieces[left], pieces[right]])
            pieces[next(i for i in range(len(pieces) + 1) if i not in pieces)] = pieces[left] + pieces[right]
        model["vocab"] = {pieces[i]: i for i in sorted(pieces)}

    @staticmethod
    def cumulative(table: bytes) -> list[int]:
        weights = [0 if b == 0 else (8 + (b - 1) % 8) * 2 ** ((b - 1) // 8) for b in table]
        return [s + sum(weights[:s]) * (2**24 - len(table)) // sum(weights) for s in range(len(table) + 1)]

    def sequence(self, table: int, width: int, count: int) -> list[int]:
        if table == -1:
            size = -(-count * width // 8)
            bits = int.from_bytes(self.packed[self.place : self.place + size], "little")
            self.place += size
            return [bits >> (i * width) & (2**width - 1) for i in range(count)]
        ends, symbols = self.ends[table], []
        assert len(ends) == 2**width + 1
        for _ in range(count):
            q = self.state % 2**24
            s = int(np.searchsorted(ends, q, side="right")) - 1
            self.state = self.state // 2**24 * (ends[s + 1] - ends[s]) + q - ends[s]
            if self.state < 2**32 and self.words:
                self.state = self.state << 32 | self.words.pop()
            symbols.append(s)
        return symbols

    def tensor(self, record: dict) -> np.ndarray:
        tables = iter(record["tables"])
        shape, bits = record["shape"], record.get("bits", 0)
        size = int(np.prod(shape))
        stored = np.ones(size, bool)
        width = record.get("sparsity_width", 0)
        if record.get("sparsity") == "mask":
            symbols = self.sequence(next(tables), width, -(-size // width))
            stored = np.array([symbols[i // width] >> (i % width) & 1 for i in range(size)], bool)
        elif record.get("sparsity") == "gaps":
            stored[:] = False
            place = 0
            for gap in self.sequence(next(tables), width, record.get("gaps", 0)):
                place += gap
                if gap < 2**width - 1:
                    stored[place] = True
                    place += 1

        def floats(count: int) -> np.ndarray:
            size = {"f16": 2, "f32": 4}[record["floats"]]
            planes = [self.sequence(next(tables), 8, count) for _ in range(size)]
            return np.array(planes[::-1], np.uint8).T.copy().view(f"<f{size}").reshape(-1).astype(np.float32)

        if record["kind"] == "dense":
            values = np.zeros(size, np.float32)
            values[stored] = floats(stored.sum())
            return values.reshape(shape)
        rows, across = record["grouping"]
        if record["kind"] == "trellis":
            bases = floats(2 if rows > 1 else 1)
            exponents = np.array(self.sequence(next(tables), 5, rows) if rows > 1 else [0] * shape[0])
            self.exponents[record["name"]] = exponents
            scales = [bases[e % 2] * np.float32(2.0 ** -(e // 2)) for e in exponents]
            return np.array(scales, np.float32).reshape(-1, 1)
        table = floats(rows * across).reshape(rows, across)
        zero = np.full((rows, across), record.get("zero", 0) or 0)
        if record.get("zero", 0) is None:
            zero = np.array(self.sequence(next(tables), bits, rows * across)).reshape(rows, across)
        symbols = np.zeros(size, int)
        symbols[stored] = self.sequence(next(tables), bits, stored.sum())
        symbols = symbols.reshape(shape)
        values = np.empty(shape, np.float32)
        for r in range(shape[0]):
            for c in range(shape[1]):
                row = r if rows > 1 else 0
                if record["kind"] == "codebook":
                    values[r, c] = table[row, (symbols[r, c] + record.get("zero", 0)) % 2**bits]
                else:
                    group = c * across // shape[1]
                    code = (symbols[r, c] + zero[row, group]) % 2**bits
                    values[r, c] = np.float32(code - zero[row, group]) * table[row, group]
        return values

    def trellises(self) -> None:
        records = [record for record in self.description["tensors"] if record["kind"] == "trellis"]
        magnitudes = {record["name"]: np.zeros(record["shape"], int) for record in records}
        choices = self.description.get("contexts")
        steps = [8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 45, 54, 64, 76, 91, 108, 128, 152, 181, 215, 256, 304, 362, 431,
                 512, 609, 724, 861, 1024, 1218, 1448, 1722, 2048, 2435, 2896, 3444, 4096]  # fmt: skip
        for columns in sorted({record["shape"][1] for record in records}):
            rows = []
            for record in (record for record in records if record["shape"][1] == columns):
                for i, e in enumerate(self.exponents[record["name"]].tolist()):
                    first = record.get("mean", 0) * (1024, 1448)[e % 2] * 2 ** (e // 2) // 2**26
                    rows.append((record["name"], i, min(4096, first)))
            for c in range(columns):
                at = []
                for name, i, start in rows:
                    before = magnitudes[name][i, :c]
                    mean = (32 * start + 256 * before.sum()) // (32 + c)
                    at.append(choices[2 * sum(mean >= step for step in steps) + self.quantizers(before)[c]])
                for table in sorted(set(at)):
                    which = [row for row, number in zip(rows, at, strict=True) if number == table]
                    for (name, i, _), symbol in zip(which, self.sequence(table, 7, len(which)), strict=True):
                        magnitudes[name][i, c] = symbol
        for record in records:
            level = magnitudes[record["name"]].reshape(-1)
            level[level > 0] *= 1 - 2 * np.array(self.sequence(-1, 1, (level > 0).sum()), int)
            level = level.reshape(record["shape"])
            second = np.array([self.quantizers(row)[:-1] for row in level])
            values = (2 * level - second * np.sign(level)).astype(np.float32)
            self.tensors[record["name"]] = values * self.tensors[record["name"]]

    @staticmethod
    def quantizers(row: np.ndarray) -> list[int]:
        q = [0, 0, 0]  # of the columns before the first
        for t in range(len(row) + 1):
            q.append(q[-1] ^ q[-3] ^ (int(row[t - 2]) & 1 if t > 1 else 0) if t else 0)
        return q[3:]


# --- models on grids --------------------------------------------------------------------------------


def build(family: str) -> Transformer:
    layers = 1 if family == "seq2seq" else 0
    config = ModelConfig(
        family=family, width=8, heads=2, ffn_width=12, encoder_layers=layers, decoder_layers=2, tied_embeddings="all"
    )
    model = Transformer(Architecture.from_config(config, TOKENIZER.vocab_size)).eval()
    initialise(model, 3)
    return model


def grid(kind: str, bits: int, weight: torch.Tensor, floats: torch.dtype, generator: torch.Generator) -> Grid:
    rows, columns = weight.shape
    levels = 2**bits
    if kind.startswith("trellis"):
        wide = torch.rand(rows, 1, generator=generator) * (20 if kind == "trellis_wide" else 2)
        codes = (torch.randn(rows, columns, generator=generator) * wide).round().clamp(-127, 127) + 128
        bases = (torch.rand(2, generator=generator) * 0.1 + 0.01).to(floats)
        exponents = torch.randint(0, 12, (rows,), generator=generator) * (kind != "trellis")
        scale = row_scales(bases, exponents)
        return Grid(codes.to(torch.uint8), 8, scale=scale[:1] if kind == "trellis" else scale, trellis=True)
    spread = torch.randn(rows, columns, generator=generator) * levels / 6 + levels // 2
    codes = spread.round().clamp(0, levels - 1).to(torch.uint8)
    if kind.startswith("codebook"):
        table = torch.randn(rows if kind == "codebook_rows" else 1, levels, generator=generator)
        return Grid(codes, bits, codebook=table.to(floats))
    shape = {"tensor": (1, 1), "rows": (rows, 1)}.get(kind, (rows, columns // 4))
    scale = (torch.rand(shape, generator=generator) / levels + 0.01).to(floats)
    zero = torch.randint(0, levels, shape, generator=generator, dtype=torch.uint8) if kind == "affine" else None
    if kind == "sparse":
        codes = torch.where(torch.rand(rows, columns, generator=generator) < 0.8, 2 ** (bits - 1), codes)
        codes = codes.to(torch.uint8)
    return Grid(codes, bits, scale=scale, zero=zero)


CASES = [
    *((kind, bits, "f16", True) for kind in ("tensor", "groups", "sparse") for bits in range(2, 9)),
    *((kind, 4, floats, True) for kind in ("rows", "affine", "codebook", "codebook_rows") for floats in ("f16", "f32")),
    ("trellis", 8, "f16", True), ("trellis_rows", 8, "f32", True), ("trellis_wide", 8, "f16", False),
    *((kind, 3, "f16", False) for kind in ("groups", "sparse", "affine", "codebook")),
    *((kind, 0, floats, entropy) for kind in ("dense", "half", "pattern", "rare")
      for floats in ("f16", "f32") for entropy in (True, False)),
]  # fmt: skip


def prepared(family: str, kind: str, bits: int, floats: str, entropy: bool) -> tuple[Transformer, Storage]:
    """A model whose matrices are on grids, or dense with some sparsity, and how to store it."""
    dtype = {"f16": torch.float16, "f32": torch.float32}[floats]
    model, grids = build(family), {}
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in checkpoint.unique_tensors(model)[0].items():
            if weight.ndim == 2 and bits:
                grids[name] = grid(kind, bits, weight, dtype, generator)
                weight.copy_(grids[name].values())
                continue
            if weight.ndim == 2 and kind == "half":
                weight *= torch.rand(weight.shape, generator=generator) < 0.5
            elif weight.ndim == 2 and kind == "rare":
                weight *= torch.rand(weight.shape, generator=generator) < 0.05
            elif weight.ndim == 2 and kind == "pattern":
                weight.view(-1, 4)[:, ::2] = 0
            weight.copy_(weight.to(dtype).float())
    return model, Storage(grids, dtype, entropy)


def write(path, family, *case) -> Transformer:
    model, storage = prepared(family, *case)
    checkpoint.save(path, model, TOKENIZER, EvaluationConfig(beam=3), storage)
    return model


@pytest.mark.parametrize("family", ["seq2seq", "lm"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_tfx_and_a_reader_from_the_page_alone_restore_every_codec_bit_for_bit(family, case, tmp_path):
    path = tmp_path / "compressed.safetensors"
    model = write(path, family, *case)
    first = path.read_bytes()
    write(path, family, *case)
    assert path.read_bytes() == first, "the same model gives the same file"
    alone, loaded = Reader(first), checkpoint.load(path)
    assert loaded.tokenizer.to_json() == TOKENIZER.to_json()
    assert alone.tokenizer == json.loads(TOKENIZER.to_json())
    assert alone.description["generation"]["beam"] == loaded.generation.beam == 3
    assert alone.description["architecture"] == json.loads(json.dumps(model.architecture.to_dict()))
    state = loaded.model.state_dict()
    for name, weight in model.state_dict().items():
        stored = alone.description["aliases"].get(name, name)
        np.testing.assert_array_equal(alone.tensors[stored], weight.numpy(), err_msg=name)
        assert torch.equal(state[name], weight), name
    assert loaded.model.output.weight is loaded.model.embedding.weight
    account = checkpoint.read_header(path).bytes
    assert account.file == len(first) == account.weights + account.header + account.tokenizer
    assert sum(tensor.bytes for tensor in loaded.tensors) == account.weights


def test_another_process_gives_the_same_logits(tmp_path):
    lines, expected = [], []
    tokens = torch.tensor([[4, 5, 6, 7]])
    for family in ("seq2seq", "lm"):
        for number, case in enumerate(
            [("sparse", 4, "f16", True), ("codebook", 4, "f16", True), ("half", 0, "f16", True)]
        ):
            path = tmp_path / f"{family}{number}.safetensors"
            model = write(path, family, *case)
            source = tokens if family == "seq2seq" else None
            with torch.no_grad():
                expected.append(model.project(model(tokens, source)).numpy().tobytes().hex())
            lines.append(f"show({str(path)!r}, {family == 'seq2seq'})")
    script = (
        "import tfx, torch\n"
        "def show(path, pairs):\n"
        "    model, tokens = tfx.load(path).model, torch.tensor([[4, 5, 6, 7]])\n"
        "    with torch.no_grad():\n"
        "        print(model.project(model(tokens, tokens if pairs else None)).numpy().tobytes().hex())\n"
    ) + "\n".join(lines)
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == expected


def test_inspect_adds_up_to_the_compressed_file_and_generate_needs_nothing_else(tmp_path, capsys):
    path = tmp_path / "compressed.safetensors"
    model = write(path, "lm", "sparse", 4, "f16", True)
    assert main(["inspect", str(path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert sum(row["bytes"] for row in content["tensors"]) == content["bytes"]["weights"]
    account = content["bytes"]
    assert account["file"] == path.stat().st_size == account["weights"] + account["header"] + account["tokenizer"]
    weights = model.state_dict()
    for row in content["tensors"]:
        assert row["sparsity"] == pytest.approx(float((weights[row["name"]] == 0).float().mean()))
    assert main(["generate", str(path), "abc"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


# --- size -------------------------------------------------------------------------------------------


def large(kind: str) -> tuple[Transformer, Storage, int]:
    """A model of 0.3 M parameters, its storage and the bytes of its dense file's weights."""
    config = ModelConfig(family="lm", width=128, heads=4, ffn_width=256, encoder_layers=0, decoder_layers=2)
    model = Transformer(Architecture.from_config(config, 300))
    initialise(model, 1)
    grids = {}
    stored = checkpoint.unique_tensors(model)[0]
    with torch.no_grad():
        for name, weight in stored.items():
            if weight.ndim == 2 and kind == "grid":
                scale = (weight.view(len(weight), -1, 64).abs().amax(-1) / 7).half()
                codes = (weight.view(len(weight), -1, 64) / scale.float().unsqueeze(-1)).round().clamp(-7, 7) + 8
                grids[name] = Grid(codes.view(weight.shape).to(torch.uint8), 4, scale=scale)
                weight.copy_(grids[name].values())
            else:
                if weight.ndim == 2:
                    weight *= weight.abs() > weight.abs().median()
                weight.copy_(weight.half().float())
    return model, Storage(grids, torch.float16), 4 * sum(weight.numel() for weight in stored.values())


def test_half_zeros_in_fp16_and_four_bits_are_really_smaller(tmp_path):
    path = tmp_path / "compressed.safetensors"
    for kind, least in (("half", 3.7), ("grid", 7.8)):
        model, storage, dense = large(kind)
        checkpoint.save(path, model, TOKENIZER, EvaluationConfig(), storage)
        account = checkpoint.read_header(path).bytes
        assert dense / (account.weights + account.header) > least
        assert account.header < 2500
    # The codes of the grids are within 1 % of their entropy, not counting tables, header and everything else.
    codes = torch.cat([grid.codes_RC.flatten() for grid in storage.grids.values()]).numpy()
    share = np.bincount(codes) / len(codes)
    share = share[share > 0]
    entropy = -(share * np.log2(share)).sum() * len(codes) / 8
    others = sum(2 * grid.scale.numel() for grid in storage.grids.values())
    others += sum(2 * w.numel() for n, w in checkpoint.unique_tensors(model)[0].items() if n not in storage.grids)
    assert account.weights < 1.01 * entropy + others


def test_the_smallest_sparsity_wins(tmp_path):
    path = tmp_path / "compressed.safetensors"
    expected = {"dense": "none", "half": "mask", "rare": "gaps"}
    for kind, sparsity in expected.items():
        config = ModelConfig(family="lm", width=64, heads=4, ffn_width=64, encoder_layers=0, decoder_layers=1)
        model = Transformer(Architecture.from_config(config, 300))
        initialise(model, 1)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                if kind != "dense":
                    weight *= torch.rand(weight.shape, generator=generator) < {"half": 0.5, "rare": 0.03}[kind]
        checkpoint.save(path, model, TOKENIZER, EvaluationConfig(), Storage(entropy=False))
        records = checkpoint.read_header(path).raw["tensors"]
        found = {record.get("sparsity", "none") for record in records if record["name"] == "embedding.weight"}
        assert found == {sparsity}


# --- what is refused --------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "compressed.safetensors"
    write(path, "seq2seq", "sparse", 4, "f16", True)
    return path


def refused(path) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_truncated_or_flipped_file_is_refused_or_unchanged(file):
    data = file.read_bytes()
    for size in [0, 7, 8, 100, len(data) // 2, len(data) - 1]:
        file.write_bytes(data[:size])
        refused(file)
    file.write_bytes(data)
    before = checkpoint.load(file).model.state_dict()
    rng = random.Random(0)
    for _ in range(60):
        changed = bytearray(data)
        position = rng.randrange(len(data))
        changed[position] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        try:
            after = checkpoint.load(file).model.state_dict()
        except UserError:
            continue
        assert all(torch.equal(before[name], after[name]) for name in before), position


def forge(file, change, version=3) -> None:
    """Rewrites a file with a changed description or streams, and a matching checksum."""
    content = {name: array.tobytes() for name, array in safetensors.numpy.load(file.read_bytes()).items()}
    description = json.loads(lzma.decompress(content["description"]))
    change(description, content)
    content["description"] = compress(json.dumps(description).encode())
    header = {"format_version": version, "checksum": checksum(b"", content)}
    write_container(file, {name: bytes_array(data) for name, data in content.items()}, header)


def in_every_record(**values):
    def change(description, content):
        for record in description["tensors"]:
            record.update(values)

    return change


def in_grid_records(**values):
    def change(description, content):
        for record in description["tensors"]:
            if record["kind"] == "scaled":
                record.update(values)

    return change


def in_architecture(**values):
    return lambda description, content: description["architecture"].update(values)


def in_description(**values):
    return lambda description, content: description.update(values)


def merges(*pairs: list[int]) -> bytes:
    """The stream of these pairs of ids."""
    ids = np.array(pairs, ">u4").T.reshape(-1)
    return compress(ids.view(np.uint8).reshape(-1, 4).T.tobytes())


FORGERIES = {
    "a petabyte": in_architecture(vocab_size=10**12, width=10**3),
    "a large vocabulary in both places": lambda d, c: (
        d["architecture"].update(vocab_size=1 << 24),
        d["tensors"][0].update(shape=[1 << 24, 8]),
    ),
    "long positions": in_architecture(context=1 << 24, positions="sinusoidal", width=64),
    "negative": in_architecture(width=-8),
    "a fraction": in_architecture(width=8.0),
    "not a number": in_architecture(head_width=float("nan")),
    "an unknown family": in_architecture(family="x"),
    "many blocks": lambda d, c: d["architecture"].update(decoder=d["architecture"]["decoder"] * 5000),
    "generation not finite": lambda d, c: d["generation"].update(length_penalty=float("inf")),
    "generation of another type": lambda d, c: d["generation"].update(beam="5"),
    "no tensors": in_description(tensors=[]),
    "tensors of another type": in_description(tensors={"a": 1}),
    "tensors of numbers": in_description(tensors=[1]),
    "aliases of another type": in_description(aliases=[]),
    "no tables": in_description(tables=[]),
    "tables of numbers": in_description(tables=[1]),
    "tables of zeros": lambda d, c: d.update(tables=["00" * (len(t) // 2) for t in d["tables"]]),
    "tables of large bytes": lambda d, c: d.update(tables=["ff" * (len(t) // 2) for t in d["tables"]]),
    "a tensor twice": lambda d, c: d["tensors"].append(d["tensors"][0]),
    "another shape": in_every_record(shape=[3, 3]),
    "another name": in_every_record(name="x"),
    "a name of another type": in_every_record(name=[1]),
    "no kind": lambda d, c: d["tensors"][0].pop("kind"),
    "an unknown kind": in_every_record(kind="x"),
    "a kind of another type": in_every_record(kind=["x"]),
    "floats of another type": in_every_record(floats=["f16"]),
    "an unknown entry": in_every_record(more=1),
    "nine bits": in_grid_records(bits=9),
    "a huge number of groups": in_grid_records(grouping=[10**9, 10**9]),
    "groups that do not divide": in_grid_records(grouping=[8, 3]),
    "negative groups": in_grid_records(grouping=[-1, 1]),
    "a zero point out of range": in_grid_records(zero=16),
    "many gaps": in_grid_records(sparsity="gaps", sparsity_width=4, gaps=10**12),
    "another sparsity": in_grid_records(sparsity="mask", sparsity_width=1),
    "a sparsity of another type": in_grid_records(sparsity=["mask"]),
    "no sequence": in_every_record(tables=[]),
    "an unknown table": in_every_record(tables=[99] * 8),
    "a table of another type": in_every_record(tables=[None] * 8),
    "packed instead": in_every_record(tables=[-1] * 8),
    "streams cut": lambda d, c: c.update(coded=c["coded"][:-8]),
    "streams of odd length": lambda d, c: c.update(coded=c["coded"][:-1]),
    "a last word of zero": lambda d, c: c.update(coded=c["coded"] + bytes(4)),
    "streams longer": lambda d, c: c.update(coded=b"\1\2\3\4" * 50 + c["coded"]),
    "more that is packed": lambda d, c: c.update(packed=c.get("packed", b"") + b"\0"),
    "an unknown stream": lambda d, c: c.update(extra=b"\0"),
    "no tokenizer": lambda d, c: c.pop("tokenizer"),
    "a tokenizer that is none": lambda d, c: c.update(tokenizer=compress(b"{}")),
    "a tokenizer cut": lambda d, c: c.update(tokenizer=c["tokenizer"][:-9]),
    "merges cut": lambda d, c: c.update(merges=c["merges"][:-9]),
    "half a merge": lambda d, c: c.update(merges=compress(lzma.decompress(c["merges"])[:-4])),
    "more tokens than the model has": lambda d, c: c.update(merges=merges(*([5, i] for i in range(6, 206)))),
    "a merge of what is not there": lambda d, c: c.update(merges=merges([5, 269])),
    "pieces that double": lambda d, c: c.update(merges=merges(*([i, i] for i in [5, *range(260, 300)]))),
    "many merges": lambda d, c: c.update(merges=compress(bytes(9 << 20))),
    "merges twice": lambda d, c: c.update(tokenizer=compress(TOKENIZER.to_json().encode())),
    "merges of no tokenizer": lambda d, c: c.update(tokenizer=compress(b"[]")),
    "merges of another kind": lambda d, c: c.update(tokenizer=compress(b'{"model": {"vocab": [], "merges": []}}')),
    "merges beside a long text": lambda d, c: c.update(tokenizer=compress(b" " * (33 << 20))),
    "merges of a deep one": lambda d, c: c.update(tokenizer=compress(b"[" * 200000)),
}


def in_trellises(**values):
    def change(description, content):
        for record in description["tensors"]:
            if record["kind"] == "trellis":
                record.update(values)

    return change


TRELLIS_FORGERIES = {
    "levels of fewer bits": in_trellises(bits=7),
    "a zero point": in_trellises(zero=128),
    "no zero point": in_trellises(zero=None),
    "a mask": in_trellises(sparsity="mask", sparsity_width=8),
    "groups": in_trellises(grouping=[8, 2]),
    "one scale for rows with their own": in_trellises(grouping=[1, 1]),
    "a huge mean": in_trellises(mean=2**28),
    "a mean of another type": in_trellises(mean=1.5),
    "another mean": in_trellises(mean=3),
    "a mean where there is none": lambda d, c: [r.update(mean=1) for r in d["tensors"] if r["kind"] == "dense"],
    "no contexts": lambda d, c: d.pop("contexts"),
    "few contexts": lambda d, c: d.update(contexts=d["contexts"][:-1]),
    "contexts of another type": lambda d, c: d.update(contexts=[str(n) for n in d["contexts"]]),
    "contexts without order": lambda d, c: d.update(contexts={"a": 1}),
    "a context without a table": lambda d, c: d.update(contexts=[99] * 76),
    "a context before the first table": lambda d, c: d.update(contexts=[-1] * 76),
    "a context with a short table": lambda d, c: d.update(contexts=[0] * 76, tables=["19" * 4, *d["tables"]]),
    "signs cut": lambda d, c: c.update(packed=c["packed"][:-1]),
    "more signs": lambda d, c: c.update(packed=c["packed"] + b"\0"),
    "levels cut": lambda d, c: c.update(coded=c["coded"][:-8]),
}


@pytest.fixture(scope="module")
def of_a_trellis(tmp_path_factory):
    path = tmp_path_factory.mktemp("trellis") / "compressed.safetensors"
    write(path, "lm", "trellis_rows", 8, "f16", True)
    forge(path, lambda description, content: None, version=4)
    checkpoint.load(path)
    return path.read_bytes()


@pytest.mark.parametrize("name", TRELLIS_FORGERIES)
def test_a_forged_trellis_with_a_correct_checksum_is_refused(name, of_a_trellis, tmp_path):
    path = tmp_path / "compressed.safetensors"
    path.write_bytes(of_a_trellis)
    forge(path, TRELLIS_FORGERIES[name], version=4)
    refused(path)


def test_a_flipped_bit_of_a_trellis_is_refused_even_with_a_correct_checksum_or_gives_finite_weights(
    of_a_trellis, tmp_path
):
    path = tmp_path / "compressed.safetensors"
    rng = random.Random(1)
    for stream in ("packed", "coded") * 8:

        def flip(description, content, stream=stream):
            changed = bytearray(content[stream])
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            content[stream] = bytes(changed)

        path.write_bytes(of_a_trellis)
        forge(path, flip, version=4)
        try:
            state = checkpoint.load(path).model.state_dict()
        except UserError:
            continue
        assert all(bool(weight.isfinite().all()) for weight in state.values())


def test_a_trellis_in_a_file_of_version_3_is_refused_and_others_have_version_3(tmp_path):
    path = tmp_path / "compressed.safetensors"
    write(path, "lm", "trellis", 8, "f16", True)
    assert checkpoint.read_header(path).version == 4
    forge(path, lambda description, content: None)
    refused(path)
    write(path, "lm", "tensor", 4, "f16", True)
    assert checkpoint.read_header(path).version == 3


def test_versions_that_are_newer_or_do_not_exist_are_refused(file):
    data = {name: array.tobytes() for name, array in safetensors.numpy.load(file.read_bytes()).items()}
    arrays = {name: bytes_array(content) for name, content in data.items()}
    for version, words in ((5, "format version 5, but this tfx reads up to 4: update tfx"), (0, "not readable")):
        write_container(file, arrays, {"format_version": version, "checksum": checksum(b"", data)})
        assert words in refused(file)


def test_version_2_with_merges_spelled_out_is_still_read(file):
    before = checkpoint.load(file)
    content = {name: array.tobytes() for name, array in safetensors.numpy.load(file.read_bytes()).items()}

    def put(content) -> None:
        header = {"format_version": 2, "checksum": checksum(b"", content)}
        write_container(file, {name: bytes_array(data) for name, data in content.items()}, header)

    put(content)
    assert "streams that its format version does not define" in refused(file)
    del content["merges"]
    put(content | {"tokenizer": compress(TOKENIZER.to_json().encode())})
    after = checkpoint.load(file)
    assert after.tokenizer.to_json() == before.tokenizer.to_json()
    state = after.model.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in before.model.state_dict().items())


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_description_with_a_correct_checksum_is_refused(name, file):
    forge(file, FORGERIES[name])
    refused(file)


def test_a_rewritten_file_without_changes_is_accepted(file):
    forge(file, lambda description, content: None)
    checkpoint.load(file)


def test_scales_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "compressed.safetensors"
    write(path, "lm", "tensor", 4, "f16", False)

    def change(description, content):
        content["packed"] = b"\x7c" + content["packed"][1:]

    # The first packed byte is the high byte of the embedding's only scale: 7c makes it infinite or not a number.
    forge(path, change)
    assert "finite" in refused(path)


def test_a_description_that_unpacks_to_too_much_is_refused(file):
    content = {name: array.tobytes() for name, array in safetensors.numpy.load(file.read_bytes()).items()}
    content["description"] = compress(b" " * (5 << 20))
    header = {"format_version": 3, "checksum": checksum(b"", content)}
    write_container(file, {name: bytes_array(data) for name, data in content.items()}, header)
    assert "description" in refused(file)


def test_saving_raises_if_a_value_would_change(tmp_path):
    model, storage = prepared("lm", "groups", 4, "f16", True)
    path = tmp_path / "compressed.safetensors"
    with torch.no_grad():
        model.decoder.blocks[0].attention.q.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"q\.weight"):
        checkpoint.save(path, model, TOKENIZER, EvaluationConfig(), storage)
    with pytest.raises(ValueError, match="round them first"):
        checkpoint.save(path, build("lm"), TOKENIZER, EvaluationConfig(), Storage(dtype=torch.float16))
    with pytest.raises(ValueError, match="does not store"):
        checkpoint.save(path, model, TOKENIZER, EvaluationConfig(), Storage({"x": Grid(torch.zeros(1, 1), 4)}))
    assert not list(tmp_path.iterdir())
