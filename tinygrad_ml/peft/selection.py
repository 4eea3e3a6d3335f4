"""Which adapters are in use, with which weights, by which rows."""

from collections.abc import Mapping

import numpy as np

from .. import backend
from ..tensor import Tensor


class Selection:
    """Shared by all parts of one adapted model.

    weights  {name: 1.0, another float, or RowWeights}, in the order in which they are applied
    rows     None, or for each row of a batch the name of its adapter, or None for none
    """

    def __init__(self):
        self.weights, self.rows = {}, None

    def set(self, chosen, known):
        """chosen: a name, None, {name: weight}, or a list with a name or None for each row."""
        weights, rows = _read(chosen)
        unknown = sorted(set(weights) - set(known))
        if unknown:
            has = ", ".join(known) or "none"
            raise ValueError(f"use: there is no adapter {', '.join(unknown)}; there are: {has}")
        self.weights, self.rows = weights, rows

    def key(self):
        """What can be compared with another selection's."""
        return tuple(self.rows) if self.rows is not None else tuple(self.weights.items())

    def current(self):
        """What set() takes to choose the same again."""
        return list(self.rows) if self.rows is not None else dict(self.weights)


def _read(chosen):
    if chosen is None:
        return {}, None
    if isinstance(chosen, str):
        return {chosen: 1.0}, None
    if isinstance(chosen, Mapping):
        for name, w in chosen.items():
            if isinstance(w, bool) or not isinstance(w, int | float | np.number) or w != w:
                raise TypeError(f"use: got {w!r} for {name}, expected a number")
        return {name: float(w) for name, w in chosen.items()}, None
    rows = list(chosen)
    if not rows or any(not isinstance(x, str | None) for x in rows):
        raise TypeError(f"use: got {chosen!r:.80}, expected a name or None for each row")
    names = dict.fromkeys(x for x in rows if x is not None)
    return {name: RowWeights(np.array([x == name for x in rows])) for name in names}, rows


class RowWeights:
    """1 for the rows that use an adapter, 0 for the others."""

    def __init__(self, rows):
        self.rows = rows

    def column(self, like):
        """(b, 1, ...), to be multiplied with `like` of b rows."""
        b = len(self.rows)
        if like.shape[0] != b:
            raise ValueError(f"use: {b} rows were given adapters, the batch has {like.shape[0]}")
        column = self.rows.astype(like.dtype).reshape(b, *[1] * (like.ndim - 1))
        return Tensor.wrap(backend.to_device(column, like.device))
