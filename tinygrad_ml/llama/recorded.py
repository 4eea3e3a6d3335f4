"""One more token a row, with what Python does for it done once.

For one token Python takes longer than a GPU, which has hundreds of kernels to be launched, and as
long as a CPU. So a call of the model is recorded and from then on done again: on a GPU as a CUDA
graph, on a CPU as a list of the calls of C. What differs from one token to the next, its id and its
place, is written into arrays that the recorded call reads.
"""

import numpy as np

from ..autograd import watching
from ..backend import DeviceError, Graph, to_device
from ..kernels.native import Calls, owner
from ..nn import Module
from ..tensor import Tensor
from .cache import Cache, HostSlot, Slot


class Recorded:
    """tokens (b,) -> logits (b, v), which the next call overwrites: the model's, with this cache.

    A model that cannot be recorded is called as it is: on a GPU one that looks at its numbers; on
    a CPU, where nobody would notice such a look, one with parts that are not this library's, and
    one that numpy computes in part.
    """

    def __init__(self, model, cache):
        self.model, self.cache = model, cache
        self.replay = None
        self.length, self.refused = -1, False  # of the cache, after the last call

    @staticmethod
    def fits(model, cache):
        """Whether the cache is the model's own, without virtual tokens, and the model known."""
        if type(cache) is not Cache:
            return False
        ours = isinstance(model, Module) and all(map(_is_ours, model.modules()))
        return ours or cache.device != "cpu"

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
    """The first call is recorded while it runs. Later ones are done again and anew, until every row
    has had another token than the recorded one; if the two differ in a bit, DeviceError is raised,
    as it is where an op makes its result without C."""

    def __init__(self, model, cache, b):
        self.tokens, self.model, self.slot = np.zeros((b, 1), np.int64), model, HostSlot(cache)
        self.calls = self.logits = None
        self.first, self.same = None, np.ones(b, bool)  # the recorded tokens; which were all so far

    def __call__(self, tokens, place):
        self.tokens[:, 0] = tokens
        self.slot.at(place)
        if self.calls is None:
            self.first = tokens.copy()
            self.calls, self.logits = self._recorded()
            return self.logits
        self.calls.again()
        if self.same.any():
            anew = self._recorded()[1]
            if not np.array_equal(self.logits.data, anew.data):
                raise DeviceError("not all of this model is computed in C")
            self.same &= tokens == self.first
        return self.logits

    def _recorded(self):
        calls = Calls()

        def look(op, arrays, y):
            for part in y if type(y) is tuple else (y,):
                viewed = op.view and owner(part) is owner(arrays[0])
                if not (viewed or calls.made(part)):
                    raise DeviceError(f"{op.__name__}: numpy made its result")

        with calls.noted(), watching(look):
            return calls, self.model(self.tokens, cache=self.slot)[:, -1]


def _is_ours(module):
    """Whether all that it computes is in this library's code."""
    place = type(module).__module__.partition(".")[0]
    return place == __package__.partition(".")[0] and "forward" not in vars(module)
