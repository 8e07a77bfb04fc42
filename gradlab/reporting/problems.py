"""The problem columns of a table: what they are called in words, and in which order they come.

A problem is what the estimators are tried on: a teacher-student network of some num_dim, a test
function, or a network on real images (objective "network"), which has no num_dim but a data set,
a model, a width, chosen layers and a student in some state of its training.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd

from gradlab.reporting.wording import count, word

NETWORK = (
    "dataset", "model", "width", "scale", "hidden", "filters", "depth", "block", "weight",
    "scaling", "activation", "network_surrogate", "network_weight_surrogate", "weights",
    "batch_size", "layers", "coordinates", "student", "step_layers",
)  # fmt: skip
"""Problem columns of networks, in the order in which a condition names them."""
OF_SOME_MODELS = ("scale", "hidden", "filters")
"""Options that only some models have: of one without them there is nothing to say."""
PROBLEM = (
    "objective", "function", "depth", "activation", "weight", "gain", "batch_size", "student",
    "step_layers",
)  # fmt: skip
"""Problem columns of everything else."""
STUDENTS = ("fresh", "early", "mid", "converged")
STEP_LAYERS = ("all", "hidden", "output")
ACTIVATIONS = ("binary", "ternary", "2bit", "full")

DATASETS = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST", "uc_merced": "UC Merced",
}  # fmt: skip
MODELS = {
    "xnor_resnet18": "XNOR-ResNet18", "xnor_mlp": "XNOR-MLP", "lenet": "LeNet",
    "lenet5_caffe": "LeNet-5-Caffe", "fully_connected": "fully connected network",
    "conv_net": "ConvNet", "vgg": "VGG", "alexnet": "AlexNet", "three_conv_three_fc": "3conv3fc",
}  # fmt: skip
BLOCKS = {"xnor": "XNOR blocks", "bireal": "Bi-Real blocks", "bmxnet": "BMXNet blocks"}
STATES = {"early": "early in training", "mid": "mid-training"}
NOISY_LAYERS = {
    "all": "noise on all layers", "linear": "noise on linear layers",
    "conv": "noise on convolutions", "auto": "noise on each method's own layers",
}  # fmt: skip
LABELLED = {"yes": "shuffled labels", "no": "true labels"}
MOVED = {"all": "all layers step", "hidden": "hidden layers step", "output": "output layer steps"}
FORMS = {
    "activation": "{} activations", "weight": "{} weights", "batch_size": "batches of {}",
    "objective": "{}", "function": "{}", "scaling": "{} scaling",
    "epochs": "{} epochs", "train_examples": "{} training images", "learning_rate": "lr {}",
    "evaluation_examples": "{} evaluated images",
    "kl_weight": "KL weight {}", "samples": "{} draws a step",
    "pretrain_epochs": "{} epochs without noise first",
    "network_surrogate": "trained with {}", "network_weight_surrogate": "weights trained with {}",
}  # fmt: skip


def is_network(frame: pd.DataFrame) -> bool:
    """Whether the rows are of networks on real images.

    >>> is_network(pd.DataFrame({"dataset": ["cifar10"]})), is_network(pd.DataFrame({"a": [1]}))
    (True, False)
    """
    return "dataset" in frame and bool(frame["dataset"].notna().any())


def problem_columns(frame: pd.DataFrame) -> tuple[str, ...]:
    """The columns of this table that say what the problem is, ``num_dim`` apart."""
    return ("objective", "function", *NETWORK) if is_network(frame) else PROBLEM


def phrase(column: str, value: Any, network: bool = False) -> str:
    """A condition in the words of the field.

    Args:
        column: which problem column or setting.
        value: its value.
        network: say of a student only how far it is: there is no teacher.

    >>> phrase("student", "fresh"), phrase("activation", "binary"), phrase("normalize", "global")
    ('fresh student', 'binary activations', 'normalize global')
    >>> phrase("student", "converged (500 steps, 1000 examples)")
    'converged student (500 steps of 1000 examples)'
    >>> phrase("student", "mid", network=True), phrase("layers", "layer 7", network=True)
    ('mid-training', 'layer 7')
    >>> phrase("hidden", "[300, 100]"), phrase("random_labels", True), phrase("scale", 1.5)
    ('hidden 300-100', 'shuffled labels', 'scale 1.5')
    """
    words = word(value)
    if column == "student":
        state, _, how = words.partition(" ")
        who = STATES.get(state, state) if network else f"{state} student"
        how = how if network else how.replace(",", " of")
        return f"{who} {how}".rstrip()
    if column == "layers":
        return layers_words(value)
    if column == "coordinates":
        return "every weight" if words == "–" else f"{count(value, 'coordinate')} of each layer"
    if column in ("hidden", "filters"):
        return f"{column} {'-'.join(re.findall(r'[0-9]+', words)) or 'default'}"
    named = {"step_layers": MOVED, "dataset": DATASETS, "model": MODELS, "block": BLOCKS,
             "convert": NOISY_LAYERS, "random_labels": LABELLED}  # fmt: skip
    if column in named and words in named[column]:
        return named[column][words]
    if column == "weights":
        return "fresh weights" if words == "–" else f"weights of {words}"
    default = f"{words} step" if column == "step_layers" else column.replace("_", " ") + " {}"
    return FORMS.get(column, default).format("default" if words == "–" else words)


def layers_words(value: Any) -> str:
    """Which layers are looked at, in words.

    >>> layers_words("layer -2"), layers_words("layers 0 and cells.7.first.convolution.weight")
    ('layer −2', 'layers 0 and cells.7.first')
    >>> layers_words(None), layers_words(0)
    ('all layers', 'layer 0')
    """
    words = word(value)
    if words in ("–", "all"):
        return "all layers"
    if re.fullmatch(r"-?\d+", words):
        words = f"layer {words}"
    return re.sub(r"(?<!\w)-(?=\d)", "−", short_name(words))


def short_name(layer: str) -> str:
    """A parameter's name without what all of them share.

    >>> short_name("cells.2.first.even.weight"), short_name("hidden.0.linear.weight")
    ('cells.2.first.even', 'hidden.0')
    """
    return re.sub(r"\.(convolution|linear)\b|\.weight\b", "", str(layer))


def position(column: str, value: Any) -> tuple[float, str]:
    """Where a value comes among those of its column: students by training, layers by depth.

    Values that have no order of their own come last, equal to each other.

    >>> layers = ["layer -2", "last layer", "all", "layers 7 and 9", "first layer", "layer 7"]
    >>> sorted(layers, key=lambda value: position("layers", value))
    ['first layer', 'layer 7', 'layers 7 and 9', 'layer -2', 'last layer', 'all']
    >>> sorted(["converged (9 epochs)", "mid", "fresh"], key=lambda v: position("student", v))
    ['fresh', 'mid', 'converged (9 epochs)']
    """
    orders = {"student": STUDENTS, "step_layers": STEP_LAYERS, "activation": ACTIVATIONS}
    words = str(value).partition(" ")[0] if column == "student" else str(value)
    if column in orders:
        order = orders[column]
        return float(order.index(words) if words in order else len(order)), ""
    if column == "layers":
        return _depth(value)
    number = pd.to_numeric(value, errors="coerce")
    return (math.inf if pd.isna(number) else float(number)), ""


def _depth(value: Any) -> tuple[float, str]:
    """Those counted from the input, names, those counted from the end, all."""
    words = word(value)
    if words in ("–", "all"):
        return math.inf, ""
    named = {"first layer": "layer 0", "last layer": "layer -1"}.get(words, words)
    number = re.match(r"(?:layers? )?(-?\d+)\b", named)
    if number is None:
        # Names sort by the numbers in them: cells.10 after cells.9.
        return 1e6, re.sub(r"\d+", lambda digits: digits[0].zfill(6), named)
    place = int(number[1])
    return float(place if place >= 0 else 2e6 + place), named
