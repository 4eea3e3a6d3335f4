"""One more token a row as a CUDA graph: what Python does for it is done once.

A GPU takes less time for a token than Python takes to launch its hundreds of kernels. So the first
call runs as it is, the second is recorded (backend.Graph) and launched, as every later one is. What
differs from one token to the next, its id and its place, is sent ahead of each launch.
"""

import numpy as np

from ..backend import DeviceError, Graph, to_device
from ..tensor import Tensor
from .cache import Cache, Slot


class Recorded:
    """tokens (b,) -> logits (b, v), which the next call overwrites: the model's, with this cache.

    A model that cannot be recorded, because it looks at its numbers, is called as it is.
    """

    def __init__(self, model, cache):
        self.model, self.cache = model, cache
        self.graph = self.slot = self.logits = None
        self.length, self.refused = -1, False  # of the cache, after the last call

    @staticmethod
    def fits(cache):
        """Whether it is a cache on a GPU, and the model's own, without virtual tokens."""
        return type(cache) is Cache and cache.device != "cpu"

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
            if self.slot is None or not self.slot.is_of(cache) or cache.length != self.length + 1:
                self._begin(len(tokens))
            self.now.set(np.append(tokens, cache.length - 1))
            if self.logits is None:
                with self.graph.memory():
                    self.logits = self._step()
            else:
                if self.graph.graph is None:
                    with self.graph.recording():
                        self.logits = self._step()
                self.graph.launch()
            self.length = cache.length
        return self.logits

    def _begin(self, b):
        """For the buffers that the cache has now."""
        self.now = to_device(np.zeros(b + 1, np.int64), self.cache.device)  # tokens, then the place
        self.slot = Slot(self.cache, self.now[b:])
        self.graph, self.logits = Graph(), None

    def _step(self):
        tokens = Tensor.wrap(self.now[:-1, None])
        return self.model(tokens, cache=self.slot)[:, -1]
