"""IA3: learned factors for keys, values and the inside of the feed-forward network."""

from collections.abc import Sequence
from dataclasses import dataclass

from .. import nn
from .method import Method, Piece, place_of, widths
from .places import LINEARS, at, bare, chosen, matches, their_path
from .whole import whole_pieces


@dataclass(frozen=True)
class IA3(Method):
    """y <- l * y of some Linears, W x <- W (l * x) of others      Liu et al. 2022 (2205.05638)

    Trained: a factor for each output, or each input. All start at 1, so the model starts as it was.

    targets   which Linears: names, a regular expression, or "all-linear"
    inputs    those among them whose input is scaled, not the output
    layers    only these layers' parts
    excluded  not these
    whole     parts (norms, lm_head) that are trained whole and saved along
    """

    targets: str | Sequence[str] = ("k_proj", "v_proj", "down_proj")
    inputs: str | Sequence[str] = ("down_proj",)
    layers: Sequence[int] | None = None
    excluded: str | Sequence[str] = ()
    whole: Sequence[str] = ()

    def pieces(self, model, rng):
        found = chosen(model, self.targets, LINEARS, layers=self.layers, excluded=self.excluded)
        pieces = {}
        for path in found:
            kind = InputScale if matches(their_path(path), self.inputs) else OutputScale
            pieces[path] = kind(bare(at(model, path)), **place_of(model))
        return pieces | whole_pieces(model, self.whole)


class OutputScale(Piece):
    """d = (l - 1) * y      scale: (outputs,)"""

    def __init__(self, part, **place):
        self.scale = nn.parameter(widths(part)[1:], rng=None, init=nn.ones, **place)

    def change(self, base, x, y, *, rng=None, **options):
        return (self.scale - 1) * y

    def merged(self, base, weight, bias):
        more = self.scale.data - 1
        return more[:, None] * weight, None if bias is None else more * bias


class InputScale(Piece):
    """d = W ((l - 1) * x)      scale: (inputs,)"""

    def __init__(self, part, **place):
        self.scale = nn.parameter(widths(part)[:1], rng=None, init=nn.ones, **place)

    def change_input(self, base, x, *, rng=None):
        return (self.scale - 1) * x

    def merged(self, base, weight, bias):
        return (self.scale.data - 1) * weight, None
