"""With `trainer.deterministic` a GPU refuses some operations: none of those is used where the device is one.

The CPU stands in for it, taken from the list of devices that are waited for, and the operations that torch names in
`use_deterministic_algorithms` as those without a deterministic kernel are refused here.
"""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tfx.config.compose import compose
from tfx.model import device
from tfx.model.decoding import sampling_distribution
from tfx.model.device import running_sums
from tfx.run.setup import Setup
from tfx.techniques.calibration import Calibration
from tfx.techniques.prune.masks import pattern_mask, share_masks
from tfx.techniques.quantize.codebook import cluster
from tfx.training.loop import Observer, Trainer

ATEN = torch.ops.aten
# `scripts/check_gpu.py` runs these tests on a GPU, which then refuses by itself too.
DEVICE = torch.device(os.environ.get("TFX_TEST_DEVICE", "cpu"))
# Those that a model like ours could meet.
NEVER = (ATEN.kthvalue, ATEN.histc, ATEN.put, ATEN.put_, ATEN.nll_loss2d_forward, ATEN.upsample_linear1d_backward)
WITH_INDICES = (ATEN.median.dim, ATEN.nanmedian.dim, ATEN.median.dim_values, ATEN.nanmedian.dim_values)


class OnlyDeterministic(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function._overloadpacket
        self.seen.add(packet)
        refused = packet in NEVER or function in WITH_INDICES
        refused = refused or (packet in (ATEN.cumsum, ATEN.cumsum_) and args[0].is_floating_point())
        refused = refused or (packet is ATEN.bincount and len(args) > 1 and args[1] is not None)
        refused = refused or (packet in (ATEN.scatter_reduce, ATEN.scatter_reduce_) and "prod" in args)
        if refused:
            raise RuntimeError(f"{function} has no deterministic kernel on a GPU")
        return function(*args, **(kwargs or {}))


@pytest.fixture
def on_device(monkeypatch):
    """Runs work as it would run on a GPU in deterministic mode."""

    def run(work):
        with monkeypatch.context() as patch, OnlyDeterministic():
            patch.setattr(device, "_SYNCHRONOUS", ())
            return work()

    if DEVICE.type != "cpu":
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    yield run
    if DEVICE.type != "cpu":
        torch.use_deterministic_algorithms(False)


def test_what_is_refused_is_refused(on_device):
    for work in (
        lambda: torch.rand(5).kthvalue(2),
        lambda: torch.rand(5).cumsum(0),
        lambda: torch.rand(2, 5).median(1),
        lambda: torch.rand(5).histc(3),
    ):
        with pytest.raises(RuntimeError, match="no deterministic kernel"):
            on_device(work)
    on_device(lambda: (torch.rand(5) > 0.5).cumsum(0))


def test_sums_up_to_each_entry_are_as_exact_as_doubles(on_device):
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-30, 1.0, 1e12):
        x = (scale * torch.randn(3, 10_000, generator=generator, dtype=torch.float64)).to(DEVICE)
        sums = on_device(lambda x=x: running_sums(x, 1))
        torch.testing.assert_close(sums.cpu(), x.cpu().cumsum(1), rtol=0, atol=1e-11 * scale)
    assert torch.equal(on_device(lambda: running_sums(torch.zeros(4), 0)), torch.zeros(4))


@pytest.mark.parametrize("scope", ["global", "layer", "row"])
def test_the_same_weights_go(on_device, scope):
    generator = torch.Generator().manual_seed(2)
    weights = {"a": torch.randn(6, 8, generator=generator).round(decimals=1), "b": torch.randn(7, generator=generator)}
    there = {name: weight.to(DEVICE) for name, weight in weights.items()}
    for sparsity in (0.0, 0.3, 0.5, 1.0):
        expected = share_masks(weights, sparsity, scope)
        found = on_device(lambda sparsity=sparsity: share_masks(there, sparsity, scope))
        assert all(torch.equal(mask.cpu(), expected[name]) for name, mask in found.items())
    assert torch.equal(on_device(lambda: pattern_mask(there["a"], 2, 4)).cpu(), pattern_mask(weights["a"], 2, 4))


def test_the_same_codebook_is_found_and_the_same_nucleus(on_device):
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    there = weight.to(DEVICE)
    book = on_device(lambda: cluster(there, 3, torch.float32)).cpu()
    torch.testing.assert_close(book, cluster(weight, 3, torch.float32))
    for top_p in (0.1, 0.5, 0.99):
        found = on_device(lambda top_p=top_p: sampling_distribution(4 * there, 1.0, None, top_p)).cpu()
        torch.testing.assert_close(found, sampling_distribution(4 * weight, 1.0, None, top_p))


def test_a_whole_training_with_every_technique_needs_no_other(on_device, here):
    words = [
        *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"),
        *("dataset.limit.train=40", "dataset.limit.valid=5", "dataset.limit.test=5", "trainer.budget.steps=4"),
        *("+technique=[shuffle,mixup,prune,quantize]", "technique.quantize.method=codebook", "technique.prune.end=0.5"),
        *("dataset.tokenizer.kind=char", "dataset.batch_tokens=256", "technique.shuffle.share=1"),
        *("technique.quantize.start=0.5", "technique.quantize.bits=2", f"trainer.device={DEVICE}"),
        *("trainer.compile=off", f"trainer.deterministic={str(DEVICE.type != 'cpu').lower()}"),
    ]
    parts = Setup(compose(words)).prepare({})

    def work():
        assert torch.are_deterministic_algorithms_enabled() == (DEVICE.type != "cpu")
        trainer = Trainer(parts.config, parts.model, parts.data, parts.device, Observer(), parts.stack)
        trainer.train()
        return list(parts.stack.finish(parts.model, Calibration(parts.model, lambda count: [])))

    assert len(on_device(work)) == 2


def test_new_memory_is_not_filled():
    Setup(compose(["trainer.device=cpu", "trainer.deterministic=true"]))
    try:
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.empty(1000).isnan().all()  # what was there before may be NaN here and there
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        Setup(compose(["trainer.device=cpu"]))
