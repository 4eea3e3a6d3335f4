"""One more token a row, with what Python does for it done once.

For one token Python takes longer than a GPU, which has hundreds of kernels to be launched, and as
long as a CPU. So a call of the model is recorded and from then on done again: on a GPU as a CUDA
graph, on a CPU as a list of the calls of C. What differs from one token to the next, its id and its
place, is written into arrays that the recorded call reads.
"""

import numpy as np

from ..backend import DeviceError, Graph, to_device
from ..kernels import Calls
from ..tensor import Tensor
from .cache import Cache, HostSlot, Slot


class Recorded:
    """tokens (b,) -> logits (b, v), which the next call overwrites: the model's, with this cache.

    A model that cannot be recorded is called as it is: on a GPU one that looks at its numbers, on
    a CPU one that computes other than by kernels.
    """

    def __init__(self, model, cache):
        self.model, self.cache = model, cache
        self.replay = None
        self.length, self.refused = -1, False  # of the cache, after the last call

    @staticmethod
    def fits(cache):
        """Whether it is the model's own, without virtual tokens."""
        return type(cache) is Cache

    def __call__(self, tokens):
        if not self.refused:
            try:
                return self._recorded(tokens)
            except DeviceError:
                self.refused = True
        return self.model(tokens[:, None], cache=self.cache)[:, -1]

    def _recorded(self, tokens):
        cache = self.cache
        with cache.extending(len(tokens), 1, tokens[:, None]):
            known = self.replay is not None and self.replay.slot.is_of(cache)
            if not known or cache.length != self.length + 1:  # for the buffers that it has now
                kind = OnHost if cache.device == "cpu" else OnDevice
                self.replay = kind(self.model, cache, len(tokens))
            logits = self.replay(tokens, cache.length - 1)
            self.length = cache.length
        return logits


class OnDevice:
    """The first call runs as it is, the second is recorded and launched, as every later one is."""

    def __init__(self, model, cache, b):
        self.now = to_device(np.zeros(b + 1, np.int64), cache.device)  # tokens, then the place
        self.model, self.slot = model, Slot(cache, self.now[b:])
        self.graph, self.logits = Graph(), None

    def __call__(self, tokens, place):
        self.now.set(np.append(tokens, place))
        if self.logits is None:
            with self.graph.memory():
                self.logits = self._step()
        else:
            if self.graph.graph is None:
                with self.graph.recording():
                    self.logits = self._step()
            self.graph.launch()
        return self.logits

    def _step(self):
        tokens = Tensor.wrap(self.now[:-1, None])
        return self.model(tokens, cache=self.slot)[:, -1]


class OnHost:
    """The first call is recorded while it runs. The second is done again and anew: unless both
    agree to the bit (numpy computed something, say) DeviceError is raised."""

    def __init__(self, model, cache, b):
        self.tokens, self.model, self.slot = np.zeros((b, 1), np.int64), model, HostSlot(cache)
        self.calls = self.logits = None
        self.right = False

    def __call__(self, tokens, place):
        self.tokens[:, 0] = tokens
        self.slot.at(place)
        if self.calls is None:
            self.calls, self.logits = self._recorded()
            return self.logits
        self.calls.again()
        if not self.right:
            anew = self._recorded()[1]
            if not np.array_equal(self.logits.data, anew.data):
                raise DeviceError("not all of this model runs by kernels")
            self.right = True
        return self.logits

    def _recorded(self):
        calls = Calls()
        with calls.noted():
            return calls, self.model(self.tokens, cache=self.slot)[:, -1]
