"""Keys and values of the tokens so far, so that a new token needs only its own."""

from contextlib import contextmanager, nullcontext
from typing import NamedTuple
from weakref import WeakSet

import numpy as np

from .. import backend, dtypes, kernels
from ..functional import rope
from ..fused import accelerated
from ..tensor import Tensor


class Cache:
    """For each layer a pair of buffers that calls of the model fill from the left.

    length  how many tokens (or places of a past) each row holds
    tokens  (b, length) their ids; -1 where the model was given no ids
    mask    (b, length) bools, False for padding

    A row of a buffer has room to spare and doubles when it is full, so a token costs no copy of
    what is there. A fork shares the buffers until one of the two writes over what the other reads.
    """

    def __init__(self, config, b, capacity=0, dtype="float32", device=None):
        if b < 1 or capacity < 0:
            raise ValueError(
                f"cache: got b={b}, capacity={capacity}, expected b >= 1, capacity >= 0"
            )
        shape = (b, config.n_kv_heads, capacity, config.head_dim)
        self.length = 0
        self._share(_Buffers.empty(config.n_layers, shape, dtype, device))

    def _share(self, buffers):
        self._buffers = buffers
        buffers.readers.add(self)

    rows = property(lambda self: self._buffers.shape[0])
    capacity = property(lambda self: self._buffers.shape[2])
    tokens = property(lambda self: self._buffers.tokens[:, : self.length])
    mask = property(lambda self: self._buffers.mask[:, : self.length])
    nbytes = property(lambda self: self._buffers.nbytes)
    device = property(lambda self: backend.device_of(self._buffers.keys[0]))

    # --- what the model calls

    @contextmanager
    def extending(self, b, t, tokens=None, mask=None, past=None):
        """Within it `write` takes t new places a row; they count once all has gone well."""
        if b != self.rows:
            raise ValueError(f"cache: it has {self.rows} rows, the call {b}")
        p = 0 if past is None else past[0][0].shape[-2]
        old, new = self.length, self.length + p + t
        self._make_room(new)
        kept = self._buffers
        kept.tokens[:, old:new] = -1
        kept.mask[:, old:new] = True
        if tokens is not None:
            kept.tokens[:, old + p : new] = backend.to_host(tokens)
        if mask is not None:
            kept.mask[:, new - mask.shape[1] : new] = mask
        self._start, self.length = old, new
        try:
            yield
        except BaseException:
            self.length = old
            raise

    def write(self, layer, k, v):
        """Add a layer's new (b, g, t, k) at the end; returns all that is there, (b, g, s, k)."""
        both = []
        for pair, new in zip(self._buffers.pairs(layer), (k, v), strict=True):
            pair[:, :, self._start : self.length] = new.data
            both.append(Tensor.wrap(pair[:, :, : self.length]))
        return both

    def turned(self, layer, positions, q, k, v):
        """q turned to where it stands, and `write` of the k turned and the v."""
        return positions.rotate(q), *self.write(layer, positions.rotate(k), v)

    def read(self, layer):
        """A layer's keys and values, (b, g, length, k) each."""
        return [Tensor.wrap(x[:, :, : self.length]) for x in self._buffers.pairs(layer)]

    def seen(self):
        """(b, length) bools, True where there is no padding; just the length if there is none."""
        return self.length if self.mask.all() else self.mask

    # --- what the user calls

    def fork(self, rows=None):
        """A cache that goes on from here apart from this one.

        rows: which of this one's rows it takes, in which order ([0, 0, 0] for three tries); these
        are copied. None: all of them, shared until one of the two writes over what the other reads.
        """
        other = object.__new__(Cache)
        other.length = self.length
        rows = None if rows is None else np.asarray(rows)
        other._share(self._buffers if rows is None else self._buffers.copy(self.length, rows=rows))
        return other

    def truncate(self, n):
        """Forget all but the first n places of every row."""
        if not 0 <= n <= self.length:
            raise ValueError(f"truncate: got {n}, expected 0 to {self.length}")
        self.length = n

    def _make_room(self, needed):
        """Own buffers wherever writing would change what another cache reads; large enough."""
        kept = self._buffers
        if needed > self.capacity:
            fresh = kept.copy(self.length, capacity=max(needed, 2 * self.capacity))
        elif self.length < max((r.length for r in kept.readers if r is not self), default=0):
            fresh = kept.copy(self.length)
        else:
            return
        kept.readers.discard(self)
        self._share(fresh)


