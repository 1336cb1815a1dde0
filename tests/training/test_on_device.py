"""On a device that is not waited for, a bad step is refused as on the DEVICE, and nothing waits.

The CPU stands in for such a device: it is taken from the list of those that are waited for. That no value is read is
seen on a fake one.
"""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.backends.cuda import cudnn_sdp_enabled
from torch.utils._python_dispatch import TorchDispatchMode

from tfx.config.compose import compose
from tfx.model import device
from tfx.run.setup import Setup, build_model, read_inputs
from tfx.techniques.stack import Stack
from tfx.training import loop, stability, step
from tfx.training.loop import Observer, Trainer
from tfx.training.muon import Muon
from tfx.training.optimizers import Optimizers
from tfx.training.stability import UnstableError
from tfx.training.state import StateSaver, load_state
from tfx.training.step import Stepper

# `scripts/check_gpu.py` runs these tests on a GPU.
DEVICE = torch.device(os.environ.get("TFX_TEST_DEVICE", "cpu"))
FAKE_STEPS = Path(__file__).with_name("fake_steps.py")
TINY = [
    *("model.width=16", "model.heads=2", "model.ffn_width=16", "model.encoder_layers=1", "model.decoder_layers=1"),
    *("dataset.limit.train=40", "dataset.limit.valid=5", "dataset.limit.test=5", "dataset.batch_tokens=256"),
    *("trainer.budget.steps=8", "trainer.validate_every=1", "trainer.log_every=4", "optimizer.lr=0.01"),
    # What is compiled has tests and checks of its own: on a GPU that would take these many minutes.
    *("trainer.precision=fp32", "trainer.compile=off", "dataset.tokenizer.kind=char"),
]
STACK = [
    "+technique=[shuffle,mixup,prune,quantize]",
    "technique.quantize.rate=4",
    "technique.quantize.start=0",
    "technique.mixup.share=1",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(tmp_path_factory.mktemp("cache")))
        return read_inputs(compose(TINY))[1]


class Seen(Observer):
    def __init__(self, saver=None):
        self.notes, self.rows, self.saver = [], [], saver

    def noted(self, message):
        self.notes.append(message)

    def stepped(self, row, **place):
        self.rows.append(
            (place["step"], {name: row[name] for name in ("loss", "learning_rate", "gradient_norm", "padding")})
        )

    def save(self, step, state):
        if self.saver is not None:
            self.saver.save(step, state)


def train(prepared, monkeypatch, overrides, *, on_device, spoilt=(), state=None, saver=None):
    """Trains with gradients spoilt at some steps; gives trainer, what its observer saw, and the error, if any."""
    config = compose([*TINY, *overrides])
    stack = Stack.from_config(config)
    observer = Seen(saver)
    with monkeypatch.context() as patch:
        patch.setattr(device, "_SYNCHRONOUS", () if on_device else ("cpu", "mps", "cuda"))
        trainer = Trainer(
            config, build_model(config, prepared, DEVICE, None), prepared, DEVICE, observer, stack, state=state
        )
        gradients = Stepper._gradients

        def broken(self, *arguments):
            found = gradients(self, *arguments)
            if trainer.clock.steps + 1 in spoilt:
                trainer.model.output.weight.grad[0, 0] = float("nan")
            return found

        patch.setattr(Stepper, "_gradients", broken)
        cost = error = None
        try:
            cost = trainer.train()
        except UnstableError as unstable:
            error = unstable
    return SimpleNamespace(trainer=trainer, seen=observer, error=error, cost=cost)


def weights(run):
    return dict(run.trainer.model.named_parameters())


def same(ours, theirs):
    def alike(a, b):
        # On a GPU, who decides also decides which rows are multiplied together.
        return torch.equal(a, b) if DEVICE.type == "cpu" else torch.allclose(a, b, rtol=1e-2, atol=5e-3)

    return all(alike(value, weights(theirs)[name]) for name, value in weights(ours).items())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
