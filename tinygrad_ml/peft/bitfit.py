"""BitFit: biases alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from .. import nn, ops
from .method import Method, Piece, place_of, widths
from .places import ALL_LINEAR, LINEARS, at, bare, chosen


@dataclass(frozen=True)
class BitFit(Method):
    """y <- y + b      b: (outputs,), from 0 on      Ben Zaken, Goldberg & Ravfogel 2022

    A LLaMA has no biases, so these are new ones; where there is one, b is what is added to it.

    targets  which Linears: names, a regular expression, or "all-linear"
    layers   only these layers' parts
    """

    targets: str | Sequence[str] = ALL_LINEAR
    layers: Sequence[int] | None = None

    def pieces(self, model, rng):
        found = chosen(model, self.targets, LINEARS, layers=self.layers)
        return {path: Bias(bare(at(model, path)), **place_of(model)) for path in found}


class Bias(Piece):
    """d = b      bias: (outputs,)"""

    def __init__(self, part, **place):
        self.bias = nn.parameter(widths(part)[1:], rng=None, init=nn.zeros, **place)

    def change(self, base, x, y, *, rng=None, **options):
        return ops.broadcast_to(self.bias, shape=y.shape)

    def merged(self, base, weight, bias):
        return None, self.bias.data
