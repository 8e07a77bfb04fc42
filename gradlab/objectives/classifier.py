"""The cross-entropy of any registered network on a batch of real images.

The objective ``network`` names the options of binarized networks one by one, so that each is an
axis and a column; this one takes whatever the model takes, and its parameters are by default the
weights of all linear layers and convolutions, binarized or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradlab import data
from gradlab.objectives import network_state as states
from gradlab.objectives.base import check_device, check_seed
from gradlab.objectives.network import Network


class Classifier(Network):
    """Mean cross-entropy of a network on one batch.

    Args:
        dataset: one of :func:`gradlab.data.names`; its training images are used.
        model: name of a model, or a table with its ``name`` and options.
        layers: as the objective ``network`` has it; all weights with more than one dimension if
            left out.
        batch_size: number of images.
        seed: fixes a fresh network's weights.
        batch: which batch.
        device: where everything lives.
        weights: a safetensors file of a trained network; otherwise a fresh one.

    Raises:
        ValueError: an unknown data set, model, option or layer, or a value out of range; when first
            evaluated, a data set or weights file that is missing or damaged.

    >>> mlp = {"name": "fully_connected", "hidden": [20]}
    >>> Classifier("mnist", mlp, batch_size=16).layer_names
    ('classifier.0.weight', 'classifier.2.weight')
    """

    def __init__(
        self,
        dataset: str = "mnist",
        model: str | Mapping[str, Any] = "fully_connected",
        layers: Sequence[int | str] | None = None,
        batch_size: int = 100,
        seed: int = 0,
        batch: int = 0,
        device: str = "cpu",
        weights: str | None = None,
    ) -> None:
        entry = named(model)
        self.architecture = states.architecture(
            dataset, entry["name"], {key: v for key, v in entry.items() if key != "name"}
        )
        matrices = tuple(n for n, shape in self.architecture.shapes.items() if len(shape) > 1)
        self.layer_names = matrices if layers is None else states.chosen_layers(
            self.architecture, layers
        )  # fmt: skip
        states.check_batch_size(dict(data.find(dataset).sizes)["train"], batch_size)
        check_seed("seed", seed)
        check_seed("batch", batch)
        self.coordinates = None
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.batch = batch
        self.device = check_device(device)
        self.weights = weights


def named(given: str | Mapping[str, Any], what: str = "model") -> dict[str, Any]:
    """Something that is given by its name, or by a table with its name and options, as a table.

    Args:
        given: which.
        what: what it is, for the complaint.

    Raises:
        ValueError: it has no name.

    >>> named("lenet"), named({"name": "lenet", "width": 4})
    ({'name': 'lenet'}, {'name': 'lenet', 'width': 4})
    """
    entry = {"name": given} if isinstance(given, str) else dict(given)
    if not isinstance(entry.get("name"), str):
        raise ValueError(f"{what} is {given!r}: give a name, or a table with a name and options, "
                         'such as {name = "…", option = 1}.')  # fmt: skip
    return entry
