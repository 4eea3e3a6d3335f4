"""Compacter: bottleneck adapters whose maps are sums of Kronecker products."""

from dataclasses import dataclass

from .. import functional, nn, ops
from .adapter import Adapter, Bottleneck
from .method import check_counts, place_of


@dataclass(frozen=True)
class Compacter(Adapter):
    """An adapter with D and U = sum_i A_i ⊗ S_i T_i      Karimi Mahabadi et al. 2021 (2106.04647)

    A_i: (n, n), the same ones in every map of every layer; S_i: (outputs / n, q) and T_i: (q,
    inputs / n) of each map. Trained: n³, and 2 q (r + d) + r + d for each adapter. The S of U and
    the biases start at 0, so the model starts as it was. Placed as in "pfeiffer": Compacter++.

    parts  n, which divides the width r and d
    rank   q
    """

    parts: int = 4
    rank: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_counts(self, "parts", "rank")

    def pieces(self, model, rng):
        d, r, place = model.config.dim, self.width, {"rng": rng, **place_of(model)}
        if d % self.parts or r % self.parts:
            raise ValueError(
                f"parts: {self.parts} does not divide the width {r} and the model's {d}"
            )
        rule = Rule(self.parts, **place)
        return {
            path: Bottleneck(
                self,
                KroneckerLinear(rule, d, r, self.rank, **place),
                KroneckerLinear(rule, r, d, self.rank, init=nn.zeros, **place),
            )
            for path in self.where(model)
        }


class Rule(nn.Module):
    """A      (n, n, n), of all maps"""

    def __init__(self, n, **place):
        self.a = nn.parameter((n, n, n), init=nn.normal(n**-0.5), **place)


class KroneckerLinear(nn.Module):
    """y = (sum_i A_i ⊗ S_i T_i) x + bias      s: (n, outputs / n, q)  t: (n, q, inputs / n)

    init: of S. With the normal ones an output has the variance of x's mean square.
    """

    def __init__(self, rule, inputs, outputs, rank, *, init=None, **place):
        self.rule, n = rule, rule.a.shape[0]
        init = init or nn.normal(rank**-0.5)
        self.s = nn.parameter((n, outputs // n, rank), init=init, **place)
        self.t = nn.parameter((n, rank, inputs // n), init=nn.normal(inputs**-0.5), **place)
        self.bias = nn.parameter((outputs,), init=nn.zeros, **place)

    def weight(self):
        """W[(a, o), (b, j)] = sum_i A_iab B_ioj, B = S T      (outputs, inputs), small as r is"""
        (n, o, _), j = self.s.shape, self.t.shape[-1]
        b = ops.matmul(self.s, self.t).reshape(n, o * j)
        w = ops.matmul(self.rule.a.reshape(n, n * n).swapaxes(0, 1), b)
        return w.reshape(n, n, o, j).transpose(0, 2, 1, 3).reshape(n * o, n * j)

    def forward(self, x, *, rng=None):
        return functional.linear(x, self.weight(), self.bias)
