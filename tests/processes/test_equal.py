"""Two processes train, score and decode as one does: the same batches and draws, and sums in another order."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tfx.processes.group import ALONE
from tfx.processes.launch import launch

# A script too: the processes run it.
ARMS = importlib.util.spec_from_file_location("arms", Path(__file__).with_name("arms.py"))
arms = importlib.util.module_from_spec(ARMS)
ARMS.loader.exec_module(arms)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process did, and what each of two did, by arm."""
    folder = tmp_path_factory.mktemp("arms")
    teacher = folder / "teacher.safetensors"
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(folder / "cache"))
        arms.make_teacher(teacher)
        launch([arms.__file__, str(teacher), str(folder)], 2, threads=1)
        one = json.loads(json.dumps(arms.all_of(teacher, ALONE)))
    torch.set_num_threads(threads)
    return one, *(json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))


SAME = [name for name in arms.ARMS if name != "local"]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_give_the_loss_curve_of_one(found, name):
    one, first, second = (each[name] for each in found)
    assert len(one["curve"]) == 12
    for ours, theirs in zip(first["curve"], one["curve"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-4)
    assert first["cost"] == pytest.approx({**one["cost"], "processes": 2})
    # A key's bias changes no attention: it follows rounding errors, which Adam enlarges.
    known = {name: size for name, size in one["weights"].items() if not name.endswith("k.bias")}
    assert {name: first["weights"][name] for name in known} == pytest.approx(known, rel=1e-3)
    # Their weights are the same bits in both.
    assert first["weights"] == second["weights"]
    assert first["curve"] == second["curve"]


def test_local_steps_end_with_one_model_in_all_processes_near_that_of_all_gradients(found):
    one, first, second = (each["local"] for each in found)
    assert first["weights"] == second["weights"]
    assert first["curve"] == second["curve"]
    dense = found[0]["dense"]
    assert first["cost"]["tokens"] == dense["cost"]["tokens"]
    ends = [each["curve"][-1]["valid"] for each in (first, dense)]
    assert ends[0] == pytest.approx(ends[1], rel=0.1)
    # They did not share each gradient.
    assert first["curve"][5] != pytest.approx(one["curve"][5], rel=1e-3)


@pytest.mark.parametrize("name", SAME)
def test_the_evidence_is_that_of_all_processes(found, name):
    one, first, _ = (each[name] for each in found)
    for technique, evidence in one["evidence"].items():
        assert first["evidence"][technique] == pytest.approx(evidence, rel=2e-3), technique


def test_shared_scoring_and_decoding_give_the_bits_of_one_process(found):
    one, first, second = (each["scores"] for each in found)
    assert first == one
    assert {"loss", "chrf"} <= one["metrics"].keys()
    assert second["metrics"]["loss"] == one["metrics"]["loss"]
