"""Virtual tokens: what stands before the text, as keys and values or as embeddings.

The rows of a batch may have different adapters, so different numbers of virtual tokens: these are
padded on the left, and a mask hides the padding.
"""

from typing import NamedTuple

import numpy as np

from .. import backend, ops
from ..tensor import Tensor, array_of


class Tokens(NamedTuple):
    """Virtual tokens of every row, or of one for all rows."""

    tensors: (
        list  # of past: k and v of each layer, (b or 1, g, p, k); of embeddings: (b or 1, p, d)
    )
    lengths: np.ndarray  # (b,) how many each row has, of p

    @property
    def count(self):
        return self.tensors[0].shape[-2] if self.tensors else 0

    def mask(self):
        """(b, p) bools, True for what is no padding."""
        return np.arange(self.count) >= self.count - self.lengths[:, None]


class Ahead(NamedTuple):
    """What a call of the model is given besides the text."""

    past: Tokens
    prompt: Tokens

    @property
    def count(self):
        return self.past.count + self.prompt.count

    @property
    def lengths(self):
        """(b,) virtual tokens of each row"""
        return self.past.lengths + self.prompt.lengths


def gather(virtual, selection, b):
    """The virtual tokens of the adapters in use for b rows; None if there are none."""
    used = [name for name in selection.weights if name in virtual]
    if not used:
        return None
    if selection.rows is not None and len(selection.rows) != b:
        raise ValueError(f"use: {len(selection.rows)} rows were given adapters, the batch has {b}")
    for name in used:
        w = selection.weights[name]
        if isinstance(w, float) and w != 1.0:
            raise ValueError(
                f"use: virtual tokens are there or not; {name} cannot have the weight {w}"
            )
    join = _joined if selection.rows is None else _by_rows
    pasts = {n: _flat(virtual[n].past()) for n in used if hasattr(virtual[n], "past")}
    prompts = {n: [virtual[n].embeddings()] for n in used if hasattr(virtual[n], "embeddings")}
    return Ahead(join(pasts, selection.rows, b), join(prompts, selection.rows, b))


def _flat(past):
    return [x for pair in past for x in pair]


def _joined(parts, rows, b):
    """All of them one after the other, in every row."""
    if not parts:
        return Tokens([], np.zeros(b, int))
    columns = zip(*parts.values(), strict=True)
    tensors = [x[0] if len(x) == 1 else ops.concatenate(*x, axis=-2) for x in columns]
    return Tokens(tensors, np.full(b, tensors[0].shape[-2]))


def _by_rows(parts, rows, b):
    """Each row its own, padded on the left."""
    if not parts:
        return Tokens([], np.zeros(b, int))
    sizes = {name: tensors[0].shape[-2] for name, tensors in parts.items()}
    longest = max(sizes.values())
    place = {name: i for i, name in enumerate(parts)}
    index = np.array([place.get(name, 0) for name in rows])  # who has none gets one, all hidden
    tensors = []
    for column in zip(*parts.values(), strict=True):
        table = ops.concatenate(*[_padded(x, longest) for x in column])  # (adapters, ..., p, k)
        tensors.append(table[backend.to_device(index, table.device)])
    return Tokens(tensors, np.array([sizes.get(name, 0) for name in rows]))


def _padded(x, length):
    """Zeros before them, up to this many      (1, ..., p, k) -> (1, ..., length, k)"""
    short = length - x.shape[-2]
    if not short:
        return x
    zeros = np.zeros((*x.shape[:-2], short, x.shape[-1]), x.dtype)
    return ops.concatenate(Tensor.wrap(backend.to_device(zeros, x.device)), x, axis=-2)


