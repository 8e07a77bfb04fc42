"""A pruned network that :func:`gradlab.variational.export.export` made smaller, and its file.

It consists of a description, which is JSON, and tensors; a safetensors file holds just these, with
a SHA-256. Three formats predict the same, bit for bit:

- ``masked``: all weights of the network, with zeros where they are removed;
- ``dense``: the rows and columns of the units that are left;
- ``csr``: of these rows the weights that are kept, and which inputs they belong to, in compressed
  sparse rows: for each row the number of its weights, then columns and values.

All are evaluated by :mod:`gradlab.variational.in_order` on the processor, which is what makes them
equal. For inputs that are finite: a removed zero is no longer there to make NaN of an infinity.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gradlab.evaluation.noise import compiled_problem

VERSION = 1
EXPORTED = "gradlab-exported"
"""The header's one key (safetensors writes several in any order): description and SHA-256."""
# Examples at a time, whatever the format: what is computed for them stays in the processor's
# caches. Patches of images take far more room than features.
_TOGETHER = {"features": 128, "maps": 16}

Step = Callable[[Tensor], Tensor]


class Exported(nn.Module):
    """A pruned network, ready to predict.

    Args:
        description: ``format``, ``entry`` ("features" or "maps"), ``inputs`` (how many features or
            channels, or ``None`` for any), ``steps`` and, if they were given, ``facts``, as JSON.
        tensors: those that the steps name.

    Attributes:
        facts: what else is known of the network, such as the images that it was trained on.

    Raises:
        ValueError: they do not go together.
    """

    def __init__(self, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.description = dict(description)
        self.tensors = dict(tensors)
        try:
            if description["version"] != VERSION:
                raise ValueError(f"version {description['version']}, not {VERSION}")
            self._entry: str = description["entry"]
            self._together = _TOGETHER[self._entry]
            self._inputs: int | None = description["inputs"]
            self.facts: dict[str, Any] = dict(description.get("facts", {}))
            self._selected = self._selection()
            self._steps = [
                _step(facts, _of_step(tensors, number))
                for number, facts in enumerate(description["steps"])
            ]
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise ValueError(
                f"this is no description of an exported network ({type(error).__name__}: {error}): "
                "export it again."
            ) from None

    def forward(self, x: Tensor) -> Tensor:
        """Inputs as the network takes them, ``(B, …)`` float32, to ``(B, K)``.

        Raises:
            ValueError: inputs of another shape, type or device, or that are not finite.
        """
        self._check(x)
        return torch.cat([self._few(part) for part in torch.split(x.detach(), self._together)])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all.

        Raises:
            ValueError: it cannot be written.
        """
        place = Path(path)
        digest = _digest(self.description, self.tensors)
        header = json.dumps({"description": self.description, "sha256": digest})
        content = save(self.tensors, metadata={EXPORTED: header})
        partial_ = place.with_name(place.name + ".partial")
        try:
            partial_.write_bytes(content)
            os.replace(partial_, place)
        except OSError as error:
            partial_.unlink(missing_ok=True)
            raise ValueError(f"{place} cannot be written ({error.strerror or error}): choose "
                             "another place.") from None  # fmt: skip

    def _few(self, x: Tensor) -> Tensor:
        """Examples that are evaluated together, as ``(units, examples, …)``."""
        if self._entry == "features":
            x = x.flatten(1)
        x = x.transpose(0, 1)
        if self._selected is not None:
            x = x.index_select(0, self._selected)
        x = x.clone(memory_format=torch.contiguous_format)  # activations work in place
        for step in self._steps:
            x = step(x)
        return x.transpose(0, 1).contiguous()

    def _selection(self) -> Tensor | None:
        found = self.tensors.get("inputs")
        if found is None:
            return None
        if self._inputs is None or not _within(found.numpy(), self._inputs):
            raise ValueError("inputs that do not exist")
        return found.long()

    def _check(self, x: Tensor) -> None:
        if x.dtype != torch.float32 or x.device.type != "cpu":
            raise ValueError(f"inputs are {x.dtype} on {x.device}: an exported network takes "
                             "float32 on the processor.")  # fmt: skip
        features = self._entry == "features"
        number = x.shape[1:].numel() if features else x.shape[1] if x.ndim == 4 else None
        if x.ndim < 2 or not len(x) or number is None or self._inputs not in (None, number):
            size = self._inputs if self._inputs is not None else "any number of"
            what = f"({size} features)" if features else f"({size} channels, height, width)"
            raise ValueError(f"inputs have shape {tuple(x.shape)}: give at least one example of "
                             f"{what}.")  # fmt: skip
        if not all(bool(bound.isfinite()) for bound in x.aminmax()):
            raise ValueError("inputs hold NaN or infinity: removed weights would hide what the "
                             "whole network makes of it.")  # fmt: skip


def is_exported(path: str | Path) -> bool:
    """Whether a file says that it holds an exported network."""
    try:
        with safe_open(path, framework="pt") as file:
            return EXPORTED in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def load_exported(path: str | Path) -> Exported:
    """The network of a file that :meth:`Exported.save` wrote.

    Raises:
        ValueError: there is no such file, it is damaged, or of another kind.
    """
    place = Path(path)
    if not place.is_file():
        raise ValueError(f"there is no file {place}: check the path.")
    try:
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{place} is damaged or no safetensors file "
                         f"({str(error).rstrip('.')}): export it again.") from None  # fmt: skip
    if EXPORTED not in metadata:
        raise ValueError(f"{place} is no exported network: give a file that export(…) wrote.")
    try:
        header = json.loads(metadata[EXPORTED])
        sound = header["sha256"] == _digest(header["description"], tensors)
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise ValueError(f"{place} is damaged, for its content has another SHA-256 than it says: "
                         "export it again.")  # fmt: skip
    return Exported(header["description"], tensors)


def _digest(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(description).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _of_step(tensors: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    prefix = f"{number}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


@dataclass(frozen=True, eq=False)
class _Matrix:
    """The arguments of the kernel, and how many inputs it may read."""

    values: Any
    lengths: Any
    columns: Any
    column_starts: Any
    bias: Any
    inputs: int

    @classmethod
    def of(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> _Matrix:
        """From blocks ``[[rows, columns], …]``, one beside and below the other, or sparse rows."""
        if "blocks" in facts:
            rows, widths = (np.array(each, np.int64) for each in zip(*facts["blocks"], strict=True))
            lengths = np.repeat(widths, rows)
            column_starts = np.repeat(np.cumsum(widths) - widths, rows)
            inputs = int(widths.sum())
            columns = np.arange(inputs, dtype=np.int32)
        else:
            lengths = tensors["lengths"].numpy().astype(np.int64)
            column_starts = np.cumsum(lengths) - lengths
            inputs = int(facts["columns"])
            columns = tensors["columns"].numpy().astype(np.int32)
            if len(columns) != lengths.sum():
                raise ValueError("rows without columns")
        values = tensors["weight"].numpy()
        # + 0 turns −0 into 0
        bias = tensors["bias"].numpy() + np.float32(0) if "bias" in tensors else None
        bias = np.zeros(len(lengths), np.float32) if bias is None else bias
        # the kernel checks no index: what it may read is certain here
        sound = values.dtype == bias.dtype == np.float32 and values.ndim == bias.ndim == 1
        sound = sound and bool((lengths >= 0).all()) and len(values) == lengths.sum()
        if not sound or len(bias) != len(lengths) or not _within(columns, inputs):
            raise ValueError("weights of another shape")
        return cls(values, lengths, columns, column_starts, bias, inputs)

    def __call__(self, x: Tensor) -> Tensor:
        """``(inputs, examples)`` to ``(rows, examples)``."""
        if len(x) != self.inputs:
            raise ValueError(f"a layer takes {self.inputs} features, and inputs of this size make "
                             f"{len(x)}: give images as large as in training.")  # fmt: skip
        out = torch.empty(len(self.lengths), x.shape[1])
        _in_order().weighted_sums(
            self.values, self.lengths, self.columns, self.column_starts, self.bias,
            x.numpy(), out.numpy(),
        )  # fmt: skip
        return out


def _within(indices: Any, bound: int) -> bool:
    return not len(indices) or (int(indices.min()) >= 0 and int(indices.max()) < bound)


def _in_order() -> Any:
    """The compiled sums, which not every machine can have."""
    problem = compiled_problem()
    if problem is not None:
        raise RuntimeError(f"an exported network adds in compiled loops, and {problem}: predict "
                           "with the weights it was made from.")  # fmt: skip
    from gradlab.variational import in_order

    return in_order


def _step(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Step:
    """What a step of the description does to ``(units, examples, …)``."""
    options = {key: value for key, value in facts.items() if key != "kind"}
    match facts["kind"]:
        case "linear":
            return _Matrix.of(facts, tensors)
        case "conv2d":
            return partial(_convolution, matrix=_Matrix.of(facts, tensors), facts=facts)
        case "affine":
            return partial(_affine, scale=tensors["scale"], shift=tensors["shift"])
        case "relu" | "tanh" | "softplus" as name:
            return partial(_in_place, function=getattr(_in_order(), name), **options)
        case "max_pool":
            return partial(F.max_pool2d, **options)
        case "avg_pool":
            return partial(F.avg_pool2d, **options)
        case "flatten":
            return _flattened
        case "log_softmax":
            return partial(F.log_softmax, dim=0)
        case other:
            raise ValueError(f"unknown step {other!r}")


def _convolution(x: Tensor, matrix: _Matrix, facts: Mapping[str, Any]) -> Tensor:
    """Patches side by side, then one weighted sum for each: ``(C, B, H, W)`` to ``(O, B, …)``."""
    stride, dilation, mode = facts["stride"], facts["dilation"], facts["padding_mode"]
    if any(facts["padding"]):
        x = F.pad(x, facts["padding"], mode="constant" if mode == "zeros" else mode)
    reach = [each * (size - 1) + 1 for each, size in zip(dilation, facts["kernel"], strict=True)]
    height = (x.shape[2] - reach[0]) // stride[0] + 1
    width = (x.shape[3] - reach[1]) // stride[1] + 1
    if height < 1 or width < 1:
        raise ValueError("inputs are smaller than the kernel of a convolution: give images as "
                         "large as in training.")  # fmt: skip
    patches = [
        x[:, :, top :: stride[0], left :: stride[1]][:, :, :height, :width]
        for top in range(0, reach[0], dilation[0])
        for left in range(0, reach[1], dilation[1])
    ]
    out = matrix(torch.stack(patches, 1).reshape(len(x) * len(patches), -1))
    return out.reshape(-1, x.shape[1], height, width)


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    over = (-1, *[1] * (x.ndim - 1))
    return x * scale.reshape(over) + shift.reshape(over)


def _in_place(x: Tensor, function: Callable[..., None], **options: float) -> Tensor:
    x = x.contiguous()
    function(x.reshape(len(x), -1).numpy(), **options)
    return x


def _flattened(x: Tensor) -> Tensor:
    """``(C, B, H, W)`` to ``(C·H·W, B)``."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
