"""LLaMA-Adapter: prompts in the upper layers, let in by a gate that starts closed."""

from dataclasses import dataclass

from .. import functional, nn, ops
from ..llama.model import Attention, merge_heads, split_heads
from .method import Method, Piece, check_counts, place_of
from .places import bare, chosen


@dataclass(frozen=True)
class LlamaAdapter(Method):
    """y <- y + g W_o softmax(q (P W_k)^T / sqrt(k)) P W_v      Zhang et al. 2023 (2303.16199)

    P: (p, d), the prompt of a layer, which has no position; q the queries of the text, rotated.
    Trained: p d + 1 for each layer. The gate g starts at 0, so the model starts as it was.

    length  p, how many virtual tokens
    layers  how many of the last layers; None: all
    """

    length: int = 10
    layers: int | None = None

    def __post_init__(self):
        check_counts(self, "length")
        if self.layers is not None:
            check_counts(self, "layers")

    def pieces(self, model, rng):
        n = model.config.n_layers
        last = n if self.layers is None else self.layers
        if last > n:
            raise ValueError(f"layers: got {last}, the model has {n}")
        found = chosen(model, ("self_attn",), Attention, layers=range(n - last, n))
        shape, place = (1, self.length, model.config.dim), place_of(model)
        return {path: GatedPrompt(shape, rng=rng, **place) for path in found}


class GatedPrompt(Piece):
    """The layer's own frozen W_k, W_v and W_o are used      prompt: (1, p, d)  gate: (1,)"""

    def __init__(self, shape, *, rng, **place):
        self.prompt = nn.parameter(shape, rng=rng, init=nn.unit_normal, **place)
        self.gate = nn.parameter((1,), rng=rng, init=nn.zeros, **place)

    def change(self, base, x, y, *, positions, rng=None, **options):
        q = base.queries(x, positions, rng=rng)  # (b, h, t, k)
        k, v = (self._heads(part, base, x.shape[0]) for part in (base.wk, base.wv))
        attended = merge_heads(functional.attention(q, k, v))
        wo = bare(base.wo)
        out = wo(self.gate * attended)
        return out if wo.bias is None else out - wo.bias

    def _heads(self, part, base, b):
        """(b, g, p, k), the same for every row"""
        heads = split_heads(bare(part)(self.prompt), base.n_kv_heads)
        return ops.broadcast_to(heads, shape=(b, *heads.shape[1:]))