class Slot:
    """The next place of a cache, for a call of the model with one token a row that is to be
    recorded: what such a call asks for lies on the device, and changes with `place`.

    place  (1,) ints on the device: where the new token stands in the buffers
    """

    def __init__(self, cache, place):
        self.place, self._buffers = place, cache._buffers
        self._shown = self._padding = None
        if not cache.mask.all():
            shown = np.ones((cache.rows, cache.capacity), bool)
            shown[:, : cache.length] = cache.mask
            padding = (~cache.mask).sum(axis=1, keepdims=True)
            self._shown, self._padding = (
                backend.to_device(x, cache.device) for x in (shown, padding)
            )
        self._places = backend.to_device(np.arange(cache.capacity), cache.device)

    length = property(lambda self: self.capacity)
    capacity = property(lambda self: self._buffers.shape[2])

    @property
    def positions(self):
        """(1,) or (b, 1): the new token's number among what is no padding."""
        return self.place if self._padding is None else self.place - self._padding

    @property
    def visible(self):
        """(b or 1, 1, 1, capacity) bools: what is no padding, up to the new place."""
        past = self._places <= self.place
        return (past[None] if self._shown is None else past & self._shown)[:, None, None]

    def is_of(self, cache):
        """Whether the cache still has the buffers that it had."""
        return cache._buffers is self._buffers

    def extending(self, b, t, tokens=None, mask=None, past=None):
        """Nothing to note here: the cache's own `extending` stands around each launch."""
        return nullcontext()

    def write(self, layer, k, v):
        """Put the new (b, g, 1, k) at the place; returns the whole buffers, (b, g, capacity, k)."""
        pair = self._buffers.pairs(layer)
        for kept, new in zip(pair, (k, v), strict=True):
            kept[:, :, self.place] = new.data
        return [Tensor.wrap(kept) for kept in pair]

    def turned(self, layer, positions, q, k, v):
        """As the cache's own, in one kernel."""
        pair = self._buffers.pairs(layer)
        given = (q.data, k.data, v.data, positions.cos, positions.sin)
        q = _turned_into(*given, *pair, self.place)
        return [Tensor.wrap(x) for x in (q, *pair)]


class HostSlot(Slot):
    """A slot on the CPU, where what is recorded is C alone: `at` works out the rest anew."""

    def __init__(self, cache):
        super().__init__(cache, np.zeros(1, np.int64))
        rows = 1 if self._padding is None else cache.rows
        self._positions = np.zeros(1 if self._padding is None else (rows, 1), np.int64)
        self._seen = np.zeros((rows, 1, 1, cache.capacity), bool)
        self._seen[:, 0, 0, : cache.length] = cache.mask[:rows]

    positions = property(lambda self: self._positions)
    visible = property(lambda self: self._seen)

    def at(self, place):
        """The new token stands there, and all that is before it has been written."""
        self.place[...] = place
        self._positions[...] = place if self._padding is None else place - self._padding
        self._seen[..., place] = True


class LayerCache(NamedTuple):
    """A cache as one layer of the model sees it."""

    cache: Cache | Slot
    layer: int

    def __call__(self, k, v):
        return self.cache.write(self.layer, k, v)

    def turned(self, positions, q, k, v):
        return self.cache.turned(self.layer, positions, q, k, v)


@accelerated(kernels.into_cache)
def _turned_into(q, k, v, cos, sin, keys, values, place):
    """rope(q); keys and values get rope(k) and v at the place of each row's new token."""
    keys[:, :, place], values[:, :, place] = rope(k, cos, sin), v
    return rope(q, cos, sin)


class _Buffers:
    """keys, values: for each layer (b, g, capacity, k); tokens, mask: (b, capacity) on the host."""

    def __init__(self, keys, values, tokens, mask):
        self.keys, self.values, self.tokens, self.mask = keys, values, tokens, mask
        self.readers = WeakSet()

    @classmethod
    def empty(cls, n_layers, shape, dtype, device):
        dtype, device = dtypes.as_dtype(dtype), backend.check_device(device)
        keys, values = (
            [backend.filled(shape, 0, dtype, device) for _ in range(n_layers)] for _ in range(2)
        )
        tokens = np.full((shape[0], shape[2]), -1)
        return cls(keys, values, tokens, np.ones(tokens.shape, bool))

    shape = property(lambda self: self.keys[0].shape)
    nbytes = property(lambda self: sum(x.nbytes for x in (*self.keys, *self.values)))

    def pairs(self, layer):
        return self.keys[layer], self.values[layer]

    def copy(self, length, capacity=None, rows=None):
        """Buffers of their own with the first `length` places, of these rows."""
        capacity = self.shape[2] if capacity is None else capacity
        rows = slice(None) if rows is None else rows

        def grown(x, axis):
            xp = backend.namespace([x])
            part = x[rows, :, :length] if axis == 2 else x[rows, :length]
            shape = (*part.shape[:axis], capacity, *part.shape[axis + 1 :])
            y = xp.zeros(shape, x.dtype)
            y[(slice(None),) * axis + (slice(length),)] = part
            return y

        return _Buffers(
            [grown(x, 2) for x in self.keys],
            [grown(x, 2) for x in self.values],
            grown(self.tokens, 1),
            grown(self.mask, 1),
        )
