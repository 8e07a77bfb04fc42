"""A schedule with its parameters in place gives what the graph itself gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradlab import models
from gradlab.evaluation.module.executor import Executor
from gradlab.evaluation.module.graph import ModuleGraph, Schedule


class InPlace(nn.Module):
    """In-place operations, keyword arguments, lists, methods, modules with and without state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.group = nn.GroupNorm(1, 3)
        self.prelu = nn.PReLU(3)
        self.relu = nn.ReLU(inplace=True)
        self.register_buffer("shift", torch.randn(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        y = self.relu(self.group(x))
        y += self.shift
        x = torch.cat([self.prelu(x), y], dim=1)
        return x.mean(dim=(2, 3)).clamp_(min=-1)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (InPlace, (2, 4, 4)),
        (lambda: models.create("xnor_resnet18", width=2), (3, 32, 32)),
        (lambda: models.create("xnor_resnet18", width=2, block="bireal"), (3, 32, 32)),
        (lambda: models.create("lenet", width=2, scaling="learned"), (1, 28, 28)),
    ],
    ids=["in_place", "xnor", "bireal", "lenet"],
)
def test_values_are_those_of_the_graph(
    make: Callable[[], nn.Module], shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    graph = ModuleGraph(module)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    # other values than the module's own, so that none of those is used by mistake
    state = {name: t + 0.1 if t.is_floating_point() else t for name, t in state.items()}
    schedule = Schedule.of(graph.nodes, frozenset({graph.result}))
    executor = Executor(graph, schedule, state)
    inputs = torch.randn(5, *shape)
    before = inputs.clone()
    with torch.no_grad():
        expected = graph.run(schedule, {graph.placeholder: inputs}, state)[graph.result]
    for _ in range(2):
        found = executor.run({graph.placeholder: inputs})
        assert set(found) == {graph.result}
        assert torch.equal(found[graph.result], expected)
        assert not found[graph.result].requires_grad
    assert torch.equal(inputs, before)


def test_hooks_still_run() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    module[1].register_forward_hook(lambda *_: torch.full((1, 2), 7.0))
    graph = ModuleGraph(module)
    schedule = Schedule.of(graph.nodes, frozenset({graph.result}))
    executor = Executor(graph, schedule, dict(module.named_parameters()))
    assert executor.run({graph.placeholder: torch.ones(1, 2)})[graph.result].tolist() == [[7, 7]]