@pytest.mark.parametrize("policy", ["skip", "back_off"])
def test_a_spoilt_step_changes_nothing_whoever_decides(prepared, monkeypatch, optimizer, policy):
    overrides = [f"optimizer={optimizer}", f"trainer.instability.policy={policy}", "trainer.averaging.kind=ema"]
    overrides.append("model.bias=false")  # a bias of keys has only rounding errors as gradients
    host, other = (
        train(prepared, monkeypatch, overrides, on_device=on_device, spoilt=(1, 5)) for on_device in (False, True)
    )
    # Muon's rate is applied to its update, and its products are bfloat16's.
    allowed = 1e-3 if optimizer == "muon" else 1e-6
    for name, value in weights(host).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-5, atol=allowed, msg=name)
    if policy == "skip":
        assert same(host, other)
    for mine, theirs in zip(host.seen.rows, other.seen.rows, strict=True):
        assert mine[1] == pytest.approx(theirs[1], rel=1e-5), mine
    assert [run.trainer.stepper.guard.skipped for run in (host, other)] == [2, 2]
    assert float(other.trainer.stepper.guard.learning_rate_factor) == (0.25 if policy == "back_off" else 1.0)
    told = [note for note in other.seen.notes if "examples" in note]
    assert len(told) == 2
    assert "step 5: the loss is" in told[1]
    assert "gradient norm nan" in told[1]
    assert "unknown" not in told[1]


@pytest.mark.parametrize(("policy", "share"), [("skip", 1.0), ("back_off", 0.25)])
def test_the_rate_that_is_logged_is_the_one_that_steps_have(prepared, monkeypatch, policy, share):
    overrides = ["optimizer=adam", f"trainer.instability.policy={policy}", "schedule=constant"]
    rates = [
        train(prepared, monkeypatch, overrides, on_device=False, spoilt=spoilt).seen.rows[-1][1]["learning_rate"]
        for spoilt in ((), (1, 5))
    ]
    assert rates[1] == pytest.approx(share * rates[0])


def test_when_the_run_stops_no_step_after_the_fault_was_taken(prepared, monkeypatch):
    host, other = (
        train(prepared, monkeypatch, ["trainer.log_every=8"], on_device=on_device, spoilt=(5,))
        for on_device in (False, True)
    )
    assert all(isinstance(run.error, UnstableError) for run in (host, other))
    assert "step 5: the loss is" in str(other.error)
    assert other.trainer.clock.steps > host.trainer.clock.steps
    assert same(host, other)


def test_a_spike_and_a_loss_that_is_not_finite_are_found_on_the_device(prepared, monkeypatch):
    config = compose([*TINY, "trainer.instability.policy=skip", "trainer.instability.spike=2"]).trainer.instability
    host, other = stability.HostGuard(config), stability.DeviceGuard(config, DEVICE)
    losses = [3.0 - 0.01 * number for number in range(23)] + [5.5, float("nan"), 2.7, float("inf"), 4.9, 4.7]
    for number, loss in enumerate(losses):
        verdict = host.judge(torch.tensor(100 * loss), 100, torch.tensor(1.0), number)
        on_device = (torch.tensor(value, device=DEVICE) for value in (100 * loss, 1.0))
        refused = other.judge(next(on_device), 100, next(on_device), number).refused
        assert bool(refused) == (verdict.fault is not None), loss
        if verdict.fault is not None:
            assert other.look() == stability.Refusals(1, number, verdict.fault)
            host.respond(verdict.fault)
    assert host.skipped == other.skipped == 4
    mine, theirs = host.state_dict(), other.state_dict()
    assert mine == theirs
    again = stability.DeviceGuard(config, DEVICE)
    again.load_state_dict(mine)
    assert again.state_dict() == mine
    assert again.look() is None


def test_patience_on_the_device_ends_the_run_with_the_weights_before(prepared, monkeypatch):
    overrides = ["trainer.instability.policy=skip", "trainer.instability.patience=3", "trainer.log_every=8"]
    other = train(prepared, monkeypatch, overrides, on_device=True, spoilt=(2, 4, 5, 6))
    host = train(prepared, monkeypatch, overrides, on_device=False, spoilt=(2, 4, 5, 6))
    assert "3 steps in a row" in str(other.error)
    assert same(host, other)


