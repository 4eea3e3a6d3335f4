"""Prompt tuning: trained embeddings that stand before the text."""

from collections.abc import Sequence
from dataclasses import dataclass

from .. import backend, nn
from ..autograd import no_grad
from .method import Method, Virtual, check_counts, place_of, repeated


@dataclass(frozen=True)
class PromptTuning(Method):
    """p embeddings before those of the text      Lester, Al-Rfou & Constant 2021 (2104.08691)

    Trained: p d numbers. The virtual tokens take the first p positions, the text the next ones.

    length  p, how many virtual tokens
    words   ids of real words, at whose embeddings the prompt starts, so the model starts as if it
            had read them. Fewer than p are repeated. None: words drawn from the vocabulary
    std     start at random numbers N(0, std^2) instead
    """

    length: int = 20
    words: Sequence[int] | None = None
    std: float | None = None

    def __post_init__(self):
        check_counts(self, "length")
        if self.words is not None and self.std is not None:
            raise ValueError("words, std: give one of the two: real words, or random numbers")

    def virtual(self, model, rng):
        shape, place = (self.length, model.config.dim), place_of(model)
        init = nn.unit_normal if self.std is None else nn.normal(self.std)
        prompt = Prompt(nn.parameter(shape, rng=rng, init=init, **place))
        if self.std is None and rng is not None:
            drawn = rng.integers(0, model.config.vocab_size, self.length)
            words = drawn if self.words is None else repeated(self.words, self.length)
            with no_grad():
                ids = backend.to_device(words, place["device"])
                prompt.table.assign_(model.embedding(ids).data)
        return prompt


class Prompt(Virtual):
    """Embeddings in a table (p, d), or what computes them."""

    def __init__(self, table=None, encoder=None):
        self.table, self.encoder = table, encoder

    def embeddings(self):
        """(1, p, d)"""
        return self.rows()[None]
