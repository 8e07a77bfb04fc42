"""Kernels for processors, compiled by Numba when :mod:`gradlab.evaluation.fused` calls them."""