@pytest.mark.parametrize("spoilt", [(), (4,)])
def test_evidence_counts_the_steps_that_were_taken(prepared, monkeypatch, spoilt):
    overrides = [*STACK, "trainer.instability.policy=skip"]
    host, other = (
        train(prepared, monkeypatch, overrides, on_device=on_device, spoilt=spoilt) for on_device in (False, True)
    )
    assert same(host, other)
    mine, theirs = (run.trainer.stack.state_dict() for run in (host, other))
    assert mine["mixup"] == theirs["mixup"]
    assert mine["shuffle"] == theirs["shuffle"]
    assert mine["mixup"]["share"][0] > 0
    for name, square in mine["quantize"]["sensitivities"].items():
        torch.testing.assert_close(theirs["quantize"]["sensitivities"][name], square)
    clean = train(prepared, monkeypatch, overrides, on_device=False).trainer.stack.state_dict()
    assert (clean["mixup"] == mine["mixup"]) == (not spoilt)


def test_a_state_of_either_goes_on_at_the_other(prepared, monkeypatch, tmp_path):
    overrides = ["trainer.save.every_steps=4", "trainer.instability.policy=skip"]
    spoilt = {"spoilt": (3,)}
    whole = train(prepared, monkeypatch, overrides, on_device=False, **spoilt)
    for first in (False, True):
        saver = StateSaver(tmp_path / str(first), 3)
        train(prepared, monkeypatch, overrides, on_device=first, saver=saver, **spoilt)
        saver.close()
        saved = load_state(saver.folder / "step-000000004.safetensors")
        assert same(whole, train(prepared, monkeypatch, overrides, on_device=not first, state=saved, **spoilt))


def test_weights_that_the_last_update_made_infinite_do_not_complete(prepared, monkeypatch):
    update = Optimizers.step

    def broken(self, *arguments):
        update(self, *arguments)
        self.parts[-1].param_groups[0]["params"][0].data[0, 0] = float("inf")

    monkeypatch.setattr(Optimizers, "step", broken)
    for on_device in (False, True):
        run = train(prepared, monkeypatch, ["trainer.budget.steps=1"], on_device=on_device)
        assert "after step 1 weights of embedding.weight are not finite" in str(run.error)


def test_memory_that_was_used_before_a_training_is_not_counted_as_its_own(prepared, monkeypatch):
    used = {"peak": 900, "now": 100}  # by a reference that was measured, or a teacher that was trained
    monkeypatch.setattr(loop, "reset_peak_memory", lambda device: used.update(peak=used["now"]))
    monkeypatch.setattr(loop, "peak_memory", lambda device: used["peak"])
    ran = train(prepared, monkeypatch, ["trainer.budget.steps=1"], on_device=False)
    assert ran.cost.peak_memory_bytes == 100


# --- out of memory ----------------------------------------------------------------------------------


def test_a_step_that_is_tried_again_in_smaller_pieces_counts_its_evidence_once(prepared, monkeypatch):
    overrides = ["+technique=shuffle", "technique.shuffle.share=1", "trainer.budget.steps=2"]
    loss, calls = Stepper._loss, []

    def short(self, *arguments):
        calls.append(1)
        if len(calls) == 1:
            loss(self, *arguments)
            raise torch.OutOfMemoryError("too many rows")
        return loss(self, *arguments)

    def tokens():
        ran = train(prepared, monkeypatch, overrides, on_device=False)
        return ran.trainer.stack.state_dict()["shuffle"]["moved"][1]

    plain = tokens()
    monkeypatch.setattr(Stepper, "_loss", short)
    assert tokens() == plain > 0


@pytest.mark.parametrize("times", [1, 2])
def test_an_update_without_memory_is_taken_back_and_tried_once_more(prepared, monkeypatch, times):
    plain, build = train(prepared, monkeypatch, [], on_device=True), step.build_optimizers

    def build_short(*arguments):
        optimizers, calls = build(*arguments), []
        muon, *_ = optimizers.parts
        update = muon.step

        def short():
            calls.append(1)
            update()  # what had changed when memory ran out
            if 3 <= len(calls) < 3 + times:
                raise torch.OutOfMemoryError("too large")

        muon.step = short
        return optimizers

    monkeypatch.setattr(step, "build_optimizers", build_short)
    if times == 1:
        assert same(train(prepared, monkeypatch, [], on_device=True), plain)
    else:
        with pytest.raises(torch.OutOfMemoryError, match="while the optimizer updates the weights"):
            train(prepared, monkeypatch, [], on_device=True)


