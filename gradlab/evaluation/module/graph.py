r"""A module's forward pass as a graph, cut where it begins to depend on chosen parameters.

``torch.fx`` traces the forward pass once, symbolically. Modules of ``torch.nn``, gradlab's ``sign``
and ``binarize`` and every ``torch.autograd.Function`` stay whole; the rest is traced through. What
does not depend on a chosen set of parameters (the *prefix*) can then be computed once, and the rest
(the *suffix*) as often as these parameters change.

In-place operations are turned into ordinary ones, so that what is kept stays what it was. Forward
passes whose Python code depends on values or shapes cannot be traced: :class:`Untraceable`.
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

import gradlab.binary

Environment = dict[Node, Any]
State = Mapping[str, Tensor]


class Untraceable(Exception):  # noqa: N818 - it is an answer, not an error
    """The forward pass is not a graph; the message says why in one line."""


@contextmanager
def intercepted_functions(handler: Callable[..., Any], outermost: bool = False) -> Iterator[None]:
    """Every ``Function.apply(*args)`` inside becomes ``handler(cls, apply, *args)``.

    Like tracing itself this changes a class of torch for as long as it lasts, in all threads.

    Args:
        handler: what to do instead; ``apply(*args)`` does what would have been done.
        outermost: before torch looks for transforms such as vmap, which then misses functions whose
            ``apply`` was looked up earlier (``own_sign = OwnSign.apply``); otherwise after it.
    """
    function: Any = torch.autograd.Function
    # the second in line is asked by the first one's apply, has none of its own, and passes on
    level: Any = function if outermost else function.__mro__[1]
    original = level.__dict__.get("apply")

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        bound = original.__get__(None, cls) if original else super(level, cls).apply
        return handler(cls, bound, *args, **kwargs)

    level.apply = classmethod(apply)
    try:
        yield
    finally:
        if original:
            level.apply = original
        else:
            del level.apply


def forward_of(cls: Any, apply: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The forward pass of an ``autograd.Function`` in plain operations, which vmap can batch.

    Functions that say themselves how they batch are left to do so.
    """
    base = torch.autograd.Function
    if cls.generate_vmap_rule or cls.vmap is not base.vmap:
        return apply(*args, **kwargs)
    if cls.setup_context is not base.setup_context:
        return cls.forward(*args, **kwargs)
    context: Any = torch.autograd.function.FunctionCtx()
    context.needs_input_grad = (False,) * len(args)
    return cls.forward(context, *args, **kwargs)


