"""The peak of some work on a CPU is that of the tensors that live at once."""

import gc

import torch

from tfx.training.allocations import peak_of

CPU = torch.device("cpu")
MB = 1 << 20


def made(count: int) -> torch.Tensor:
    return torch.zeros(count * MB, dtype=torch.uint8)


def test_what_is_freed_makes_room():
    def work():
        first = made(3)
        del first
        second = made(2)
        third = made(4)
        del second
        return third

    assert peak_of(work, CPU) == 6 * MB


def test_views_and_what_was_there_before_cost_nothing():
    before = made(5)

    def work():
        view = before.view(5, MB)[1:3].t()
        view.add_(1)
        return [made(1).view(MB // 4, 4).t(), before[:10]]

    assert peak_of(work, CPU) == MB


def test_activations_count_until_the_backward_pass_has_used_them():
    weight = torch.randn(64, 64, requires_grad=True)
    x = torch.randn(1024, 64)

    def work(layers: int) -> None:
        y = x
        for _ in range(layers):
            y = (y @ weight).tanh()  # keeps its output
        y.sum().backward()
        weight.grad = None

    gc.collect()
    peaks = [peak_of(lambda layers=layers: work(layers), CPU) for layers in (4, 8, 16)]
    one = x.numel() * 4
    assert peaks[2] - peaks[1] == 2 * (peaks[1] - peaks[0])
    assert one <= (peaks[1] - peaks[0]) / 4 <= 2 * one


def test_what_was_measured_once_can_be_compiled_later():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def twice(x):
        return 2 * x

    compiled = torch.compile(twice, backend=backend)
    assert peak_of(lambda: compiled(made(1)), CPU) == 2 * MB
    assert not graphs
    compiled(made(1))
    assert len(graphs) == 1
