from __future__ import annotations

import weakref

import pytest
import torch

from tfx.errors import UserError
from tfx.model import device
from tfx.model.device import choose_device, choose_precision, drop_unused_memory
from tfx.processes.group import Group
from tfx.processes.place import Place

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_without_a_gpu_it_is_the_cpu(no_gpu, name):
    assert choose_device(name) == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "meta", "warp", "", "cuda:x"])
def test_a_device_that_is_not_there_is_a_user_error_that_says_what_to_use(no_gpu, name):
    with pytest.raises(UserError, match=r"auto"):
        choose_device(name)


def test_a_number_of_devices_in_the_place_of_a_device_is_told_what_takes_it():
    with pytest.raises(UserError, match=r"trainer.device=2 is not a device: .* set trainer.devices=2; .*=cuda:2"):
        choose_device("2")


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    # Threads that use it need its number: `torch.cuda.set_device` takes no other.
    for name in ("cuda", "auto"):
        torch.backends.cuda.enable_cudnn_sdp(enabled=True)
        try:
            assert choose_device(name) == torch.device("cuda", 1)
            # It plans each shape of a batch.
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        finally:
            torch.backends.cuda.enable_cudnn_sdp(enabled=True)


def test_models_in_cycles_of_references_are_dropped_from_a_gpu():
    class Cycle:
        pass

    held = Cycle()
    held.itself, seen = held, weakref.ref(held)
    del held
    drop_unused_memory(CPU)
    assert seen() is not None
    drop_unused_memory(torch.device("cuda"))
    assert seen() is None


def test_a_gpu_number_that_is_too_high_is_a_user_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="there are 2 CUDA devices"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "has_bf16", "expected"),
    [
        ("auto", True, ("mixed", None, torch.bfloat16)),
        ("auto", False, ("fp32", None, torch.float32)),
        ("fp32", True, ("fp32", None, torch.float32)),
        ("mixed", False, ("mixed", None, torch.bfloat16)),
        ("bf16", False, ("bf16", torch.bfloat16, torch.bfloat16)),
    ],
)
def test_precision_on_a_cpu(monkeypatch, name, has_bf16, expected):
    monkeypatch.setattr(device, "_cpu_multiplies_bf16", lambda: has_bf16)
    precision = choose_precision(name, CPU)
    assert (precision.name, precision.autocast, precision.products) == expected


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_limit_of_instructions_leaves_no_bfloat16_products(monkeypatch, tmp_path, name):
    (tmp_path / "cpuinfo").write_text("flags : avx2 avx512_bf16")
    monkeypatch.setattr("builtins.open", lambda path, **options: (tmp_path / "cpuinfo").open(**options))
    for allowed, expected in (("", "mixed"), ("AVX512_CORE_BF16", "mixed"), ("AVX2", "fp32"), ("avx512_core", "fp32")):
        monkeypatch.setenv(name, allowed)
        assert choose_precision("auto", CPU).name == expected


@pytest.mark.parametrize(("has_bf16", "name"), [(True, "bf16"), (False, "fp32")])
def test_automatic_precision_on_a_gpu_is_bfloat16_where_it_is_not_emulated(monkeypatch, has_bf16, name):
    # Torch counts emulation unless told otherwise: every GPU has that.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_bf16
    )
    assert choose_precision("auto", torch.device("cuda")).name == name


@pytest.mark.parametrize("is_own", [True, False])
def test_one_gpu_for_each_of_several_processes_is_taken_and_one_for_all_is_refused(monkeypatch, is_own):
    class OfEight(Group):
        def has_own_gpu(self):
            return is_own

    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    group = OfEight(Place(5, 8, 5, 8, "", 0))
    if is_own:
        assert choose_device("cuda", group) == torch.device("cuda", 0)
        assert chosen == [0]
    else:
        with pytest.raises(UserError, match="8 processes and 1 CUDA devices"):
            choose_device("cuda", group)
