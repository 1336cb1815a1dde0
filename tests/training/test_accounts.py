"""What a training counts of its device."""

import pytest
import torch

from tfx.training.accounts import named_peak, peak_flops, peak_memory, reset_peak_memory


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("GRID A100-10C", None),
        ("NVIDIA A40", 149.7),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        # A part of a GPU, a slower namesake, and one that is not known.
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_own_kind(name, teraflops):
    assert named_peak(name) == (None if teraflops is None else teraflops * 1e12)


def test_only_a_gpu_has_a_peak_in_the_table():
    assert peak_flops(torch.device("cpu")) is None


def test_the_peak_of_memory_is_counted_anew_on_a_gpu(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    for device in (torch.device("cpu"), torch.device("cuda:1")):
        reset_peak_memory(device)
    assert calls == [torch.device("cuda:1")]
    assert peak_memory(torch.device("cpu")) > 1e7
