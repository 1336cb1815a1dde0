from __future__ import annotations

import resource
import sys

import pytest
import torch

from tfx.system import malloc as heap
from tfx.system.malloc import keep_freed_memory


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is of glibc")
def test_tensors_that_are_freed_and_made_again_use_the_same_pages(monkeypatch):
    for name in heap._CHOICES:
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory()

    def fault_count():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def work():
        return [torch.zeros(10 << 18) for _ in range(8)]  # 10 MB each

    del (first := [work()])[:]
    before = fault_count()
    for _ in range(5):
        work()
    # 5 x 80 MB would be 100,000 pages of 4 kB.
    assert fault_count() - before < 30_000, first


def test_the_users_own_allocator_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not keep_freed_memory()