@dataclass(frozen=True)
class Applied:
    """The forward pass of an ``autograd.Function`` as a node's target: see :func:`forward_of`."""

    function: Any

    @property
    def __name__(self) -> str:
        return str(self.function.__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass alone."""
        return forward_of(self.function, self.function.apply, *args, **kwargs)


class _Tracer(torch.fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        # everything callable and public in gradlab.binary stays whole
        super().__init__(autowrap_modules=(gradlab.binary,))
        users = ("activations", "surrogates", "stochastic_rounding")
        modules: list[ModuleType] = [sys.modules[f"gradlab.binary.{name}"] for name in users]
        self._autowrap_search += modules

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor | torch.fx.Proxy | nn.Module | tuple | list | dict | slice):
            return super().create_arg(a)
        try:
            return super().create_arg(a)
        except NotImplementedError:
            return a  # nodes are interpreted, never printed as code: any object will do

    def applied(self, cls: type, apply: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        if any(isinstance(leaf, torch.fx.Proxy) for leaf in leaves):
            return self.create_proxy("call_function", Applied(cls), args, kwargs)
        return apply(*args, **kwargs)


@dataclass(frozen=True)
class Schedule:
    """Nodes in order, each with the nodes whose values nobody needs after it."""

    nodes: tuple[Node, ...]
    done: tuple[tuple[Node, ...], ...]

    @classmethod
    def of(cls, nodes: Sequence[Node], keep: frozenset[Node]) -> Schedule:
        """Forget every value after its last use among ``nodes``, but for those in ``keep``."""
        last: dict[Node, int] = {}
        for index, node in enumerate(nodes):
            for used in (node, *node.all_input_nodes):
                last[used] = index
        done: list[list[Node]] = [[] for _ in nodes]
        for used, index in last.items():
            if used not in keep:
                done[index].append(used)
        return cls(tuple(nodes), tuple(tuple(each) for each in done))


@dataclass(frozen=True)
class Split:
    """A graph cut in two.

    Attributes:
        prefix: what is computed once.
        suffix: what depends on the chosen parameters or nodes.
        frontier: nodes of the prefix that the suffix, or the result, needs.
    """

    prefix: Schedule
    suffix: Schedule
    frontier: tuple[Node, ...]


class ModuleGraph:
    """The forward pass of a module as a graph of operations.

    Args:
        module: left alone by calls of this class; the tracing itself runs its ``forward``, so give
            a copy if that changes attributes.

    Attributes:
        nodes: all nodes in order of execution, the output node left out.
        result: the node whose value the module returns.

    Raises:
        Untraceable: the forward pass is not a graph.

    >>> graph = ModuleGraph(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
    >>> [node.name for node in graph.nodes]
    ['input_1', '_0', '_1', '_2']
    >>> split = graph.split(frozenset({"2.weight"}))
    >>> [node.name for node in split.suffix.nodes], [node.name for node in split.frontier]
    (['_2'], ['_1'])
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        graph = _trace(module)
        self.placeholder, *_ = [node for node in graph.nodes if node.op == "placeholder"]
        output = next(iter(reversed(graph.nodes)))
        if not isinstance(output.args[0], Node):
            raise Untraceable("it returns something else than one tensor")
        self.result: Node = output.args[0]
        self.nodes: list[Node] = [node for node in graph.nodes if node.op != "output"]
        self._graph = graph  # owns the nodes
        self._state_names = {id(t): name for name, t in _named_state(module, duplicates=False)}
        self._submodules = {
            node.target: module.get_submodule(str(node.target))
            for node in self.nodes
            if node.op == "call_module"
        }
        self._local = {
            target: {local: self._state_names[id(t)] for local, t in _named_state(submodule)}
            for target, submodule in self._submodules.items()
        }
        for node in list(self.nodes):
            self._make_functional(node)

    def submodule(self, node: Node) -> nn.Module | None:
        """The module that a node calls, if it does."""
        return self._submodules.get(node.target) if node.op == "call_module" else None

    def local_names(self, node: Node) -> Mapping[str, str]:
        """Of a node that calls a module: its own names for parameters and buffers, and ours."""
        return self._local.get(node.target, {}) if node.op == "call_module" else {}

    def reads(self, node: Node) -> frozenset[str]:
        """Names of the parameters and buffers that a node reads itself."""
        if node.op == "call_module":
            return frozenset(self._local[node.target].values())
        if node.op == "get_attr":
            name = self._state_names.get(id(_attribute(self.module, str(node.target))))
            return frozenset() if name is None else frozenset({name})
        return frozenset()

    def split(
        self, names: frozenset[str] = frozenset(), cut: frozenset[Node] = frozenset()
    ) -> Split:
        """Cut where values begin to depend on parameters ``names``, or behind the nodes ``cut``.

        The nodes of ``cut`` themselves belong to neither side: whoever evaluates the suffix
        provides their values.
        """
        varying: set[Node] = set()
        for node in self.nodes:
            inputs = node.all_input_nodes
            if node not in cut and (
                self.reads(node) & names or any(each in varying or each in cut for each in inputs)
            ):
                varying.add(node)
        suffix = [node for node in self.needed({self.result}, cut) if node in varying]
        used = {each for node in suffix for each in node.all_input_nodes} | {self.result}
        frontier = tuple(n for n in self.nodes if n in used and n not in varying and n not in cut)
        prefix = self.needed(set(frontier))
        return Split(
            Schedule.of(prefix, frozenset(frontier)),
            Schedule.of(suffix, frozenset({self.result})),
            frontier,
        )

    def run(self, schedule: Schedule, environment: Environment, state: State) -> Environment:
        """Evaluate the nodes of a schedule.

        Args:
            schedule: what to evaluate.
            environment: values of nodes from outside the schedule; not changed.
            state: parameters and buffers by name.

        Returns:
            The values that the schedule keeps, with what the environment held of them.
        """
        values = dict(environment)
        for node, done in zip(schedule.nodes, schedule.done, strict=True):
            if node not in values:
                values[node] = self.evaluate(node, values, state)
            for each in done:
                values.pop(each, None)
        return values

    def evaluate(self, node: Node, values: Mapping[Node, Any], state: State) -> Any:
        """The value of one node whose inputs have values."""
        if node.op == "placeholder":
            return node.args[0] if node.args else None
        if node.op == "get_attr":
            found = _attribute(self.module, str(node.target))
            name = self._state_names.get(id(found))
            return found if name is None else state[name]
        arguments: Any = map_arg((node.args, node.kwargs), lambda each: values[each])
        args, kwargs = arguments
        if node.meta.get("clone"):
            args = (args[0].clone(), *args[1:])
        if node.op == "call_module":
            local = {key: state[name] for key, name in self._local[node.target].items()}
            return torch.func.functional_call(self._submodules[node.target], local, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def needed(self, wanted: set[Node], given: frozenset[Node] = frozenset()) -> list[Node]:
        """The nodes that ``wanted`` depend on, themselves included, in order.

        What only nodes ``given`` depend on is left out.
        """
        needed = set(wanted)
        for node in reversed(self.nodes):
            if node in needed and node not in given:
                needed.update(node.all_input_nodes)
        return [node for node in self.nodes if node in needed]

    def _make_functional(self, node: Node) -> None:
        """Let an in-place operation make a new tensor, and later users read that one."""
        if not _is_in_place(node, self.submodule(node)):
            return
        changed = node.args[0] if node.args else None
        if not isinstance(changed, Node):
            raise Untraceable(f"{node.name} changes a tensor in place in an unusual way")
        order = {each: index for index, each in enumerate(self.nodes)}
        for user in list(changed.users):
            if order.get(user, len(order)) > order[node]:
                user.replace_input_with(changed, node)
        if self.result is changed:
            self.result = node
        plain = str(node.target).rstrip("_")
        if node.op == "call_method" and hasattr(Tensor, plain) and plain not in ("copy", "fill"):
            node.target = plain
        elif node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
            node.target = _IN_PLACE_OPERATORS[node.target]
        else:
            node.meta["clone"] = True


def _trace(module: nn.Module) -> torch.fx.Graph:
    signature = inspect.signature(type(module).forward)
    arguments = list(signature.parameters.values())[1:]
    if not arguments or any(a.kind in (a.VAR_POSITIONAL, a.VAR_KEYWORD) for a in arguments):
        raise Untraceable("its forward takes *args or **kwargs")
    if module._forward_hooks or module._forward_pre_hooks:
        raise Untraceable("it has forward hooks")
    tracer = _Tracer()
    fixed = {a.name: a.default for a in arguments[1:] if a.default is not inspect.Parameter.empty}
    try:
        with intercepted_functions(tracer.applied):
            return tracer.trace(module, concrete_args=fixed or None)
    except Exception as error:  # the forward pass is the user's: it may raise anything
        raise Untraceable(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."


def _named_state(module: nn.Module, duplicates: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name; shared ones under every name, or under their first."""
    yield from module.named_parameters(remove_duplicate=not duplicates)
    yield from module.named_buffers(remove_duplicate=not duplicates)


def _attribute(module: nn.Module, target: str) -> Any:
    return operator.attrgetter(target)(module)


_IN_PLACE_OPERATORS: dict[Any, Any] = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "matmul", "and_", "or_", "xor")
    if hasattr(operator, f"i{name}")
}


def _is_in_place(node: Node, submodule: nn.Module | None) -> bool:
    if node.op == "call_module":
        return bool(getattr(submodule, "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).startswith("__")
    if node.op != "call_function":
        return False
    if node.target is operator.setitem or node.kwargs.get("out") is not None:
        raise Untraceable(f"{node.name} writes into a tensor")
    if node.target in _IN_PLACE_OPERATORS:
        return True
    name = getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.startswith("__") and name not in ("and_", "or_", "not_"):
        return True
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return bool(node.kwargs.get("inplace", False))
    return bool(bound.arguments.get("inplace", False))