class Named(TorchDispatchMode):
    """Notes the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name.partition("::")[2])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("refused", [0.0, 1.0])
def test_muon_chooses_on_the_device_and_copies_nothing_back(refused):
    weights = [torch.nn.Parameter(torch.randn(8, 8, device=DEVICE)) for _ in range(3)]
    optimizers = Optimizers([Muon(weights, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")])
    optimizers.allocate()
    for weight in weights:
        weight.grad = torch.full_like(weight, float("nan")) if refused else torch.randn_like(weight)
    before = [weight.detach().clone() for weight in weights]
    with Named() as seen:
        optimizers.step(torch.tensor(0.5, device=DEVICE), torch.tensor(refused, device=DEVICE))
    # Weights and momenta, each once; and no other operation one by one.
    assert seen.names.count("where") == 2 * len(weights)
    assert seen.names.count("_foreach_copy_") == 1
    assert not {"clone", "copy_", "lerp", "_local_scalar_dense"} & set(seen.names)
    assert all(torch.equal(old, new) == bool(refused) for old, new in zip(before, weights, strict=True))
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_can_be_made_before_the_first_activations(prepared, monkeypatch, optimizer):
    config = compose([*TINY, f"optimizer={optimizer}"])
    models = [build_model(config, prepared, DEVICE, None) for _ in range(2)]
    ours, theirs = (step.build_optimizers(config.optimizer, model, DEVICE) for model in models)
    ours.allocate()
    assert all(len(part.state) == sum(len(g["params"]) for g in part.param_groups) for part in ours.parts)
    for model, optimizers in zip(models, (ours, theirs), strict=True):
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            assert parameter.grad is None
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(DEVICE)
        optimizers.step(0.5)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


def test_the_note_of_a_refused_step_has_the_norms_from_before_clipping(prepared, monkeypatch):
    run = train(prepared, monkeypatch, ["trainer.instability.policy=skip"], on_device=False, spoilt=(2,))
    (told,) = [note.partition("largest gradient norms: ")[2] for note in run.seen.notes if "largest" in note]
    norms = [float(entry.split()[-1]) for entry in told.split(", ")]
    assert math.isnan(norms[0])  # the one that was spoilt
    assert len(norms) == 5
    assert all(norm > 0 for norm in norms[1:])


def test_queued_steps_are_waited_for_before_the_clock_stops(prepared, monkeypatch):
    is_paused, look = [], Trainer._look

    def looked(trainer):
        is_paused.append(trainer.clock._started is None)
        look(trainer)

    monkeypatch.setattr(Trainer, "_look", looked)
    train(prepared, monkeypatch, ["trainer.save.every_steps=1"], on_device=True)
    assert len(is_paused) > 8
    assert [first for first, then in itertools.pairwise([True, *is_paused]) if then] == [False] * sum(is_paused)


@pytest.mark.parametrize(("words", "allowed"), [(["dataset=stdlib", "model=gpt_nano"], True), ([], False)])
def test_kernels_that_plan_each_shape_are_for_trainings_on_one(words, allowed, here, monkeypatch):
    layers = ["model.encoder_layers=0", "dataset.limit.train=5"] if words else []
    parts = Setup(compose([*TINY, *words, *layers, f"trainer.device={DEVICE}"])).prepare({})
    found = []
    stepped = Seen.stepped
    monkeypatch.setattr(Seen, "stepped", lambda *a, **k: (found.append(cudnn_sdp_enabled()), stepped(*a, **k)))
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)  # as `choose_device` does for a GPU
    try:
        Trainer(parts.config, parts.model, parts.data, parts.device, Seen(), parts.stack).train()
        assert not cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled=True)
    assert found == [allowed] * 2


def test_the_share_of_the_peak_is_that_of_all_devices(prepared, monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda device: 1e12)
    trainer = train(prepared, monkeypatch, [], on_device=False).trainer
    alone = trainer._result(1.0, "last").mfu
    trainer.group = SimpleNamespace(size=4, greatest=lambda *values: values)
    assert trainer._result(1.0, "last").mfu == pytest.approx(alone / 4)
    assert alone > 0


# --- nothing waits ----------------------------------------------------------------------------------


def test_a_step_reads_nothing_back_and_all_its_tensors_are_on_the_device():
    # A process of its own: the fake device is for good.
    ran = subprocess.run([sys.executable, str(FAKE_STEPS)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines() == [
        *("data, masks: taken", "a teacher: taken", "grids: taken", "a teacher of labels: taken"),
        *("a codebook: used", "a value: DataDependentOutputException"),
    ]
