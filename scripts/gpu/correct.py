"""Parts that compare: the tests, the device with double precision, and a killed run with one that was left alone."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from fault_test import Case, FaultError, require_equal
from torch.nn import functional
from torch.nn.attention import SDPBackend

from gpu.parts import Bench, Row, part
from tfx.config.schema import EvaluationConfig, ModelConfig
from tfx.model.architecture import Architecture
from tfx.model.decoding import Ends, translate
from tfx.model.loss import CrossEntropy, projected_losses
from tfx.model.transformer import Transformer, initialise

ROOT = Path(__file__).parents[2]
TESTS = (
    *("training/test_on_device.py", "training/test_deterministic.py"),
    *("training/test_step.py", "training/test_muon.py", "model/test_loss.py"),
)
VOCABULARY = 50
FAMILIES = {
    "seq2seq, rotary, swiglu": {"positions": "rotary", "activation": "swiglu", "kv_heads": 2},
    "seq2seq, post-norm, learned": {"positions": "learned", "norm_position": "post", "qk_norm": True},
    "lm, alibi, rmsnorm": {"family": "lm", "encoder_layers": 0, "positions": "alibi", "norm": "rmsnorm"},
}


@part
def tests(bench: Bench) -> Iterator[Row]:
    """The tests that take a device."""
    files = [str(ROOT / "tests" / name) for name in (TESTS[2:] if bench.small else TESTS)]
    environment = os.environ | {"TFX_TEST_DEVICE": str(bench.device)}
    plain = ["-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *plain, *files]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=450)
    words = ran.stdout.strip().splitlines() or ["nothing was printed"]
    told = next((line for line in reversed(words) if "passed" in line or "failed" in line), words[-1])
    yield Row("tests", told, ran.returncode == 0)


@part
def agree(bench: Bench) -> Iterator[Row]:
    """Loss, gradients and decoded tokens in fp32 here, against double precision on the CPU."""
    for name, settings in FAMILIES.items():
        width = 32 if bench.small else 256
        config = ModelConfig(**{**_SIZES, "width": width, "ffn_width": 2 * width, **settings})
        model = Transformer(Architecture.from_config(config, VOCABULARY), config)
        initialise(model, 1)
        model.eval()
        exact = copy.deepcopy(model).double()
        here = model.to(bench.device)
        target, source, mask = _example(is_lm=not model.architecture.is_seq2seq)
        loss = functional.cross_entropy(exact.project(exact(target, source, mask)).flatten(0, 1), target.flatten())
        loss.backward()
        moved = [None if value is None else value.to(bench.device) for value in (target, source, mask)]
        hidden_ND = here(*moved).flatten(0, 1)
        term = CrossEntropy([(moved[0].flatten(), None)])
        total, _ = projected_losses(hidden_ND, here.output.weight, [(term, 1.0)])
        total.div(target.numel()).backward()
        pairs = list(zip(here.parameters(), exact.parameters(), strict=True))
        # A bias of keys has only rounding errors as gradients: all errors are relative to the whole gradient.
        whole = torch.stack([theirs.grad.norm() for _, theirs in pairs]).norm()
        worst = max(float((ours.grad.cpu().double() - theirs.grad).norm() / whole) for ours, theirs in pairs)
        wrong = abs(total.item() / target.numel() - loss.item()) / loss.item()
        yield Row(f"{name}: loss", f"{wrong:.1e} off", wrong < 1e-4, wrong)
        yield Row(f"{name}: gradients", f"at most {worst:.1e} off", worst < 1e-4, worst)
        if source is not None and mask is not None:
            yield from _decoded(name, here, exact, source, mask)


_SIZES = {"heads": 4, "context": 64, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0}


def _example(*, is_lm: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(3, VOCABULARY, (8, 21), generator=generator)
    if is_lm:
        return target, None, None
    lengths = torch.randint(3, 18, (8, 1), generator=generator)
    return target, torch.randint(3, VOCABULARY, (8, 17), generator=generator), torch.arange(17) < lengths


def _decoded(
    name: str, here: Transformer, exact: Transformer, source: torch.Tensor, mask: torch.Tensor
) -> Iterator[Row]:
    device = here.embedding.weight.device
    for method, beam in (("greedy", 1), ("beam", 4)):
        config = EvaluationConfig(method=method, beam=beam)
        ends = Ends(bos=1, eos=2, pad=0)
        limits = torch.full((len(source),), 20)
        found = translate(here, source.to(device), mask.to(device), limits.to(device), ends, config)
        expected = translate(exact, source, mask, limits, ends, config)
        alike = sum(a == b for a, b in zip(found, expected, strict=True))
        yield Row(f"{name}: {method}", f"{alike} of {len(expected)} outputs alike", alike >= len(expected) - 1)


@part
def attention(bench: Bench) -> Iterator[Row]:
    """Which kernel attends with a bias or a mask, and whether a document in a window has the states it has alone."""
    length, width = (40, 8) if bench.small else (1024, 64)
    dtype = torch.float32 if bench.small else torch.bfloat16
    q_BHTK = torch.randn(2, 4, length, width, device=bench.device, dtype=dtype, requires_grad=True)
    causal = torch.ones(length, length, dtype=torch.bool, device=bench.device).tril()
    alibi = torch.where(causal, torch.randn(1, 4, length, length, device=bench.device), -torch.inf).to(dtype)
    for name, mask in (("causal", None), ("ALiBi", alibi), ("documents", causal[None, None])):
        chosen = torch._fused_sdp_choice(q_BHTK, q_BHTK, q_BHTK, attn_mask=mask, is_causal=mask is None)
        kernel = next(each.name for each in SDPBackend.__members__.values() if each.value == chosen)
        yield Row(f"{name}: kernel", kernel.lower(), kernel != "MATH")
    for positions in ("rotary", "alibi", "learned"):
        config = ModelConfig(**{**_SIZES, "family": "lm", "encoder_layers": 0, "positions": positions})
        model = Transformer(Architecture.from_config(config, VOCABULARY), config).eval()
        initialise(model, 1)
        model.to(bench.device)
        tokens = torch.randint(3, VOCABULARY, (4, 60), generator=torch.Generator().manual_seed(1)).to(bench.device)
        starts = (0, 7, 8, 31, 60)
        tokens[:, starts[1:-1]] = 2
        with torch.no_grad():
            packed = model(tokens, document_start=2)
            alone = torch.cat([model(tokens[:, first:last]) for first, last in pairwise(starts)], 1)
        wrong = float((packed - alone).norm() / alone.norm())
        yield Row(f"{positions}: documents in a window", f"{wrong:.1e} off", wrong < 1e-4, wrong)


@part
def resume(bench: Bench) -> Iterator[Row]:
    """A run that is killed and resumed ends with the bytes of one that was left alone, in deterministic mode."""
    for kind in ("dense",) if bench.small else ("dense", "lm"):
        with tempfile.TemporaryDirectory() as root:
            (Path(root) / "text.txt").write_text("".join(f"line {i} of a text\n" for i in range(4000)))
            cases = [Case(Path(root) / name, kind) for name in ("whole", "killed")]
            more = [f"trainer.device={bench.device}", "trainer.deterministic=true"]
            if bench.small:
                more.append("trainer.budget.steps=20")
            for case in cases:
                case.overrides = [word for word in case.overrides if not bench.small or "budget.steps" not in word]
                case.overrides += more
            try:
                cases[0].finish()
                _kill_after_a_state(cases[1])
                cases[1].finish()
                require_equal(cases[0].result(), cases[1].result())
                yield Row(f"{kind}: killed and resumed", "the same bytes", True)
            except FaultError as error:
                yield Row(f"{kind}: killed and resumed", " ".join(str(error).split())[-200:], False)


def _kill_after_a_state(case: Case) -> None:
    """Kills a run once it has saved a state. Raises `FaultError` if it ends or hangs before."""
    process = case.start()
    deadline = time.monotonic() + 300
    while not list((case.run / "state").glob("step-*.safetensors")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise FaultError("the run had no state to be killed after")
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
