"""A walk gives what the graph gives, whatever is changed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab import models
from gradlab.binary import sign
from gradlab.evaluation.module import ModuleEvaluator, following, module_differences
from gradlab.evaluation.module.graph import Environment, ModuleGraph, State
from gradlab.evaluation.module.walk import Walk


class Everything(nn.Module):
    """All that can be walked behind a convolution, and a mean and a linear layer that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.bare = nn.BatchNorm2d(6, affine=False)
        self.second = nn.Conv2d(6, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1))
        self.third = nn.Conv2d(6, 40, 1, stride=2, bias=False)
        self.same = nn.Identity()
        self.pool = nn.AvgPool2d(2)
        self.relu = nn.ReLU()
        self.head = nn.Linear(92, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.norm(x)
        z = self.second(sign(F.pad(y, (-1, 2, 1, -2)))) + F.pad(self.bare(x), (0, -4, 0, -1))
        z = self.relu(self.same(z)) + z
        w = self.third(sign(F.pad(z, (0, 1, 0, 0))))
        pooled = torch.cat((self.pool(x), F.avg_pool2d(F.relu(y), 2)), dim=1)
        joined = torch.cat((F.pad(pooled, (0, -1, 0, 0)), w, w), dim=1)
        return self.head(joined.mean(dim=(2, 3)))


def walked(
    module: nn.Module, inputs: Tensor, start: str
) -> tuple[ModuleGraph, Walk, Environment, State]:
    graph = ModuleGraph(module)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    exit_node = next(node for node in graph.nodes if node.name == start)
    suffix = graph.split(cut=frozenset({exit_node})).suffix
    values: Environment = {graph.placeholder: inputs}
    for node in graph.nodes:
        if node not in values:
            values[node] = graph.evaluate(node, values, state)
    return graph, Walk(graph, suffix, [exit_node], [], values, state), values, state


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@torch.no_grad()
def test_outputs_are_those_of_the_graph(dtype: torch.dtype, threads: int) -> None:
    torch.manual_seed(0)
    module = Everything().to(dtype)
    module(torch.randn(20, 2, 10, 10, dtype=dtype))  # statistics for BatchNorm
    graph, walk, values, state = walked(
        module.eval(), torch.randn(3, 2, 10, 10, dtype=dtype), "first"
    )
    assert len(walk.nodes) > 15
    assert graph.result not in walk.nodes
    assert walk.remember(values)
    start = next(node for node in graph.nodes if node.name == "first")
    changed = values[start].repeat(2, 1, 1, 1) + 0.3 * torch.randn(6, 6, 10, 10, dtype=dtype)
    walk.follow({start: changed})
    copies, channels = torch.tensor([0, 4, 2, 5, 1]), torch.tensor([1, 5, 0, 3, -1])
    examples = copies % 3
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = walk.run(copies, channels, examples)
    finally:
        torch.set_num_threads(before)
    assert set(found) == set(walk.outputs)
    assert 0 < walk.share < 1
    for index, (copy, channel, example) in enumerate(zip(copies, channels, examples, strict=True)):
        moved = values[start][example].clone()
        if channel >= 0:
            moved[channel] = changed[copy, channel]
        environment = {start: moved[None]}
        suffix = graph.split(cut=frozenset({start})).suffix
        for node in suffix.nodes:
            environment[node] = graph.evaluate(node, environment, state)
        for node, value in found.items():
            torch.testing.assert_close(value[index], environment[node][0])


@torch.no_grad()
def test_real_activations_are_not_worth_a_walk() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(48, 2)
    )
    _, walk, _, _ = walked(net, torch.randn(3, 2, 8, 8), "_0")
    assert not walk.pays()


@torch.no_grad()
def test_infinite_activations_are_not_walked_from() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3))
    inputs = torch.randn(3, 2, 8, 8)
    inputs[0, 0, 4, 4] = torch.inf
    _, walk, values, _ = walked(module, inputs, "_0")
    assert not walk.remember(values)


@pytest.mark.parametrize("block", ["xnor", "bireal", "bmxnet"])
@pytest.mark.parametrize("weight", ["real", "binary"])
def test_networks_are_walked(block: str, weight: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = models.create("xnor_resnet18", width=2, block=block, weight=weight).double()
    images, labels = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.arange(6)
    with torch.no_grad():
        network.train()(images)
    evaluator = ModuleEvaluator(network.eval(), images, labels)
    name = network.layers()[0]
    wanted = {name: torch.tensor([0, 7, 20, 35])}
    runs = []
    run = Walk.run
    monkeypatch.setattr(Walk, "run", lambda *args: runs.append(1) or run(*args))
    walks = module_differences(evaluator, evaluator.params, 0.1, [name], coordinates=wanted)[name]
    assert len(runs) > 1
    monkeypatch.setattr(following, "_MOST_CHANGED", -1.0)  # walk once, then no more
    runs.clear()
    once = module_differences(evaluator, evaluator.params, 0.1, [name], coordinates=wanted)[name]
    assert len(runs) == 2  # of the block, and of its first copies
    monkeypatch.setattr(Walk, "pays", lambda self: False)
    never = module_differences(evaluator, evaluator.params, 0.1, [name], coordinates=wanted)[name]
    assert never.abs().max() > 0
    torch.testing.assert_close(walks, never, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(once, never, rtol=1e-9, atol=1e-12)
