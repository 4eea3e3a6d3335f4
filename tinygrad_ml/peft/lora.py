"""LoRA and its kin: a change of low rank to a frozen matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .. import functional, nn
from ..backend import namespace
from ..tensor import Tensor
from .method import (
    Method,
    Piece,
    check_counts,
    check_probability,
    dense,
    is_embedding,
    place_of,
    widths,
)  # fmt: skip
from .places import MATRICES, at, bare, by_pattern, chosen, their_path
from .whole import whole_pieces


@dataclass(frozen=True)
class LoRA(Method):
    """y <- y + s B A x      A: (r, inputs)  B: (outputs, r)  s = alpha / r      Hu et al. 2021

    Trained: r (inputs + outputs) for each matrix. B starts at 0, so the model starts as it was.

    targets       which Linears and embeddings: names, a regular expression, or "all-linear"
    rslora        s = alpha / sqrt(r), which keeps large ranks learning      Kalajdzievski 2023
    dora          length and direction of each row of W + s B A apart: y = m (W + s B A) x /
                  |W + s B A|, m trained, from |W| on      Liu et al. 2024
    rank_pattern, alpha_pattern   {pattern: rank or alpha} for parts that differ
    dropout       of x on its way into A
    layers        only these layers' parts
    whole         parts (norms, lm_head) that are trained whole and saved along
    """

    rank: int = 8
    alpha: float = 16
    targets: str | Sequence[str] = ("q_proj", "v_proj")
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    layers: Sequence[int] | None = None
    excluded: Sequence[str] = ()
    whole: Sequence[str] = ()

    def __post_init__(self):
        check_counts(self, "rank")
        check_probability("dropout", self.dropout)
        for pattern, rank in self.rank_pattern.items():
            if not isinstance(rank, int) or rank < 1:
                raise ValueError(f"rank_pattern: got {rank!r} for {pattern}, expected 1 or more")

    def pieces(self, model, rng):
        excluded = (*self.excluded, *self.whole) if not isinstance(self.excluded, str) else ()
        found = chosen(model, self.targets, MATRICES, layers=self.layers, excluded=excluded)
        pieces = {path: self.piece(model, path, rng) for path in found}
        return pieces | whole_pieces(model, self.whole)

    def piece(self, model, path, rng):
        rank = by_pattern(self.rank_pattern, their_path(path), self.rank)
        alpha = by_pattern(self.alpha_pattern, their_path(path), self.alpha)
        scale = alpha / (rank**0.5 if self.rslora else rank)
        kind = DoRALayer if self.dora else LoRALayer
        return kind(bare(at(model, path)), rank, scale, self.dropout, rng=rng, **place_of(model))


class LoRALayer(Piece):
    """d = s B A x, of an embedding s B A[:, ids]      a: (r, inputs)  b: (outputs, r)"""

    def __init__(self, part, rank, scale, dropout=0.0, *, rng, **place):
        inputs, outputs = widths(part)
        # one of the two is 0, so that the change starts at 0
        first, second = (nn.zeros, nn.unit_normal) if is_embedding(part) else (nn.fan_in, nn.zeros)
        self.a = nn.parameter((rank, inputs), rng=rng, init=first, **place)
        self.b = nn.parameter((outputs, rank), rng=rng, init=second, **place)
        self.scale, self.dropout = scale, dropout

    def change(self, base, x, y, *, rng=None, **options):
        if is_embedding(base):
            narrow = functional.embedding(self.a.swapaxes(0, 1), x)  # (..., r)
        else:
            narrow = functional.linear(functional.dropout(x, self.dropout, rng), self.a)
        return functional.linear(narrow * self.scale, self.b)  # the narrow one is cheap to scale

    def product(self):
        """s B A as an array      (outputs, inputs), at least in float32"""
        a, b = (_wide(x.data) for x in (self.a, self.b))
        return self.scale * (b @ a)

    def merged(self, base, weight, bias):
        return self.product().T if is_embedding(base) else self.product(), None


class DoRALayer(LoRALayer):
    """d = (m / n - 1) W x + (m / n) s B A x      m: (outputs,)  n = |W + s B A| by rows, a constant

    That n passes no gradient is the paper's section 4.3: it saves memory and loses little.
    """

    def __init__(self, part, rank, scale, dropout=0.0, *, rng, **place):
        super().__init__(part, rank, scale, dropout, rng=rng, **place)
        lengths = _lengths(part, dense(part), self.product())
        self.magnitude = Tensor.leaf(lengths.astype(self.a.dtype), requires_grad=True)

    def change(self, base, x, y, *, rng=None, **options):
        low = super().change(base, x, y, rng=rng)
        lengths = _lengths(base, dense(base), self.product()).astype(self.a.dtype)
        ratio = self.magnitude / Tensor.wrap(lengths)
        bias = getattr(base, "bias", None)
        straight = y if bias is None else y - bias
        return (ratio - 1) * straight + ratio * low

    def merged(self, base, weight, bias):
        ratio = _wide(self.magnitude.data) / _lengths(base, dense(base), self.product())
        if is_embedding(base):
            return (ratio - 1) * weight + ratio * self.product().T, None
        return (ratio[:, None] - 1) * weight + ratio[:, None] * self.product(), None


def _lengths(part, weight, product):
    """|W + s B A| of each output      -> (outputs,)"""
    weight = _wide(weight.T if is_embedding(part) else weight)
    return namespace([weight]).linalg.norm(weight + product, axis=1)


def _wide(x):
    """A half becomes float32."""
    return x.astype("float32") if x.dtype.itemsize < 4 else x


def lora_plus(adapted, lr, ratio=16.0):
    """Groups for an optimiser: B learns `ratio` times as fast as A      Hayou et al. 2024

    optim.AdamW(peft.lora_plus(adapted, lr=1e-4), lr=1e-4)
    """
    trained = [(name, x) for name, x in adapted.named_parameters() if x.requires_grad]
    fast = [(name, x) for name, x in trained if name.endswith(".b") and ".pieces." in name]
    if not fast:
        raise ValueError("lora_plus: the model has no LoRA in training")
    slow = [(name, x) for name, x in trained if not any(x is y for _, y in fast)]
    return [{"parameters": slow, "lr": lr}, {"parameters": fast, "lr": lr * ratio}]
