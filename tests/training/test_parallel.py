"""How processes share a step: rows, the outer optimizer of local steps, and parameters that become smaller."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tfx.config.schema import LocalConfig
from tfx.processes.group import ALONE, Group
from tfx.processes.place import Place
from tfx.training import sharded
from tfx.training.loop import Trainer
from tfx.training.muon import Muon
from tfx.training.optimizers import Optimizers
from tfx.training.parallel import LocalSteps, Sharing
from tfx.training.sharded import Sharded


@given(count=st.integers(0, 40), size=st.integers(1, 6), pieces=st.integers(1, 8))
def test_each_row_is_run_once_in_pieces_of_nearly_one_size(count, size, pieces):
    rows = list(range(count))
    found = []
    for rank in range(size):
        parts = [rows[part] for part in Sharing(Group(Place(rank, size, rank, size, "", 0))).own(count, pieces)]
        own = [row for part in parts for row in part]
        assert own == rows[rank::size]
        assert len(parts) == min(pieces, len(own))
        assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1
        found += own
    assert sorted(found) == rows


def test_the_outer_optimizer_is_sgd_with_nesterov_momentum():
    torch.manual_seed(0)
    parameters = [torch.randn(3, 2), torch.randn(4)]
    outer = [torch.nn.Parameter(parameter.clone()) for parameter in parameters]
    expected = torch.optim.SGD(outer, lr=0.6, momentum=0.8, nesterov=True)
    sharing = LocalSteps(ALONE, LocalConfig(steps=3, outer_lr=0.6, outer_momentum=0.8))
    sharing.begin(parameters, Optimizers([]))
    for step in range(12):
        for parameter in parameters:
            parameter += torch.randn_like(parameter)
        before = [parameter.clone() for parameter in parameters]
        sharing.stepped([])
        assert sharing.are_equal == (step % 3 == 2)
        if not sharing.are_equal:
            assert all(map(torch.equal, parameters, before))
            continue
        for common, parameter in zip(outer, before, strict=True):
            common.grad = common.detach() - parameter
        expected.step()
        for common, parameter in zip(outer, parameters, strict=True):
            torch.testing.assert_close(parameter, common.detach())


def test_local_steps_go_on_from_their_state_and_meet_early_where_they_must():
    config = LocalConfig(steps=4, outer_lr=0.5, outer_momentum=0.9)
    first, second = [torch.zeros(2)], [torch.zeros(2)]
    sharing = LocalSteps(ALONE, config)
    sharing.begin(first, Optimizers([]))
    other = LocalSteps(ALONE, config)
    for step in range(10):
        first[0] += step
        sharing.stepped([])
        if step == 5:
            other.begin(second, Optimizers([]))
            second[0].copy_(first[0])
            state = sharing.state_dict()
            other.load_state_dict(
                {**state, **{name: [t.clone() for t in state[name]] for name in ("common", "momentum")}}
            )
        if step > 5:
            second[0] += step
            other.stepped([])
        if step == 8:
            for each in (sharing, other):
                each.meet([])
                assert each.are_equal
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize("count", [0, 1])
def test_averages_meet_too(count):
    """The mean over one process is its own average."""
    sharing = LocalSteps(ALONE, LocalConfig(steps=1))
    parameters, averages = [torch.ones(2)], [torch.full((2,), 3.0)] * count
    sharing.begin(parameters, Optimizers([]))
    sharing.stepped(averages)
    assert all(average.tolist() == [3.0, 3.0] for average in averages)


class Doubled(Group):
    """Of two processes the second has twice what the first has."""

    def __init__(self):
        super().__init__(Place(0, 2, 0, 2, "", 0))

    def add_up(self, tensors):
        for tensor in tensors:
            tensor.mul_(3)


@pytest.mark.parametrize("kind", [Muon, torch.optim.AdamW])
@pytest.mark.parametrize("average", [True, False])
def test_moments_meet_unless_each_process_keeps_its_own(kind, average):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 2)) for _ in range(3)]
    settings = {"adjust_lr_fn": "match_rms_adamw", "products": torch.float32} if kind is Muon else {"fused": True}
    optimizers = Optimizers([kind(parameters, lr=0.1, **settings)])
    sharing = LocalSteps(Doubled(), LocalConfig(steps=1, average_moments=average))
    sharing.begin(parameters, optimizers)
    # The last takes no step: this process had no row that reaches it. The others wait for its moments all the same.
    for parameter in parameters[:-1]:
        parameter.grad = torch.randn_like(parameter)
    optimizers.step(1.0)
    optimizers.zero_grad()
    before = [moment.clone() for moment in optimizers.moments()]
    assert len(before) == len(parameters) * (1 if kind is Muon else 2)
    assert sum(bool(moment.any()) for moment in before) == len(before) * 2 // 3
    sharing.stepped([])
    for now, old in zip(optimizers.moments(), before, strict=True):
        torch.testing.assert_close(now, old * (1.5 if average else 1.0))


def test_moments_stand_in_one_order_whichever_parameter_moved_first():
    """Processes send them one after the other."""
    found = []
    for order in ((0, 1), (1, 0)):
        parameters = [torch.nn.Parameter(torch.zeros(count)) for count in (2, 3)]
        optimizers = Optimizers([torch.optim.AdamW(parameters, fused=True)])
        for number in order:
            parameters[number].grad = torch.full((number + 2,), number + 1.0)
            optimizers.step(1.0)
            optimizers.zero_grad()
        found.append([moment.tolist() for moment in optimizers.moments()])
    assert found[0] == found[1]
    assert [len(moment) for moment in found[0]] == [2, 2, 3, 3]


def test_a_process_without_rows_sends_its_norm_from_the_device_of_all():
    """Torch gives a norm of 0 on the CPU where nothing has a gradient; the others' travel from GPU to GPU."""

    class OfTwo(Group):
        def add_up(self, tensors):
            assert [tensor.device.type for tensor in tensors] == ["meta"]

    parameters = [torch.nn.Parameter(torch.ones(3, device="meta"))]
    sharing = LocalSteps(OfTwo(Place(1, 2, 1, 2, "", 0)), LocalConfig())
    sharing.begin(parameters, Optimizers([]))
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    assert norm.device.type == "cpu"
    assert sharing.common_norm(norm).device.type == "meta"


