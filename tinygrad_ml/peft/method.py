"""What all methods share: a config makes pieces, and a piece changes one part of the model.

Every method here adds to something that flows through a frozen model (He et al. 2022, "Towards a
unified view of parameter-efficient transfer learning"):

    y <- y + w d(x, y)      x what goes into a part, y what comes out, w the adapter's weight

A Method is a frozen dataclass, the config. Its `pieces` says where in the model which d is added;
its `virtual` makes tokens that stand before the text. Most methods have one of the two.
"""

from dataclasses import fields

import numpy as np

from .. import nn
from ..tensor import Tensor


class Method:
    """A config. One of its own states `pieces` or `virtual`."""

    def pieces(self, model, rng):
        """{path: Piece}      rng draws the initial values; None: they will be loaded"""
        return {}

    def virtual(self, model, rng):
        """A Module with past() or embeddings(): what stands before every text; or None."""
        return None


class Piece(nn.Module):
    """The change at one part of the model. `base` is that part, which nothing else has wrapped."""

    def change_input(self, base, x, *, rng=None):
        """What is added to the part's input, or None."""
        return None

    def change(self, base, x, y, *, rng=None, **options):
        """What is added to the part's output, or None; options: what else the part is called with.

        y is the output so far: that of the part, and of the adapters that come before.
        """
        return None

    def merged(self, base, weight, bias):
        """The same change as (d weight, d bias): arrays in float32 or wider, or None for none.

        weight, bias: those of the part, with the adapters that come before already in them.
        """
        raise ValueError(f"{type(self).__name__} is no change of the weight")


class Virtual(nn.Module):
    """Virtual tokens in a table of numbers, or what computes the table while it is trained."""

    table = encoder = None

    def rows(self):
        """(p, ...)"""
        return self.table if self.encoder is None else self.encoder()

    def drop_encoder(self):
        """Keep what the encoder makes, and let go of the encoder."""
        if self.encoder is not None:
            self.table = Tensor.leaf(self.rows().data.copy(), requires_grad=True)
            self.encoder = None


def place_of(model):
    """The dtype and device of an adapter's parameters: the model's."""
    like = next(model.parameters())
    return {"dtype": like.dtype, "device": like.device}


def widths(part):
    """(inputs, outputs) of a Linear, dense or quantised; (count, width) of an embedding."""
    shape = part.shape if hasattr(part, "shape") else part.weight.shape
    return shape[::-1] if isinstance(part, nn.Linear | nn.QuantizedLinear) else shape


def is_embedding(part):
    return isinstance(part, nn.Embedding | nn.QuantizedEmbedding)


def dense(part):
    """The weight of a Linear or an embedding as an array, whether it is in blocks or not."""
    return part.weight.data if hasattr(part, "weight") else part.dense()


# ------------------------------------------------------------------------------------ arguments


def repeated(ids, length):
    """The first `length` of the ids, which are repeated if they are fewer."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"words: got {ids!r:.60}, expected ids of a text, at least one")
    return np.resize(ids, length)


def check_counts(config, *names, least=1):
    for name in names:
        n = getattr(config, name)
        if isinstance(n, bool) or not isinstance(n, int) or n < least:
            raise ValueError(f"{name}: got {n!r}, expected a whole number >= {least}")


def check_probability(name, p):
    if not 0 <= p < 1:
        raise ValueError(f"{name}: got {p!r}, expected a probability, from 0 to below 1")


def check_choice(name, got, known):
    if got not in known:
        raise ValueError(f"{name}: got {got!r}, expected one of {', '.join(known)}")


def made(kind, given):
    """kind(**given); TypeError names the fields it does not have, and those it has."""
    known = [f.name for f in fields(kind)]
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise TypeError(
            f"{kind.__name__}: has no field {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return kind(**given)
