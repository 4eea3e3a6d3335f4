"""Fused kernels: one pass over the bytes where the definition, which is the meaning, takes many.

`@fused(kernels.rms_norm)` decorates a readable composition of Tensors. Where the kernel supports
the arrays it computes value and first derivative; everywhere else, and for every derivative of
a derivative, the composition itself runs. A kernel is a module with

    supports(xp, *arrays, **options) -> bool
    forward(xp, *arrays, **options) -> y or a tuple, residuals
    backward(xp, needs, g, residuals, *arrays, **options) -> one gradient for each array, or None

where needs[i] says whether the gradient of the i-th array is wanted. Its `on_cuda`, if it has one,
offers the same three for cupy's arrays.
"""

import inspect
import os
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps

import numpy as np

from . import kernels
from .autograd import Node, Value, _check_finite, _match, is_recording, replay
from .autograd import _anomalies as anomalies
from .backend import DeviceError, namespace

_enabled = ContextVar("kernels", default=os.environ.get("TINYGRAD_ML_KERNELS", "") != "off")
_used: dict[str, None] = {}


class FusedNode(Node):
    """A call of a kernel. `saved` holds all arguments: the definition may have to run on them."""

    __slots__ = ("kernel", "definition", "options", "needs", "residuals")

    def pull(self, g, create_graph):
        arguments = self.recall(create_graph)
        if create_graph:  # a kernel is never differentiated: its definition is
            return replay(self.definition, arguments, self.options, g, self.birth, True)
        xp = namespace(arguments)
        g = tuple(map(xp.asarray, g)) if isinstance(g, tuple) else xp.asarray(g)  # no scalars
        found = self.kernel.backward(xp, self.needs, g, self.residuals, *arguments, **self.options)
        wanted = [gx for gx, needed in zip(found, self.needs, strict=True) if needed]
        return [
            (vertex, _match(gx, shape, dtype, self.name))
            for gx, (vertex, shape, dtype) in zip(wanted, self.targets, strict=True)
        ]

    def release(self):
        Node.release(self)
        self.residuals = None


def fused(kernel):
    """Decorator: `definition(*arrays, *, options)` gets a fast twin."""

    def decorate(definition):
        names = _argument_names(definition)
        twins = (kernel, kernels.half.Widened(kernel))
        on_cuda = (kernel.on_cuda,) if hasattr(kernel, "on_cuda") else ()

        @wraps(definition)
        def call(*args, **options):
            if not _enabled.get():
                return definition(*args, **options)
            if not names.isdisjoint(options):  # rope(x, cos=cos, sin=sin)
                args, options = _positional(definition, args, options)
            arrays, like, needs = [], None, []
            for a in args:
                value = isinstance(a, Value)
                needs.append(value and a.birth != 0)
                if value:
                    like = a if like is None else like
                    a = a.data
                arrays.append(a)
            try:
                xp = namespace(arrays)
            except DeviceError:  # the definition knows which of them it may move: indices, targets
                return definition(*args, **options)
            chosen = None
            if _known(xp, arrays, options):
                for twin in twins if xp is np else on_cuda:  # here, and nowhere below
                    if twin.supports(xp, *arrays, **options):
                        chosen = twin
                        break
            if chosen is None:
                return definition(*args, **options)
            y, residuals = chosen.forward(xp, *arrays, **options)
            _used[definition.__name__] = None
            if anomalies.get():
                _check_finite(definition.__name__, y, "its caller")
            if like is None:
                return y
            if True not in needs or not is_recording():
                return tuple(map(like.wrap, y)) if isinstance(y, tuple) else like.wrap(y)
            node = _record(chosen, definition, args, options, needs, y, residuals, type(like))
            return node.outputs_as_values(y)

        call.definition = definition
        call.kernel = kernel
        return call

    return decorate


def _known(xp, arrays, options):
    """Whether a kernel may look at these: arrays of one kind, and no Tensor among the options."""
    for a in arrays:
        if a is not None and not isinstance(a, xp.ndarray):
            return False
    return not any(isinstance(o, Value) for o in options.values()) if options else True


def _argument_names(definition):
    """The parameters that take arrays: those that are not keyword-only."""
    parameters = inspect.signature(definition).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)


def _positional(definition, args, options):
    """The same call with every array argument at its place."""
    bound = inspect.signature(definition).bind(*args, **options)
    return bound.args, bound.kwargs


def _record(kernel, definition, args, options, needs, y, residuals, kind):
    saved = [(a, _version(a)) for a in args]
    targets = [
        (a.vertex, a.data.shape, a.data.dtype) for a, n in zip(args, needs, strict=True) if n
    ]
    outputs = [(part.shape, part.dtype) for part in y] if isinstance(y, tuple) else None
    node = FusedNode(definition.__name__, kind, targets, saved, outputs)
    node.kernel, node.definition, node.options = kernel, definition, options
    node.needs, node.residuals = needs, residuals
    return node


def _version(a):
    return a.version[0] if isinstance(a, Value) and a.version is not None else None


def accelerated(kernel):
    """Decorator for a function of plain arrays (an optimiser's step, a best-matching unit)."""

    def decorate(definition):
        @wraps(definition)
        def call(*arrays, **options):
            if not _enabled.get():
                return definition(*arrays, **options)
            xp = namespace([a for a in arrays if hasattr(a, "dtype")] or _first(arrays))
            chosen = kernel if xp is np else getattr(kernel, "on_cuda", kernel)
            if not chosen.supports(xp, *arrays, **options):
                return definition(*arrays, **options)
            _used[definition.__name__] = None
            return chosen.forward(xp, *arrays, **options)

        call.definition = definition
        call.kernel = kernel
        return call

    return decorate


def _first(arguments):
    """The first array of a list of arrays, or of updates of arrays."""
    listed = arguments[0] if arguments and isinstance(arguments[0], list) else []
    return [getattr(a, "w", a) for a in listed[:1]]


@accelerated(kernels.gather)
def rows_of(table, indices):
    """table[indices] of plain arrays: rows of a table by (...) integers."""
    return table.take(indices, axis=0)


@contextmanager
def use_kernels(on):
    """`with tg.use_kernels(False):` every function runs by its definition."""
    token = _enabled.set(on)
    try:
        yield
    finally:
        _enabled.reset(token)


def kernels_used():
    """The names of the functions whose kernels have run in this process."""
    return sorted(_used)