def before(virtual, model, tokens, context):
    """The arguments of model.hidden for the text with its virtual tokens."""
    context = dict(context)
    past, prompt = virtual.past, virtual.prompt
    text, _ids = model._embed(tokens, context["embeddings"], context["rng"])
    b, t, d = text.shape
    own = context["past"]  # the caller's
    seen = [past.mask(), np.ones((b, 0 if own is None else own[0][0].shape[-2]), bool)]
    if past.count:
        pairs = list(zip(past.tensors[::2], past.tensors[1::2], strict=True))
        context["past"] = pairs if own is None else _in_turn(pairs, own, b)
    if prompt.count:
        if context["segments"] is not None:
            raise ValueError(
                "segments: only the first of them would see the virtual tokens, which are "
                "embeddings; use PrefixTuning, whose keys and values all of them see"
            )
        before = ops.broadcast_to(prompt.tensors[0], shape=(b, prompt.count, d))
        tokens, context["embeddings"] = None, ops.concatenate(before, text, axis=1)
    if context["mask"] is not None or not (past.mask().all() and prompt.mask().all()):
        mask = np.ones((b, t), bool) if context["mask"] is None else context["mask"]
        mask = np.asarray(backend.to_host(array_of(mask)))
        context["mask"] = np.concatenate([*seen, prompt.mask(), mask], axis=1)
    context["positions"] = _from_prompt(virtual, shifted(context["positions"], virtual.lengths))
    return tokens, context


def _in_turn(first, then, b):
    """The keys and values of two pasts, one after the other."""

    def joined(x, y):
        rows = max(x.shape[0], y.shape[0])
        x, y = (ops.broadcast_to(z, shape=(rows, *z.shape[1:])) for z in (x, y))
        return ops.concatenate(x, y, axis=-2)

    return [tuple(map(joined, a, c)) for a, c in zip(first, then, strict=True)]


def shifted(positions, lengths):
    """The text's positions, counted on from the virtual tokens      -> (t,) or (b, t), or None"""
    if positions is None:
        return None
    positions = np.asarray(backend.to_host(array_of(positions)))
    same = (lengths == lengths[0]).all()
    return positions + (lengths[0] if same else lengths[:, None])


def _from_prompt(virtual, positions):
    """Positions of a prompt and of the text after it, where the caller has given the text's."""
    q = virtual.prompt.count
    if positions is None or not q:
        return positions
    b = len(virtual.lengths)
    own = virtual.lengths[:, None] - np.arange(q, 0, -1)  # (b, q)
    text = np.broadcast_to(positions, (b, positions.shape[-1]))
    return np.concatenate([np.maximum(own, 0), text], axis=1)


def fill(cache, virtual, model):
    """Put the virtual tokens into an empty cache."""
    b, past, prompt = cache.rows, virtual.past, virtual.prompt
    if past.count:
        with cache.extending(b, 0, None, past.mask(), [past.tensors[:2]]):
            for i in range(0, len(past.tensors), 2):
                cache.write(i // 2, *past.tensors[i : i + 2])
    if prompt.count:
        x = prompt.tensors[0]
        x = ops.broadcast_to(x, shape=(b, *x.shape[1:]))
        mask = None if prompt.mask().all() else prompt.mask()
        model.hidden(embeddings=x, cache=cache, mask=mask)


class AheadCache:
    """A cache whose first places hold virtual tokens, which its users neither count nor see.

    lengths  (b,) virtual tokens of each row
    key      the adapters in use when it was made
    """

    def __init__(self, inner, lengths, key):
        self.inner, self.lengths, self.key = inner, lengths, key
        self.ahead = inner.length

    length = property(lambda self: self.inner.length - self.ahead)
    tokens = property(lambda self: self.inner.tokens[:, self.ahead :])
    mask = property(lambda self: self.inner.mask[:, self.ahead :])
    rows = property(lambda self: self.inner.rows)
    capacity = property(lambda self: self.inner.capacity - self.ahead)
    nbytes = property(lambda self: self.inner.nbytes)

    def check(self, key):
        if key != self.key:
            raise ValueError("cache: it was made for other adapters than those now in use")

    def fork(self, rows=None):
        other = object.__new__(AheadCache)
        other.inner, other.ahead, other.key = self.inner.fork(rows), self.ahead, self.key
        other.lengths = self.lengths if rows is None else self.lengths[np.asarray(rows)]
        return other

    def truncate(self, n):
        if not 0 <= n <= self.length:
            raise ValueError(f"truncate: got {n}, expected 0 to {self.length}")
        self.inner.truncate(n + self.ahead)
