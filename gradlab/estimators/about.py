"""What each estimator is unbiased for and what it costs, in a line for lists and docs.

The smoothed loss is E f(μ + σε), ε ~ N(0, I); d is the number of coordinates, P a population. The
modules' docstrings have the derivations, the sources and the variances.
"""

from __future__ import annotations

from typing import NamedTuple


class About(NamedTuple):
    """One line on an estimator.

    Attributes:
        unbiased_for: what the estimate's expectation is the gradient of; "nothing" where it is
            that of nothing.
        cost: of one estimate, in forward (and backward) passes over the batch.
    """

    unbiased_for: str
    cost: str


_SMOOTHED = "the smoothed loss"
_SIGNS = "the smoothed loss (binary weights)"

ABOUT = {
    "arm": About(_SIGNS, "P"),
    "cdg": About("the loss averaged over ±ε of one coordinate at a time, exactly", "2d"),
    "disarm": About(_SIGNS + ", with at most ARM's variance", "P"),
    "forward_gradient": About("what the surrogate's backpropagation gives", "K + 1"),
    "greedy_discrete": About("nothing: a direction in which single moves lower the loss",
                             "2·levels·d per round"),
    "guided": About("the loss smoothed along surrogate gradients (form=unbiased); scaled by Σ "
                    "otherwise", "P, and one forward and backward per surrogate"),
    "gumbel_softmax": About("the loss of relaxed weights; behind sign activations nothing",
                            "1 and 1 backward per sample"),
    "local_expectation": About(_SIGNS, "1 + d per sample"),
    "low_rank_nes": About("linear and quadratic losses", "P"),
    "moment_nes": About(_SMOOTHED + ", with less noise than nes_local", "about 3, and half as many "
                        "backward"),
    "moment_propagation": About("nearly the smoothed loss, without noise; exactly with "
                                "one hidden layer", "2 to 3, and as many backward; a module of K "
                                "outputs 4 + 2K"),
    "multi_step_ste": About("nothing: the mean of STE gradients along a path",
                            "k and k backward"),
    "nes": About(_SMOOTHED + " (fitness raw or centered)", "P"),
    "nes_cdg": About(_SIGNS, "2d per sample"),
    "nes_local": About(_SMOOTHED + ", by noise of each example's own", "passes + 1, and part of a "
                       "backward"),
    "psa": About("the smoothed loss in the last three layers; before them nearly so",
                 "1 and 1 backward per pass, and an erf per connection"),
    "random_cdg": About("what cdg is (scaled)", "2k of d coordinates"),
    "rao_blackwell_nes": About(_SIGNS + ", with at most NES's variance", "P"),
    "regression_nes": About("linear losses exactly; the smoothed loss up to O(1/P)", "P"),
    "reinforce": About(_SIGNS, "P"),
    "reinmax": About("losses quadratic in every weight; behind sign activations nothing",
                     "1 and 1 backward per sample"),
    "spsa": About("cdg averaged over ±ε of all other coordinates", "P"),
    "sr_ste": About("nothing", "samples, and as many backward"),
    "ste": About("nothing but the output layer; matched: nearly the smoothed loss",
                 "1 and 1 backward; matched, of a module: 3 or more of each"),
    "ste_mean_nes": About("the smoothed loss at the point an STE step away",
                          "P + 1 and 1 backward"),
    "switching": About("nothing while STE's step lowers the loss; then the smoothed loss",
                       "2 and 1 backward; where it switches P more"),
}  # fmt: skip
"""Of every estimator of gradlab's own."""
