"""What is known of the differentiable functions above the engine: quantised products, the soft SOM."""

# fmt: off  (tables, aligned by hand)
import numpy as np
import scipy.special as special

from .. import quant
from ..estimators import som_soft
from .registry import declare
from .strategies import Domain

CLOSE = Domain(-2, 2, (0.0, -0.0, 1.0))

# --- a product with a weight in blocks


def _quantised(draw):
    x = draw.array(draw.pick([(32,), (3, 32), (2, 1, 32)]), CLOSE)
    blocks = quant.quantize_q8_0(draw.rng.normal(size=(4, 32)))
    return (x,), {"blocks": blocks, "format": "Q8_0"}


declare(quant.quantized_matmul, _quantised, lambda x, *, blocks, format:
        x @ quant.dequantize(blocks, format, "float64").T, analytic=True)


def _quantised_maps(draw):
    (x,), _ = _quantised(draw)
    blocks = tuple(quant.quantize_q8_0(draw.rng.normal(size=(m, 32))) for m in draw.pick([(2, 3, 1), (4,)]))
    return (x,), {"blocks": blocks, "format": "Q8_0"}


declare(quant.quantized_maps, _quantised_maps, lambda x, *, blocks, format:
        tuple(x @ quant.dequantize(b, format, "float64").T for b in blocks), analytic=True)

# --- the soft SOM: rows x, prototypes w, a symmetric neighbourhood h


def _map(draw):
    n, k, d = draw.pick([(3, 4, 2), (1, 2, 1), (2, 3, 3)])
    places = np.arange(k)
    h = np.exp(-((places[:, None] - places) ** 2) / 2)
    x, w = draw.array((n, d), CLOSE), draw.array((k, d), CLOSE)
    return (x, w, h)


def _with_temperature(draw):
    return _map(draw), {"temperature": draw.pick([1.0, 0.3, 5.0])}


def _errors(x, w, h):
    squared = ((x[:, None] - w) ** 2).sum(-1)
    return squared @ (h / h.sum(1, keepdims=True)).T


def _shares(x, w, h, temperature):
    return special.softmax(-_errors(x, w, h) / temperature, axis=1)


SUMS = 1024  # |x|^2 - 2 x w + |w|^2 cancels where x is close to w
declare(som_soft.local_errors, _map, _errors, rounding=SUMS)
declare(som_soft.soft_assignment, _with_temperature, _shares, rounding=SUMS)
declare(som_soft.soft_quantization, _with_temperature, lambda x, w, h, temperature:
        (_shares(x, w, h, temperature) * _errors(x, w, h)).sum(1).mean(), rounding=SUMS)
declare(som_soft.free_energy, _with_temperature, lambda x, w, h, temperature: -temperature * (
        special.logsumexp(-_errors(x, w, h) / temperature, axis=1) - np.log(len(w))).mean(),
        rounding=SUMS)