def test_of_a_saved_state_only_the_own_part_goes_to_the_device():
    """Weights and moments stay where they are: they are copied from there, and may be divided first."""
    own = [{"model": {"w": torch.ones(2)}, "stack": {"mask": torch.ones(2)}} for _ in range(2)]
    place = Group(Place(1, 2, 1, 2, "", 0))
    trainer = SimpleNamespace(group=place, device=torch.device("meta"))
    found = Trainer._own_state(trainer, {"ranks": own, "sharing": {"common": [torch.ones(2)]}, "pieces": 1})
    assert found.keys() == {"model", "stack", "sharing", "pieces"}
    assert found["model"]["w"] is own[1]["model"]["w"]
    assert found["stack"]["mask"].is_meta
    assert found["sharing"]["common"][0].is_meta
    assert found["pieces"] == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_keeps_the_whole_tensors_of_a_state(monkeypatch, rank):
    gathered = []
    monkeypatch.setattr(sharded, "DTensor", torch.Tensor)
    monkeypatch.setattr(sharded, "_whole", lambda tensor: gathered.append(tensor) or tensor)
    weight = torch.ones(2)
    tied = weight.detach()
    for each in (weight, tied):
        each.to_local = lambda each=each: each
    found = Sharded(Group(Place(rank, 2, rank, 2, "", 0))).saved_state({"model": [weight, tied], "step": 3})
    assert len(gathered) == 1
    assert found["step"] == 3
    assert found["model"][0] is found["model"][1] is (None if rank else weight)
