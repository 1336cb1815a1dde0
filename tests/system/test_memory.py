"""Free memory is what the system has and what the process's container leaves."""

import pytest

from tfx.system.memory import free_memory, installed_memory

GROUPS = [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]


@pytest.fixture
def system(tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal:  4000 kB\nMemFree:  100 kB\nMemAvailable:    2000 kB\n")
    return tmp_path


def test_what_is_available_counts_and_not_what_is_free(system):
    assert free_memory(system / "meminfo", system) == 2000 * 1024


@pytest.mark.parametrize("names", GROUPS)
@pytest.mark.parametrize(("limit", "found"), [("1000000", 900_000), ("max", 2000 * 1024), ("9000000000", 2000 * 1024)])
def test_a_container_leaves_less(system, names, limit, found):
    (system / names[0]).write_text(limit + "\n")
    (system / names[1]).write_text("100000\n")
    assert free_memory(system / "meminfo", system) == found


def test_a_full_container_leaves_nothing(system):
    (system / "memory.max").write_text("1000")
    (system / "memory.current").write_text("2000")
    assert free_memory(system / "meminfo", system) == 0


def test_another_system_does_not_say(tmp_path):
    assert free_memory(tmp_path / "meminfo", tmp_path) is None


def test_here_it_is_less_than_what_is_installed():
    assert 0 < free_memory() <= installed_memory()
