"""A self-organising map with a gradient: every row belongs to every unit a little.

Heskes' winner is the unit with the smallest local error, over the whole neighbourhood; here it is
replaced by a softmax, and the map's energy becomes a differentiable function of Tensors. As the
temperature falls to 0 the winner takes all, and the batch rule is where the gradient vanishes.
Heskes 1999; Graepel, Burger & Obermayer 1998
"""

import math

from .. import functional, ops
from ..arrays import full_precision


def local_errors(x, codebook, neighborhood):
    """e_i(x) = sum_j h_ij |x - w_j|^2 / sum_j h_ij

    x: (n, d)  codebook: (k, d)  neighborhood: (k, k), an array  ->  (n, k)
    """
    h = neighborhood / neighborhood.sum(axis=1, keepdims=True)
    inner = x @ codebook.swapaxes(0, 1)  # (n, k)
    squared = (x * x).sum(axis=1, keepdims=True) - 2 * inner + (codebook * codebook).sum(axis=1)
    return squared @ h.swapaxes(0, 1)


def soft_assignment(x, codebook, neighborhood, temperature=1.0):
    """p_i(x) = softmax(-e_i(x) / temperature), how much each row belongs to each unit: (n, k)"""
    return ops.softmax(-local_errors(x, codebook, neighborhood) / temperature)


def soft_quantization(x, codebook, neighborhood, temperature=1.0):
    """The mean of sum_i p_i(x) e_i(x): the error that remains, as one number."""
    errors = local_errors(x, codebook, neighborhood)
    shares = ops.softmax(-errors / temperature)
    return functional.mean((shares * errors).sum(axis=1))


def free_energy(x, codebook, neighborhood, temperature=1.0):
    """The mean of -T log(sum_i exp(-e_i(x) / T) / k), one number: what training should lower

    Its gradient is sum_i p_i(x) d(e_i): an expectation-maximisation step lowers it too. At T = 0
    it is the mean of min_i e_i(x), Heskes' energy. Of half types it is returned in float32, as a
    loss is: where the errors are small it is a difference from log k.
    """
    scaled = -full_precision(local_errors(x, codebook, neighborhood)) / temperature
    lowered = ops.logsumexp(scaled - math.log(scaled.shape[1]), axis=1)
    return -temperature * functional.mean(lowered)
