"""Derivatives of functions: value_and_grad, vjp, jvp, jacobian, hessian, hvp, checkpoint.

Each takes a function f of Tensors. They nest: when an argument is itself on the tape (because an
outer derivative is being taken) the inner one is recorded.
"""

import copy

import numpy as np

from . import ops
from .autograd import Node, Value, grad, is_recording, recording, replay
from .backend import namespace
from .tensor import Tensor, tensor


def value_and_grad(f, create_graph=False):
    """value_and_grad(f)(*xs) -> y, grads: f's value, a single number, and d(y)/d(x) of each x.

    grads is one Tensor for one x, a tuple for several.
    """

    def transformed(*xs):
        y, pull = vjp(f, *xs, create_graph=create_graph)
        if y.size != 1:
            raise ValueError(f"value_and_grad: f returned shape {y.shape}, expected one number")
        grads = pull(np.ones(y.shape, y.dtype) if y.device == "cpu" else None)
        return y, grads[0] if len(xs) == 1 else grads

    return transformed


def vjp(f, *xs, create_graph=False):
    """y = f(*xs), and pull(v) -> (J^T v, one Tensor for each x).      v: shape of y"""
    inputs, nested = _inputs(xs)
    with recording(True):
        y = f(*inputs)

    def pull(cotangent=None):
        return tuple(grad(y, inputs, cotangent, create_graph=create_graph or nested))

    return y, pull


def jvp(f, xs, vs, create_graph=False):
    """y = f(*xs), and J v, the derivative of f in the direction v.      vs: shapes of xs

    J^T u is linear in u, and its derivative with respect to u, in the direction v, is J v: so no
    rules but the vjps are needed (Townsend's double-backward trick).
    """
    xs, vs = tuple(xs), tuple(vs)
    if len(xs) != len(vs):
        raise ValueError(f"vs: got {len(vs)} tangents, expected {len(xs)}, one for each x")
    inputs, nested = _inputs(xs)
    with recording(True):
        y = f(*inputs)
        u = Tensor.leaf(namespace([y.data]).zeros_like(y.data), requires_grad=True)
        pulled = grad(y, inputs, u, create_graph=True)  # J^T u
        total = None
        for p, v, x in zip(pulled, vs, inputs, strict=True):
            v = v if isinstance(v, Tensor) else Tensor.wrap(namespace([x.data]).asarray(v))
            if v.shape != x.shape:
                raise ValueError(f"vs: got a tangent of shape {v.shape}, expected {x.shape}")
            term = ops.sum(p * v.astype(x.dtype))
            total = term if total is None else total + term
    return y, grad(total, u, create_graph=create_graph or nested)


def jacobian(f, create_graph=False):
    """jacobian(f)(*xs) -> d(y)/d(x) of shape y.shape + x.shape; a tuple for several xs."""

    def transformed(*xs):
        inputs, nested = _inputs(xs)
        record = create_graph or nested
        with recording(True):
            y = f(*inputs)
        rows = []
        for i in range(y.size):
            unit = np.zeros(y.size, y.dtype)
            unit[i] = 1
            unit = tensor(unit.reshape(y.shape), device=y.device)
            rows.append(grad(y, inputs, unit, create_graph=record))
        with recording(record):
            parts = tuple(_stacked(y, x, [row[k] for row in rows]) for k, x in enumerate(inputs))
        return parts[0] if len(xs) == 1 else parts

    return transformed


def _stacked(y, x, rows):
    if not rows:
        return Tensor.wrap(namespace([x.data]).zeros(y.shape + x.shape, x.dtype))
    flat = ops.concatenate(*[ops.reshape(r, shape=(1, *x.shape)) for r in rows])
    return ops.reshape(flat, shape=y.shape + x.shape)


def hessian(f, create_graph=False):
    """hessian(f)(x) -> d2(y)/d(x)2 of shape x.shape + x.shape; for several xs a tuple of tuples."""

    def transformed(*xs):
        def gradient_of(k):
            def gradient(*inputs):
                return grad(_single(f(*inputs)), list(inputs), create_graph=True)[k]

            return gradient

        rows = [jacobian(gradient_of(k), create_graph=create_graph)(*xs) for k in range(len(xs))]
        return rows[0] if len(xs) == 1 else tuple(rows)

    return transformed


def hvp(f, xs, vs, create_graph=False):
    """The Hessian of f times vs, one Tensor for each x, by two backward passes (Pearlmutter)."""
    xs = (xs,) if isinstance(xs, Value | np.ndarray) else tuple(xs)
    vs = (vs,) if isinstance(vs, Value | np.ndarray) else tuple(vs)
    inputs, nested = _inputs(xs)
    with recording(True):
        gradients = grad(_single(f(*inputs)), inputs, create_graph=True)
        slope = None
        for g, v in zip(gradients, vs, strict=True):
            term = ops.sum(g * v)
            slope = term if slope is None else slope + term
    found = tuple(grad(slope, inputs, create_graph=create_graph or nested))
    return found[0] if len(xs) == 1 else found


def _single(y):
    if y.size != 1:
        raise ValueError(f"f returned shape {y.shape}, expected a single number")
    return y


def _inputs(xs):
    """The xs as values whose gradients can be told apart, and whether an outer tape is watching."""
    inputs, nested = [], False
    for x in xs:
        if isinstance(x, Value) and x.requires_grad and is_recording():
            nested = True
            inputs.append(ops.reshape(x, shape=x.shape))  # the same value, at a place of its own
        else:
            x = x if isinstance(x, Value) else tensor(x)
            inputs.append(Tensor.leaf(x.data, requires_grad=True))
    return inputs, nested


# -------------------------------------------------------------------------- rematerialisation


class CheckpointNode(Node):
    """A call of which only the arguments are kept: the backward pass runs it again."""

    __slots__ = ("function", "options")

    def pull(self, g, create_graph):
        arguments = [copy.deepcopy(a) if _is_generator(a) else a for a in self.recall(True)]
        options = {k: copy.deepcopy(v) if _is_generator(v) else v for k, v in self.options.items()}
        return replay(self.function, arguments, options, g, self.birth, create_graph)


def checkpoint(f, *args, **options):
    """f(*args, **options), keeping no intermediate values: the backward pass computes them again.

    The same bits as f itself, gradients to any order, also of what f closes over. numpy
    Generators among the arguments are copied, so that the second run draws the same numbers.
    f returns a Tensor or a tuple of Tensors. Memory for time: Chen et al. 2016.
    """
    if not is_recording():
        return f(*args, **options)
    saved = [copy.deepcopy(a) if _is_generator(a) else a for a in args]
    kept = {k: copy.deepcopy(v) if _is_generator(v) else v for k, v in options.items()}
    y = f(*args, **options)
    parts = y if isinstance(y, tuple) else (y,)
    if not any(part.requires_grad for part in parts):
        return y
    versions = [a.version[0] if isinstance(a, Value) and a.version else None for a in saved]
    targets = [(a.vertex,) for a in saved if isinstance(a, Value) and a.requires_grad]
    outputs = [(part.shape, part.dtype) for part in parts] if isinstance(y, tuple) else None
    name = getattr(f, "__name__", type(f).__name__)
    node = CheckpointNode(f"checkpoint({name})", type(parts[0]), targets,
                          list(zip(saved, versions, strict=True)), outputs)  # fmt: skip
    node.function, node.options = f, kept
    data = tuple(part.data for part in parts)
    return node.outputs_as_values(data if isinstance(y, tuple) else data[0])


def _is_generator(x):
    return isinstance(x, np.random.Generator)
