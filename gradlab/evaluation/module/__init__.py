"""Any other model: populations and central differences of an ``nn.Module``."""

from gradlab.evaluation.module.convolution import population_conv2d
from gradlab.evaluation.module.coordinates import DifferenceStats, LayerStats, module_differences
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.noisy import NoisyPasses

__all__ = [
    "DifferenceStats",
    "LayerStats",
    "ModuleEvaluator",
    "NoisyPasses",
    "module_differences",
    "population_conv2d",
]
