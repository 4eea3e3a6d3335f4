"""EMA: the exponential moving average of the weights, often better than the last ones."""

from contextlib import contextmanager

from .. import dtypes
from ..backend import to_device, to_host


class EMA:
    """a <- decay a + (1 - decay) w after every step, in float32 at least

    decay is at most (1 + n) / (10 + n) after n steps, as in TensorFlow's, so that the first weights
    are forgotten as soon as there are better ones.      Polyak & Juditsky 1992
    """

    def __init__(self, named, decay):
        self.named, self.decay = named, decay
        self.arrays = {name: _wide(p).copy() for name, p in named.items()}

    def update(self, steps, masters):
        """After a step, the `steps`-th; masters: {name: the array that is more exact than p}."""
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        for name, p in self.named.items():
            w = masters.get(name)
            a = self.arrays[name]
            a += share * ((_wide(p) if w is None else w) - a)

    @contextmanager
    def in_place(self):
        """Within it the model has the averaged weights; after it, its own to the bit."""
        own = {name: p.data.copy() for name, p in self.named.items()}
        try:
            for name, p in self.named.items():
                p.assign_(self.arrays[name])
            yield
        finally:
            for name, p in self.named.items():
                p.assign_(own[name])

    def state_dict(self):
        return {name: to_host(a) for name, a in self.arrays.items()}

    def load_state_dict(self, arrays):
        for name, a in self.arrays.items():
            a[...] = to_device(arrays[name], self.named[name].device)


def _wide(p):
    return p.data.astype(dtypes.float32) if p.dtype in dtypes.HALF else p.data
