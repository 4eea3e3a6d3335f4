"""Layers whose weight stays in quantised blocks: they take the place of Linear and Embedding.

A quantised weight is no parameter. Gradients go through it to x, and it can be made dense.
"""

from .backend import to_device
from .nn import Embedding, Linear, Module
from .quant import Blocks, quantized_matmul
from .tensor import Tensor, array_of


class QuantizedLinear(Module):
    """y = x W^T + bias, W in blocks      x: (..., inputs)  W: (outputs, inputs)

    blocks: quant.Blocks of shape (outputs, inputs).
    """

    def __init__(self, blocks, bias=None):
        self._blocks, self.bias = _matrix(blocks), bias

    shape = property(lambda self: self._blocks.shape)

    def forward(self, x, *, rng=None):
        if x.shape[-1:] != self.shape[1:]:
            raise ValueError(f"linear: x is {x.shape}, weight {self.shape}; expected (o, x's last)")
        blocks = to_device(self._blocks.data, x.device)
        y = quantized_matmul(x, blocks=blocks, format=self._blocks.format)
        return y if self.bias is None else y + self.bias

    def dense(self, dtype="float32"):
        """W as an array."""
        return self._blocks.dense(dtype)


class QuantizedEmbedding(Module):
    """y_i = W[ids_i], W in blocks      ids: (...) integers  W: (count, width)  y: (..., width)

    dtype: of y, for the ids have none that would fit.
    """

    def __init__(self, blocks, dtype="float32"):
        self._blocks, self._dtype = _matrix(blocks), dtype

    shape = property(lambda self: self._blocks.shape)

    def forward(self, ids, *, rng=None):
        ids, count = array_of(ids), self.shape[0]
        if ids.size and not (ids.min() >= 0 and ids.max() < count):
            raise IndexError(f"ids: got {ids.min()} to {ids.max()}, expected 0 to {count - 1}")
        rows = self._blocks.data[ids]  # whole rows: their blocks alone are looked at
        return Tensor.wrap(Blocks(rows, self._blocks.format).dense(self._dtype))

    def dense(self, dtype="float32"):
        """W as an array."""
        return self._blocks.dense(dtype)


def _matrix(blocks):
    if not isinstance(blocks, Blocks) or len(blocks.shape) != 2:
        raise TypeError(f"blocks: got {blocks!r:.80}, expected quant.Blocks of a matrix")
    return blocks


def keep_quantized(model, arrays, dtype="float32"):
    """Put quantised layers where `arrays`, {name: array or Blocks}, has blocks of their shape.

    Returns the names that were taken; the embedding's blocks serve a tied head too.
    """
    taken = []
    for name, module in list(model.named_modules()):
        blocks = arrays.get(f"{name}.weight")
        if not isinstance(blocks, Blocks) or type(module) not in (Linear, Embedding):
            continue
        if blocks.shape != module.weight.shape:
            continue
        taken.append(f"{name}.weight")
        for place in _places(model, module.weight):
            old = _at(model, place)
            linear = type(old) is Linear
            new = QuantizedLinear(blocks, old.bias) if linear else QuantizedEmbedding(blocks, dtype)
            _put(model, place, new)
    return taken


def _places(model, weight):
    """The names of all modules that have this very weight."""
    return [name for name, x in model.named_modules() if getattr(x, "weight", None) is weight]


def _at(model, place):
    for key in place.split("."):
        model = model[int(key)] if isinstance(model, list) else getattr(model, key)
    return model


def _put(model, place, new):
    above, _, key = place.rpartition(".")
    setattr(_at(model, above) if above else model, key, new)


def dense_arrays(model):
    """{name of the weight: array} of all quantised layers below this module."""
    kinds = QuantizedLinear | QuantizedEmbedding
    return {f"{n}.weight": x.dense() for n, x in model.named_modules() if isinstance(x, kinds)}
