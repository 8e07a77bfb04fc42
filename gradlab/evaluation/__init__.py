"""Evaluating a whole population: counter-based noise, populations, and the evaluators."""

from gradlab.evaluation.mlp import MLPEvaluator
from gradlab.evaluation.module import ModuleEvaluator
from gradlab.evaluation.population import GaussianPopulation, LinePopulation, Params, Population

__all__ = [
    "GaussianPopulation",
    "LinePopulation",
    "MLPEvaluator",
    "ModuleEvaluator",
    "Params",
    "Population",
]
