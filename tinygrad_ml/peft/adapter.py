"""Bottleneck adapters: a small network on the way through each layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from .. import functional, nn, ops
from ..llama.model import Attention, FeedForward
from .method import Method, Piece, check_choice, check_counts, check_probability, place_of
from .places import chosen

ACTIVATIONS = {
    "relu": ops.relu, "gelu": functional.gelu, "silu": ops.silu, "tanh": ops.tanh,
}  # fmt: skip
# where an adapter is added, and whether it reads what goes into that part or what comes out
PLACEMENTS = {
    "houlsby":  (("self_attn", "mlp"), False),
    "pfeiffer": (("mlp",), False),
    "parallel": (("mlp",), True),
}  # fmt: skip


@dataclass(frozen=True)
class Adapter(Method):
    """y <- y + s (U f(D z + b) + c)      D: (r, d)  U: (d, r)

    Trained: 2 r d + r + d for each. U and c start at 0, so the model starts as it was.

    width       r
    placement   "houlsby": z = y after attention and after feed-forward (Houlsby et al. 2019);
                "pfeiffer": z = y after feed-forward only (Pfeiffer et al. 2021);
                "parallel": z = x, what feed-forward reads (He et al. 2022)
    activation  f: relu, gelu, silu or tanh
    scale       s
    dropout     of z on its way into D
    layers      only these layers
    """

    width: int = 16
    placement: str = "houlsby"
    activation: str = "relu"
    scale: float = 1.0
    dropout: float = 0.0
    layers: Sequence[int] | None = None

    def __post_init__(self):
        check_counts(self, "width")
        check_choice("placement", self.placement, PLACEMENTS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_probability("dropout", self.dropout)

    def pieces(self, model, rng):
        return {path: Bottleneck(self, *self.maps(model, rng)) for path in self.where(model)}

    def where(self, model):
        targets, _ = PLACEMENTS[self.placement]
        return chosen(model, targets, (Attention, FeedForward), layers=self.layers)

    def maps(self, model, rng):
        """D and U with their biases"""
        d, place = model.config.dim, place_of(model)
        return (
            nn.Linear(d, self.width, bias=True, rng=rng, **place),
            nn.Linear(self.width, d, bias=True, rng=rng, init=nn.zeros, **place),
        )


class Bottleneck(Piece):
    """d = s up(f(down(z)))"""

    def __init__(self, method, down, up):
        self.down, self.up = down, up
        self._method = method

    def change(self, base, x, y, *, rng=None, **options):
        method = self._method
        z = x if PLACEMENTS[method.placement][1] else y
        narrow = self.down(functional.dropout(z, method.dropout, rng))
        return method.scale * self.up(ACTIVATIONS[method.activation](narrow))
