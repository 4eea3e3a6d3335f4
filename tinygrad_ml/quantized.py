"""Models whose weights stay in quantised blocks: the layers of nn take the places of dense ones."""

from .nn import Embedding, Linear, QuantizedEmbedding, QuantizedLinear
from .quant import QUANTIZE, Blocks


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


def quantize(model, format="NF4"):
    """Put the Linears of the model's layers into blocks of "NF4" or "Q8_0"; returns the model.

    The head and the embedding stay as they are. ValueError, before anything is changed, for a
    width that is no whole number of blocks.
    """
    if format not in QUANTIZE:
        raise ValueError(f"format: got {format!r}, expected one of {', '.join(QUANTIZE)}")
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is Linear and name.startswith("layers.")
    }
    blocks = {n: Blocks(QUANTIZE[format](x.weight.data), format) for n, x in found.items()}
    for name, module in found.items():
        _put(model, name, QuantizedLinear(blocks[name], module.bias))
    return model


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
