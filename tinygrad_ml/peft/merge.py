"""Changes put into the weights: y = W x + d(x) as one matrix."""

from copy import copy
from dataclasses import replace

from .. import nn
from ..backend import namespace
from ..llama.formats.huggingface import NAMES
from ..tensor import Tensor
from .method import dense as dense_weight
from .places import at


def merged_part(part, active, dense=False):
    """A layer like this one with the adapters' changes in its weight (and bias).

    Computed in float32 or wider and rounded once. Quantised weights change only as a
    dense layer; a bias beside them is exact.
    """
    quantised = isinstance(part, nn.QuantizedLinear | nn.QuantizedEmbedding)
    if not quantised and not hasattr(part, "weight"):  # attention, feed-forward
        kinds = ", ".join(type(piece).__name__ for _, piece, _ in active)
        raise ValueError(f"{kinds} is no change of a weight")
    old = dense_weight(part)
    weight = old.astype("float32") if old.dtype.itemsize < 4 else old
    bias, changed = None if getattr(part, "bias", None) is None else part.bias.data, False
    for _, piece, w in active:
        more, shift = piece.merged(part, weight, bias)
        if more is not None:
            weight, changed = weight + w * more, True
        if shift is not None:
            bias = w * shift if bias is None else bias + w * shift
    if quantised and changed and not dense:
        raise ValueError(
            "its weight is quantised, and the sum quantised again would not be exact; "
            "merge(dense=True) makes it dense"
        )
    new = _dense_twin(part) if quantised and changed else copy(part)
    if changed:
        new.weight = Tensor.leaf(weight.astype(old.dtype, copy=False), requires_grad=False)
    if bias is not None:
        new.bias = Tensor.leaf(bias.astype(old.dtype, copy=False), requires_grad=False)
    return new


def _dense_twin(part):
    """An empty layer of the kind that is not quantised."""
    kind = nn.Linear if isinstance(part, nn.QuantizedLinear) else nn.Embedding
    new = kind(1, 1, rng=None)
    if kind is nn.Linear:
        new.bias = part.bias
    return new


def with_biases(model, config):
    """The config, with biases declared where there are some now; the others become zeros."""
    groups = {"attention_bias": ".attention.w", "mlp_bias": ".feed_forward."}
    for flag, word in groups.items():
        names = [n.format(i) for n in NAMES for i in range(config.n_layers) if word in n]
        parts = [at(model, name) for name in names]
        if getattr(config, flag) or all(getattr(part, "bias", None) is None for part in parts):
            continue
        for part in parts:
            if part.bias is None:
                like = dense_weight(part)
                zeros = namespace([like]).zeros(like.shape[0], like.dtype)
                part.bias = Tensor.leaf(zeros, requires_grad=False)
        config = replace(config, **{flag: True})
    return config
