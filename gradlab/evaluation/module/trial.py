"""What a module turns out to be on a few examples: deterministic, per-example, how large."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradlab.evaluation.module.footprint import Footprint, Needs, line
from gradlab.evaluation.module.graph import one_line
from gradlab.evaluation.module.program import Prepared, Program
from gradlab.evaluation.population import Params

# Examples on which a module is tried out.
_FEW = 4


def check_arguments(model: object, inputs: object, targets: object, memory_bytes: object) -> None:
    """Refuse what no module could be evaluated on, in one sentence."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}: give a torch.nn.Module.")
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        raise ValueError("inputs and targets are not both tensors: convert them first.")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError("the module has no parameters: there is nothing to vary.")
    if inputs.dim() == 0 or targets.dim() == 0 or not len(inputs):
        raise ValueError("there are no examples: give at least one, along the first dimension.")
    if len(inputs) != len(targets):
        raise ValueError(
            f"inputs have {len(inputs)} examples and targets {len(targets)}: give equally many."
        )
    devices = {tensor.device for tensor in (inputs, targets, *parameters.values())}
    if len(devices) > 1:
        found = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"module, inputs and targets are on {found}: move all to one device.")
    if isinstance(memory_bytes, bool) or not isinstance(memory_bytes, int) or memory_bytes < 1:
        raise ValueError(f"memory_bytes is {memory_bytes!r}: give a whole number of at least 1.")


def try_out(program: Program, inputs: Tensor, targets: Tensor) -> int:
    """Run a module on a few examples, twice, and its graph beside it.

    A graph that gives other outputs than the module is dropped.

    Returns:
        How many examples were taken: all, where the module insists on their number.

    Raises:
        ValueError: the module fails, draws random numbers, changes from call to call, or its
            outputs or losses do not have a row per example.
    """
    devices = [inputs.device] if inputs.is_cuda else []
    # a module that draws must not move the user's random numbers on
    with torch.random.fork_rng(devices), torch.no_grad():
        few, first = _first_outputs(program, inputs)
        with Footprint() as footprint:
            second = program.whole(inputs[:few], program.params)
        if footprint.random:
            raise ValueError(
                f"the module draws random numbers in its forward pass ({footprint.random[0]}), so "
                "that its losses do not compare: call model.eval(), or take the random part out."
            )
        if differ(first, second, 1e-5):
            raise ValueError(
                "two forward passes of the module on the same inputs differ: call model.eval(), or "
                "take out what changes from call to call."
            )
        if program.graph is not None:
            try:
                same = not differ(first, program.forward(inputs[:few], program.params), 0.0)
            except Exception as error:  # the operations are the user's: they may raise anything
                program.forget_graph(one_line(error))
            else:
                if not same:
                    program.forget_graph("its traced graph gives other outputs")
        try:
            losses = program.loss(first, targets[:few])
        except (RuntimeError, IndexError) as error:
            raise ValueError(
                f"the loss fails on outputs {tuple(first.shape)} and targets "
                f"{tuple(targets[:few].shape)} ({one_line(error)}): choose another loss or targets."
            ) from error
        if losses.shape != (few,):
            raise ValueError(
                f"the loss of {few} examples has shape {tuple(losses.shape)}: return one number "
                "per example."
            )
    return few


def _first_outputs(program: Program, inputs: Tensor) -> tuple[int, Tensor]:
    few = min(len(inputs), _FEW)
    try:
        outputs = program.whole(inputs[:few], program.params)
    except Exception as error:  # it may insist on its number of examples
        few = len(inputs)
        try:
            outputs = program.whole(inputs, program.params)
        except Exception:
            raise ValueError(
                f"the module fails on these inputs ({one_line(error)}): give inputs (B, ...) that "
                "model(inputs) takes."
            ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != few:
        raise ValueError(
            "the module returns something else than one tensor with a row per example: wrap it in "
            "a module that does."
        )
    return few, outputs


def works(program: Program, inputs: Tensor, targets: Tensor) -> bool:
    """Whether a forward pass and its loss get through."""
    try:
        program.loss(program.forward(inputs, program.params), targets)
    except Exception:  # a module that insists on its own precision may raise anything
        return False
    return True


def couples_examples(program: Program, inputs: Tensor) -> bool:
    """Whether an example's outputs depend on the others in its batch.

    BatchNorm that normalizes by the batch is known to; any other module is tried out on four
    examples, together and two apart.
    """
    for module in program.module.modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            return True
    few = min(_FEW, len(inputs))
    if few == 1:
        return False
    try:
        together = program.forward(inputs[:few], program.params)
        apart = program.forward(inputs[: few // 2], program.params)
    except Exception:  # it insists on its number of examples
        return True
    return differ(together[: few // 2], apart, 1e-8 if program.wide else 1e-3)


def measure(
    program: Program,
    names: frozenset[str],
    inputs: Tensor,
    targets: Tensor,
    memory: int,
    whole_batch: bool,
) -> Needs:
    """What members that vary parameters ``names`` hold, from a few examples.

    Between two numbers of examples lies the slope. At small ones the peak may lie elsewhere than at
    large ones, so they are as large as a quarter of ``memory`` and 64 examples allow. With
    ``whole_batch`` it takes all of them, because the module does.
    """

    def trial(count: int, batched: bool) -> tuple[int, int, int]:
        return _trial(program, names, (inputs[:count], targets[:count]), batched)

    few = len(inputs) if whole_batch else min(2, len(inputs))
    batchable, reason = True, ""
    try:
        seen = [(few, trial(few, True))]
    except Exception as error:  # vmap may meet anything in a user's module
        batchable, reason = False, one_line(error)
        seen = [(few, trial(few, False))]
    if not whole_batch and len(inputs) > 2:
        held = max(seen[0][1][0], seen[0][1][2], 1)
        more = min(max(few * memory // (4 * held), 3), 64, len(inputs))
        counts = (max(few, more // 2), more)
        seen = [(count, trial(count, batchable)) for count in counts]
    block, frontier, peak = (
        line([(count, found[index]) for count, found in seen]) for index in range(3)
    )
    size = 2 if batchable else 1
    held = sum(program.params[name].numel() * program.itemsize(name) for name in names)
    # three times: the member itself, and the noise and the sum that it may be made of
    member = 3 * held + -(-peak[0] // size)
    return Needs(block[1], frontier[1], member, -(-peak[1] // size), batchable, reason)


def _trial(
    program: Program, names: frozenset[str], examples: tuple[Tensor, Tensor], batched: bool
) -> tuple[int, int, int]:
    """Bytes of the prefix at its peak, kept of it, and of the losses of one or two members."""
    with Footprint() as block:
        prepared: Prepared = program.prepare(*examples, names, program.params)
    values = [value for value in prepared.values.values() if isinstance(value, Tensor)]
    storages = {s.data_ptr(): s.nbytes() for s in (v.untyped_storage() for v in values)}
    size = 2 if batched else 1
    members: Params = {name: torch.stack([program.params[name]] * size) for name in names}
    with Footprint() as whole:
        program.losses(prepared, members, batched)
    return block.peak, sum(storages.values()), whole.peak


def differ(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by more than ``tolerance`` of the largest entry; NaN equals NaN.

    >>> differ(torch.ones(2), torch.ones(2) + 1e-7, 1e-5), differ(torch.ones(2), torch.ones(3), 1.0)
    (False, True)
    """
    if first.shape != second.shape:
        return True
    largest = float(first.abs().nan_to_num(0.0, 0.0).max()) if first.numel() else 0.0
    return not torch.allclose(
        first, second, rtol=tolerance, atol=tolerance * largest, equal_nan=True
    )
