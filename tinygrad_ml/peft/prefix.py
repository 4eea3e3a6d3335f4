"""Prefix tuning: trained keys and values that every layer sees before the text."""

from collections.abc import Sequence
from dataclasses import dataclass

from .. import nn, ops
from ..autograd import no_grad
from ..tensor import Tensor
from .method import Method, Virtual, check_counts, place_of, repeated


@dataclass(frozen=True)
class PrefixTuning(Method):
    """In each layer p keys and values of their own      Li & Liang 2021 (arXiv:2101.00190)

    Trained: 2 n g k p numbers (n layers, g heads of keys and values of width k). That is P-tuning
    v2 (Liu et al. 2022). With `hidden` they are computed while they are trained, which steadies
    large steps, by a network that is let go of afterwards (drop_encoders):

        prefix = W2 tanh(W1 E + b1) + b2      E: (p, g k)  W1: (h, g k)  W2: (2 n g k, h)

    length  p, how many virtual tokens
    hidden  h, the width of that network; None: the plain form
    words   ids of real words, which are read by the model: the prefix starts at their keys and
            values, so the model starts as if it had read them. Fewer than p are repeated
    std     of the random initial values
    """

    length: int = 20
    hidden: int | None = None
    words: Sequence[int] | None = None
    std: float = 0.02

    def __post_init__(self):
        check_counts(self, "length")
        if self.hidden is not None:
            check_counts(self, "hidden")

    def virtual(self, model, rng):
        config, start = model.config, None
        if self.words is not None:
            start = read_words(model, repeated(self.words, self.length))
        return Prefix(config, self, start, rng=rng, **place_of(model))


class Prefix(Virtual):
    """Keys and values for every layer, from one table      (p, 2 n g k)

    A row is key and value of layer 0, of layer 1, ...; keys are used as they are, not rotated.
    """

    def __init__(self, config, method, start, *, rng, **place):
        self._shape = (method.length, 2 * config.n_layers, config.n_kv_heads, config.head_dim)
        width = config.n_kv_heads * config.head_dim
        init = nn.normal(method.std)
        if method.hidden is None:
            shape = (method.length, 2 * config.n_layers * width)
            self.table = nn.parameter(shape, rng=rng, init=init, **place)
            if start is not None:
                self.table.assign_(start)
        else:
            self.encoder = PrefixEncoder(method, width, config.n_layers, start, rng=rng, **place)

    def past(self):
        """For each layer (k, v), both (1, g, p, k)"""
        p, both, g, k = self._shape
        layers = self.rows().reshape(p, both, g, k).transpose(1, 2, 0, 3)  # (2 n, g, p, k)
        return [(layers[i : i + 1], layers[i + 1 : i + 2]) for i in range(0, both, 2)]


class PrefixEncoder(nn.Module):
    """W2 tanh(W1 E + b1) + b2, added to the start if there is one, with W2 = 0 to begin with."""

    def __init__(self, method, width, n_layers, start, *, rng, **place):
        h, wide = method.hidden, 2 * n_layers * width
        self.embedding = nn.parameter((method.length, width), rng=rng, init=nn.unit_normal, **place)
        self.inner = nn.Linear(width, h, bias=True, rng=rng, **place)
        outer = nn.fan_in if start is None else nn.zeros
        self.outer = nn.Linear(h, wide, bias=True, rng=rng, init=outer, **place)
        self.start = None if start is None else Tensor.leaf(start, requires_grad=False)

    def forward(self):
        rows = self.outer(ops.tanh(self.inner(self.embedding)))
        return rows if self.start is None else rows + self.start


def read_words(model, ids):
    """What a prefix holds that makes the model continue as after these words  -> (p, 2 n g k)"""
    cache = model.new_cache(1, len(ids))
    with no_grad():
        model(ids[None], cache=cache)
    layers = [x for i in range(model.config.n_layers) for x in cache.read(i)]  # (1, g, p, k) each
    p = len(ids)
    return ops.concatenate(*layers).transpose(2, 0, 1, 3).reshape(p, -1).data
