"""Parts trained whole: norms, the head, whatever is small or has to move far."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

from .. import nn
from ..tensor import Tensor
from .method import Method, Piece
from .places import MATRICES, at, bare, chosen


@dataclass(frozen=True)
class NormTuning(Method):
    """The weights of the norms, d each, and nothing else      Zhao et al. 2023 (arXiv:2312.11420)

    targets  which parts: names or a regular expression; of a Linear the whole matrix
    layers   only these layers' parts
    """

    targets: str | Sequence[str] = ("input_layernorm", "post_attention_layernorm", "norm")
    layers: Sequence[int] | None = None

    def pieces(self, model, rng):
        return whole_pieces(model, self.targets, self.layers)


class Whole(Piece):
    """A part trained whole, in place of the frozen one, from where that one stands."""

    def __init__(self, part):
        self.part = part

    def change(self, base, x, y, *, rng=None, **options):
        return self.part(x, rng=rng, **options) - y

    def merged(self, base, weight, bias):
        own = getattr(self.part, "bias", None)
        return self.part.weight.data - weight, None if own is None else own.data - bias


def whole_pieces(model, targets, layers=None):
    """{path: Whole} of the parts that the targets choose; of no targets none."""
    if not targets:
        return {}
    found = chosen(model, targets, (*MATRICES, nn.RMSNorm), layers=layers)
    return {path: Whole(_copied(bare(at(model, path)))) for path in found}


def _copied(part):
    """The same layer with parameters of its own."""
    if isinstance(part, nn.QuantizedLinear | nn.QuantizedEmbedding):
        raise ValueError(
            "whole: a quantised part cannot be trained; load it with quantized='dense'"
        )
    new = copy(part)
    for name, x in vars(part).items():
        if isinstance(x, Tensor):
            setattr(new, name, Tensor.leaf(x.data.copy(), requires_grad=True))
    return new
