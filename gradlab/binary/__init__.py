"""Binarization: sign, its surrogate derivatives, k-bit activations, stochastic rounding."""

from gradlab.binary import activations, stochastic_rounding, surrogates
from gradlab.binary.sign import sign
from gradlab.binary.straight_through import straight_through
from gradlab.binary.surrogates import binarize

__all__ = [
    "activations",
    "binarize",
    "sign",
    "stochastic_rounding",
    "straight_through",
    "surrogates",
]
