"""The tape: how a value remembers where it came from, and how gradients flow back.

    Value   an array, and the node that made it
    Node    one recorded operation: its birth number, and how to pull a cotangent back
    Op      a function of arrays, with a vjp (vector-Jacobian product) for each argument

Reverse mode (Linnainmaa 1970) in one sentence: visit the nodes youngest first, hand each the sum
of the cotangents that its users sent, and let its vjps send cotangents to its arguments.
A vjp is written once. Called with arrays it computes; called with Values it is itself recorded,
so the same line serves the second derivative and every one after it.
"""

import inspect
import linecache
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappop, heappush
from itertools import count
from pathlib import Path

import numpy as np
from numpy import ndarray

from . import dtypes
from .backend import namespace
from .dtypes import HALF

_recording = ContextVar("recording", default=True)  # per thread and per asyncio task
_anomalies = ContextVar("anomalies", default=False)
_onlooker = ContextVar("onlooker", default=None)  # see `watching`
_onlookers = 0  # how many contexts look at what ops make; 0 spares every op a look-up
_clock = count(1)


class GraphError(RuntimeError):
    """The tape was asked for something it no longer has, or never had."""


# ------------------------------------------------------------------------------------ values


class Value:
    """An array and its place on the tape.

    node   the operation that made it, None for a leaf or a constant
    birth  its number on the tape's clock; 0 for a constant, which needs no gradient
    """

    __slots__ = ("data", "node", "birth", "grad", "version", "hooks", "__weakref__")

    @classmethod
    def wrap(cls, data, node=None):
        """A Value around `data` itself (no copy), made by `node`."""
        return _value(cls, data, node)

    @classmethod
    def leaf(cls, data, requires_grad=False):
        """A Value that the user owns: it can be trained and assigned to."""
        self = cls.wrap(data)
        self.version = [0]  # shared with every view of the same memory
        self.requires_grad = requires_grad
        return self

    @property
    def requires_grad(self):
        """Whether gradients flow to this value."""
        return self.birth != 0

    @requires_grad.setter
    def requires_grad(self, needed):
        if self.node is not None:
            if not needed:
                raise GraphError("requires_grad: this is a computed value; use .detach()")
        elif not needed:
            self.birth = 0
        elif not dtypes.is_float(self.data.dtype):
            raise TypeError(
                f"requires_grad: a tensor of dtype {self.data.dtype} has no gradient; "
                "make it a float first, as in x.to('float32')"
            )
        elif not self.birth:
            self.birth = next(_clock)
            self.version = [0] if self.version is None else self.version  # it can be assigned to

    @property
    def vertex(self):
        """What stands for this value on the tape: its node, or itself if it is a leaf."""
        return self.node or self

    def backward(self, cotangent=None, retain_graph=False, create_graph=False):
        """Add d(self)/d(leaf), times the cotangent, into `leaf.grad` of every leaf.

        cotangent     shape of self; may be left out when self is a single number
        retain_graph  keep the tape, so that a second backward can run over it
        create_graph  record the backward pass too, for a derivative of the derivative

        GraphError if self is not on the tape, or an earlier backward released a node of it.
        """
        if not self.birth:
            raise GraphError(
                "backward: this value depends on nothing that has requires_grad=True "
                "(or it was made under no_grad)"
            )
        seed = _seed(self, cotangent, create_graph)
        release = not (retain_graph or create_graph)
        found = _pull_back([seed], create_graph, release=release, leaf_hooks=True)
        for leaf, g in _distinct(found, seed).items():
            leaf.grad = g if leaf.grad is None else leaf.grad + g

    def register_hook(self, hook):
        """Call hook(g) with this value's whole cotangent; a result other than None replaces it.

        Returns a function that takes the hook away again. GraphError if no gradient can come.
        """
        if not self.birth:
            raise GraphError("register_hook: this value gets no gradient (requires_grad is False)")
        vertex, entry = self.vertex, (type(self), hook)  # a pair of its own: a hook may come twice
        vertex.hooks = [*(vertex.hooks or ()), entry]

        def remove():
            vertex.hooks = [h for h in vertex.hooks if h is not entry]

        return remove

    def assign_(self, array):
        """Overwrite a leaf's array: the one mutation there is.

        A tape that still needs the old numbers will refuse to run backward. Memory that is not
        ours to write (read-only, memory-mapped, borrowed) is left alone: the leaf gets a new array.
        """
        if self.version is None or self.node is not None:
            raise GraphError("assign_: only a leaf can be assigned to, not a computed value")
        source = array.data if isinstance(array, Value) else array
        source = namespace([self.data]).asarray(source)
        if source.shape != self.data.shape:
            raise ValueError(f"assign_: got shape {source.shape}, expected {self.data.shape}")
        if getattr(self.data.flags, "writeable", True):  # cupy's flags have no such name
            self.data[...] = source
        else:
            self.data = source.astype(self.data.dtype)
        self.version[0] += 1
        return self


_new, _asarray = object.__new__, np.asarray


def _value(kind, data, node):
    self = _new(kind)
    self.data = data
    self.node = node
    self.birth = node.birth if node is not None else 0
    self.grad = self.version = self.hooks = None
    return self


# ------------------------------------------------------------------------------------- nodes


class Node:
    """One recorded operation. Its birth is greater than that of everything it read.

    outputs  None, or (shape, dtype) of each output of an op that returns several
    kind     the class of Value that its outputs are (so that y can join the tape again)
    """

    __slots__ = ("birth", "name", "kind", "outputs", "targets", "saved", "hooks", "where")

    def __init__(self, name, kind, targets, saved, outputs=None):
        self.birth = next(_clock)
        self.name, self.kind, self.outputs = name, kind, outputs
        self.targets, self.saved = targets, saved
        self.hooks = None
        self.where = _user_line() if _onlookers and _anomalies.get() else None

    def pull(self, g, create_graph):
        """Pairs (vertex, cotangent), one for each thing this node read that needs a gradient."""
        raise NotImplementedError

    def recall(self, create_graph):
        """What was saved: arrays, or under create_graph the Values that were."""
        if self.saved is None:
            raise GraphError(
                f"backward through {self.name} a second time: the first one released the graph; "
                "call it with retain_graph=True, or use tg.grad, which never releases"
            )
        found = []
        for x, version in self.saved:
            if isinstance(x, Value):
                if version is not None and x.version[0] != version:
                    raise GraphError(
                        f"backward through {self.name}: a tensor of shape {x.data.shape} that it "
                        "needs was changed by assign_ (or an optimiser step) after the forward "
                        "pass; run the forward pass again"
                    )
                if not create_graph:
                    x = x.data
            found.append(x)
        return found

    def outputs_as_values(self, y):
        """The arrays y as Values that this node made."""
        if self.outputs is None:
            return self.kind.wrap(y, self)
        return tuple(self.kind.wrap(part, Output(self, i)) for i, part in enumerate(y))

    def complete(self, parts, create_graph):
        """The cotangents of several outputs, {place: g}, as a tuple with zeros in the gaps."""
        like = next(iter(parts.values()))
        xp = namespace([like.data if isinstance(like, Value) else like])
        g = [parts.get(i) for i in range(len(self.outputs))]
        for i, (shape, dtype) in enumerate(self.outputs):
            if g[i] is None:
                zeros = xp.zeros(shape, dtype)
                g[i] = self.kind.wrap(zeros) if create_graph else zeros
        return tuple(g)

    def parents(self):
        """The vertices that this node read."""
        return [vertex for vertex, *_ in self.targets]

    def release(self):
        """Let go of what was kept for the backward pass."""
        self.saved, self.targets = None, ()


class OpNode(Node):
    """A call of an Op: `saved` is what its vjps name, `targets` is where their results go."""

    __slots__ = ("plan", "half")

    def pull(self, g, create_graph):
        saved, plan = self.recall(create_graph), self.plan
        if create_graph and plan.output is not None:  # y joins the tape again, through its node
            saved[plan.output] = self.outputs_as_values(saved[plan.output])
        if self.half:  # a half type's derivative is computed in float32 and narrowed once, below
            g, saved = widen(g), [widen(x) for x in saved]
        pulled = []
        for (function, which), (vertex, shape, dtype) in zip(plan.vjps, self.targets, strict=True):
            if len(which) == 1:  # the usual case, spelt out
                gx = function(g, saved[which[0]])
            else:
                gx = function(g, *map(saved.__getitem__, which))
            if gx.shape != shape or gx.dtype is not dtype:
                gx = _match(gx, shape, dtype, self.name)
            pulled.append((vertex, gx))
        return pulled


class Output(Node):
    """One of several outputs of a node. Equal to another that stands for the same output."""

    __slots__ = ("of", "index")

    def __init__(self, of, index):
        self.of, self.index = of, index
        self.birth = of.birth + (index + 1) / (len(of.outputs) + 1)  # after it, before the next
        self.name, self.kind, self.outputs = f"{of.name}[{index}]", of.kind, None
        self.targets, self.saved, self.hooks, self.where = (), (), None, of.where

    def parents(self):
        return [self.of]

    def release(self):
        pass

    def __eq__(self, other):
        return isinstance(other, Output) and self.of is other.of and self.index == other.index

    def __hash__(self):
        return hash((id(self.of), self.index))


# --------------------------------------------------------------------------------------- ops


class Plan:
    """Which vjps run, and what they need kept, when certain arguments require gradients."""

    __slots__ = ("arguments", "keep", "output", "vjps")

    def __init__(self, op, arguments):
        self.arguments = [i for i in arguments if op.rule(i) is not None]
        rules = [(i, *op.rule(i)) for i in self.arguments]
        keep = dict.fromkeys(op.origin(name, i) for i, _, names in rules for name in names)
        place = {origin: k for k, origin in enumerate(keep)}
        self.keep = list(keep)
        self.output = place.get(("output", None))
        self.vjps = [(f, [place[op.origin(n, i)] for n in names]) for i, f, names in rules]


class Op:
    """A differentiable function: `forward` on arrays, and a vjp for each differentiable argument.

    A vjp names, after the cotangent g, what it needs: arguments, options, the output `y`, or
    `<argument>_shape`. Only what it names is kept alive until the backward pass. The vjp of
    arguments `*xs` may name `i`, its place among them, and `xs_shape`, all their shapes.

    view   the output may share its argument's memory
    half   "widen": half types are computed in float32 and the result is narrowed; "native": not;
           "forward": not in the backward pass, where the vjps hand on what they get
    halves None, or a faster way for arrays of a half type: forward(a, ...) -> y, or None if unfit
    """

    halves = None

    def __init__(self, forward, view=False, half="widen"):
        parameters = list(inspect.signature(forward).parameters.values())
        if not parameters or parameters[0].name != "xp":
            raise TypeError(f"@op {forward.__name__}: the first parameter must be xp")
        self.forward, self.view = forward, view
        self.widens, self.widens_back = half != "native", half == "widen"
        self.__name__, self.__doc__ = forward.__name__, forward.__doc__
        self.__qualname__, self.__module__ = forward.__qualname__, forward.__module__
        self.__wrapped__ = forward
        self.options = {p.name: p.default for p in parameters[1:] if p.kind is p.KEYWORD_ONLY}
        arguments = [p for p in parameters[1:] if p.kind is not p.KEYWORD_ONLY]
        self.arguments = [p.name for p in arguments]
        self.variadic = bool(arguments) and arguments[-1].kind is inspect.Parameter.VAR_POSITIONAL
        self.vjps, self.plans = {}, {}

    def vjp(self, **vjps):
        """State the derivatives: `mul.vjp(a=lambda g, b: g * b, b=lambda g, a: g * a)`."""
        known = {"y", *self.arguments, *self.options, *(f"{a}_shape" for a in self.arguments)}
        if self.variadic:
            known = known - {self.arguments[-1]} | {"i"}
        for argument, function in vjps.items():
            names = tuple(inspect.signature(function).parameters)[1:]
            unknown = sorted({argument} - set(self.arguments) | set(names) - known)
            if unknown:
                raise TypeError(
                    f"vjp of {self.__name__}: unknown name {unknown}; "
                    f"besides g there are {sorted(known)}"
                )
            self.vjps[argument] = (function, names)
        self.plans.clear()
        return self

    def rule(self, i):
        """(vjp, names that it needs) of the i-th argument, or None."""
        last = len(self.arguments) - 1
        return self.vjps.get(self.arguments[min(i, last) if self.variadic else i])

    def origin(self, name, i):
        """Where a vjp of the i-th argument finds `name`: (kind, key)."""
        first = len(self.arguments) - 1  # of the arguments *xs
        if name in self.options:
            return "option", name
        if name in self.arguments:
            return "argument", self.arguments.index(name)
        if name == "y":
            return "output", None
        if name == "i":
            return "constant", i - first
        k = self.arguments.index(name.removesuffix("_shape"))
        return ("shapes" if self.variadic and k == first else "shape"), k

    def __call__(self, *args, **options):
        arrays, like, half, on_host = [], None, False, True
        needs, bit = 0, 1  # one bit for each argument: does it need a gradient?
        for a in args:
            if isinstance(a, Value):
                like = a
                if a.birth:
                    needs |= bit
                a = a.data
            kind = type(a)
            if kind is ndarray:
                half = half or a.itemsize == 2
            elif kind is not float and kind is not int:
                half, on_host = half or _is_half(a), False
            arrays.append(a)
            bit <<= 1
        xp = np if on_host else namespace(arrays)
        try:
            if half and self.widens:
                y = self._forward_in_float32(xp, arrays, options)
            elif options or not 1 <= len(arrays) <= 2:
                y = self.forward(xp, *arrays, **options)
            elif len(arrays) == 2:  # the usual cases, spelt out: unpacking costs as much as the sum
                y = self.forward(xp, arrays[0], arrays[1])
            else:
                y = self.forward(xp, arrays[0])
        except (TypeError, ValueError, IndexError) as error:
            named = self._named_options(args)
            if named and named.keys().isdisjoint(options):
                return self(*args[: -len(named)], **named, **options)
            namespace(arrays)  # if they are on different devices, that is the better message
            raise self._explained(error, arrays) from error
        if type(y) is not ndarray:  # numpy's reductions give scalars, its qr a named tuple
            y = tuple(y) if isinstance(y, tuple) else namespace([y]).asarray(y)
        if like is None:
            return y
        if _onlookers:
            _look_at(self, arrays, y)
        recorded = needs and _recording.get()
        node = self._record(args, needs, options, y, like, half) if recorded else None
        if type(y) is tuple:
            return node.outputs_as_values(y) if node else tuple(map(like.wrap, y))
        out = _value(type(like), y, node)
        if self.view and (y.base is not None or y is arrays[0]):  # the same bytes, one version
            out.version = args[0].version
        return out

    def _named_options(self, args):
        """What stands after the last array, by the options' names: softmax(x, -1)."""
        rest = () if self.variadic else args[len(self.arguments) :]
        return dict(zip(self.options, rest, strict=False)) if len(rest) <= len(self.options) else {}

    def _forward_in_float32(self, xp, arrays, options):
        """forward of half types: arguments widened before it, the result narrowed after it."""
        y = self.halves(*arrays) if self.halves else None
        if y is not None:
            return y
        dtype = dtypes.promote(*(a.dtype for a in arrays if hasattr(a, "dtype")))
        y = self.forward(xp, *map(widen, arrays), **options)
        return _narrow(y, dtype) if dtype in HALF else y

    def _explained(self, error, arrays):
        """The same kind of error, naming the op and the shapes that it was given."""
        if isinstance(error, np.linalg.LinAlgError):
            kind = type(error)
        else:
            kind = next(k for k in (IndexError, ValueError, TypeError) if isinstance(error, k))
        names = [self.arguments[min(i, len(self.arguments) - 1)] for i in range(len(arrays))]
        got = ", ".join(
            f"{name} {tuple(a.shape)} {a.dtype}" if hasattr(a, "dtype") else f"{name} {a!r:.40}"
            for name, a in zip(names, arrays, strict=True)
        )
        return kind(f"{self.__name__}: {error} (got {got})")

    def _record(self, args, needs, options, y, like, half):
        """The node of this call, or None if nothing that needs a gradient can get one."""
        plan = self.plans.get(needs)
        if plan is None:
            plan = Plan(self, [i for i in range(len(args)) if needs >> i & 1])
            self.plans[needs] = plan
        if not plan.arguments:
            return None
        if options:
            for name, option in options.items():
                if isinstance(option, Value) and option.birth:
                    raise TypeError(
                        f"{self.__name__}: {name} is a Tensor that requires a gradient, and an "
                        f"option gets none; pass a number, or {name}.detach()"
                    )
        saved = []
        for kind, key in plan.keep:
            version = None
            if kind == "argument":
                x = args[key]
                if isinstance(x, Value) and x.version is not None:
                    version = x.version[0]
            elif kind == "option":
                x = options[key] if options and key in options else self.options[key]
            elif kind == "output":
                x = y
            elif kind == "shape":
                x = args[key]
                x = x.data.shape if isinstance(x, Value) else np.shape(x)
            elif kind == "shapes":
                x = tuple(np.shape(a.data if isinstance(a, Value) else a) for a in args[key:])
            else:
                x = key
            saved.append((x, version))
        targets = []
        for i in plan.arguments:
            x = args[i]
            targets.append((x.node or x, x.data.shape, x.data.dtype))
        outputs = [(part.shape, part.dtype) for part in y] if type(y) is tuple else None
        node = OpNode(self.__name__, type(like), targets, saved, outputs)
        node.plan, node.half = plan, half and self.widens_back
        return node

    def method(self):
        """This op as a method of Values: the same, by a shorter way.

        Whatever the shorter way does not know is handed to the op: another device, half types,
        an operand that is no number, an error that wants explaining.
        """
        method = _unary(self) if len(self.arguments) == 1 else _binary(self)
        method.__name__, method.__doc__ = self.__name__, self.__doc__
        own = list(inspect.signature(self.forward).parameters.values())[1:]
        positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
        method.__signature__ = inspect.Signature([p.replace(kind=positional) for p in own])
        return method

    def __repr__(self):
        return f"<op {self.__name__}{inspect.signature(self.forward)}>"


# The shorter ways. What they do is what Op.__call__ does for arrays on the CPU, written out: there,
# each call of a helper would cost a tenth of the whole.


def _unary(op):
    forward, view, options_of = op.forward, op.view, tuple(op.options)

    def method(x, *rest, **options):
        if rest:  # x.sum(0)
            named = dict(zip(options_of, rest, strict=False))
            if len(named) < len(rest) or not named.keys().isdisjoint(options):
                raise TypeError(f"{op.__name__}: got {rest} by position; options: {options_of}")
            options |= named
        data = x.data
        if type(data) is not ndarray or data.itemsize == 2 or _onlookers:
            return op(x, **options)
        try:
            y = forward(np, data, **options) if options else forward(np, data)
        except Exception:
            return op(x, **options)
        if type(y) is not ndarray:
            y = _asarray(y)  # a sum of everything is a scalar
        recorded = x.birth and _recording.get()
        node = op._record((x,), 1, options, y, x, False) if recorded else None
        out = _new(type(x))
        out.data = y
        out.node = node
        out.birth = node.birth if node else 0
        out.grad = out.hooks = None
        out.version = x.version if view and (y.base is not None or y is data) else None
        return out

    return method


def _binary(op):
    forward = op.forward

    def method(a, b):
        x, needs = a.data, 1 if a.birth else 0
        if type(b) is type(a):
            y = b.data
            usual = type(y) is ndarray and y.itemsize != 2
            if b.birth:
                needs += 2
        else:
            y = b
            usual = type(b) is float or type(b) is int
        if not usual or type(x) is not ndarray or x.itemsize == 2 or _onlookers:
            return op(a, b)
        try:
            z = forward(np, x, y)
        except Exception:
            return op(a, b)
        if type(z) is not ndarray:
            z = _asarray(z)
        node = op._record((a, b), needs, None, z, a, False) if needs and _recording.get() else None
        out = _new(type(a))
        out.data = z
        out.node = node
        out.birth = node.birth if node else 0
        out.grad = out.hooks = out.version = None
        return out

    return method


def op(forward=None, *, view=False, half="widen"):
    """Decorator: a function of arrays, `def f(xp, ...)`, becomes a differentiable operation."""
    if forward is None:
        return lambda forward: Op(forward, view, half)
    return Op(forward, view, half)


# --------------------------------------------------------------------------------- pull back


def _pull_back(seeds, create_graph, *, until=0, wanted=(), release=False, leaf_hooks=False):
    """Reverse mode: visit nodes youngest first: a cotangent is complete when its turn comes.

    seeds   pairs (value, cotangent)
    until   nodes born at this number or before are not opened
    wanted  vertices whose cotangents are reported though they were opened

    Returns {vertex: cotangent}: of leaves, of what `until` kept shut, and of the wanted.
    """
    cotangents, heap, found = {}, [], {}
    pairs = [(value.vertex, g) for value, g in seeds]
    anomalies = _anomalies.get()
    token = _recording.set(create_graph)
    try:
        while True:
            for vertex, g in pairs:
                if vertex in cotangents:
                    if type(g) is ndarray:  # numpy adds into what nobody else holds
                        cotangents[vertex] = cotangents.pop(vertex) + g
                    else:
                        cotangents[vertex] = _sum(vertex, cotangents[vertex], g)
                else:
                    cotangents[vertex] = g
                    if vertex.birth > until and isinstance(vertex, Node):
                        heappush(heap, (-vertex.birth, vertex))
            if not heap:
                break
            node = heappop(heap)[1]
            g = cotangents.pop(node)
            if node.outputs is not None:
                g = node.complete(g, create_graph)
            if node.hooks:
                g = _call_hooks(node, g)
            if wanted and node in wanted:
                found[node] = g
            if type(node) is Output:  # its g is complete, so each place is filled just once
                parts = cotangents.get(node.of)
                pairs = [] if parts is not None else [(node.of, parts := {})]
                parts[node.index] = g
                continue
            pairs = node.pull(g, create_graph)
            if anomalies:
                for _, gx in pairs:
                    _check_finite(f"the backward pass of {node.name}", gx, node.where)
            if release:
                node.release()
        if leaf_hooks:
            for vertex, g in cotangents.items():
                if vertex.hooks:
                    cotangents[vertex] = _call_hooks(vertex, g)
    finally:
        _recording.reset(token)
    found.update(cotangents)
    return found


def _sum(vertex, a, b):
    """a + b, cotangents of one vertex."""
    if type(a) is ndarray or isinstance(a, Value) or not _is_half(a):
        return a + b
    kind = getattr(vertex, "kind", type(vertex))
    return (kind.wrap(a) + kind.wrap(b)).data  # a GPU's halves: as the operation adds them


def replay(function, args, options, g, birth, create_graph):
    """Pull g back through function(*args), run again on the very Values that it was first run on.

    The pull stops at values older than `birth`, the node that stands for the function: so what
    the function closes over gets its gradient too, and nothing beyond it is opened here.
    Returns pairs (vertex, cotangent).
    """
    with recording(True):
        y = function(*args, **options)
    seeds = zip(y, g, strict=True) if isinstance(y, tuple) else [(y, g)]
    seeds = [(part, gy) for part, gy in seeds if part.birth]
    return list(_pull_back(seeds, create_graph, until=birth).items())


def grad(y, xs, cotangent=None, create_graph=False):
    """d(y)/d(x), times the cotangent, for one Tensor x or each of a sequence; in the same form.

    x may be a computed value as well as a leaf. An x that y does not depend on gets zeros.
    The tape is kept. GraphError if x has no place on the tape, ValueError for a cotangent whose
    shape is not y's.
    """
    values = [xs] if isinstance(xs, Value) else list(xs)
    for x in values:
        if not x.birth:
            raise GraphError("grad: an x has requires_grad=False, so nothing was recorded for it")
    if y.birth:
        seed = _seed(y, cotangent, create_graph)
        wanted = {x.vertex for x in values}
        until = min((x.birth for x in values), default=0)  # nothing older can lead to any of them
        found = _pull_back([seed], create_graph, until=until, wanted=wanted, leaf_hooks=True)
        found = _distinct({v: g for v, g in found.items() if v in wanted}, seed, type(y))
    else:
        found = {}
    gradients = []
    for x in values:
        g = found.pop(x.vertex, None)
        if g is None:  # not connected, or asked for twice
            again = next((g for g, z in zip(gradients, values, strict=False) if z is x), None)
            data = namespace([x.data]).zeros_like(x.data) if again is None else again.data.copy()
            g = again if create_graph and again is not None else type(x).wrap(data)
        gradients.append(g)
    return gradients[0] if isinstance(xs, Value) else gradients


def _seed(y, cotangent, create_graph):
    """(y, its cotangent) with the cotangent checked, in y's dtype; an array unless create_graph."""
    xp = namespace([y.data])
    if cotangent is None:
        if y.data.size != 1:
            raise GraphError(
                f"backward of a value of shape {y.data.shape}: a gradient is that of one number; "
                "reduce it (.sum(), .mean()) or give a cotangent of that shape"
            )
        g = xp.ones_like(y.data)
    else:
        g = cotangent.data if isinstance(cotangent, Value) else xp.asarray(cotangent)
        if g.shape != y.data.shape:
            raise ValueError(f"cotangent: got shape {g.shape}, expected {y.data.shape}")
    if create_graph:
        g = cotangent if isinstance(cotangent, Value) else type(y).wrap(g)
        return y, g if g.data.dtype == y.data.dtype else g.astype(y.data.dtype)
    return y, g.astype(y.data.dtype, copy=False)


def _distinct(found, seed, kind=None):
    """Gradients as Values, no two of which share memory, with each other or with the seed."""
    held, results = {id(seed[1])}, {}
    for vertex, g in found.items():
        if not isinstance(g, Value):
            if type(g) is not np.ndarray:
                g = namespace([g]).asarray(g)
            if g.base is not None or id(g) in held:  # a view, or what another one got as well
                g = g.copy()
            held.add(id(g))
            g = (kind or type(vertex)).wrap(g)
        results[vertex] = g
    return results


def _match(g, shape, dtype, name):
    """Undo broadcasting and promotion: sum g over the axes the forward pass stretched, and cast."""
    if g.shape != shape:
        extra = len(g.shape) - len(shape)
        stretched = [i for i, n in enumerate(shape) if n == 1 and g.shape[i + extra] != 1]
        if extra < 0 or any(n not in (1, m) for n, m in zip(shape, g.shape[extra:], strict=True)):
            raise ValueError(
                f"vjp of {name}: returned shape {tuple(g.shape)} for an argument of shape {shape}"
            )
        axes = (*range(extra), *(i + extra for i in stretched))
        g = widen(g).sum(axis=axes, keepdims=True).reshape(shape)  # 4096 half ones add up to 4096
    return g if g.dtype == dtype else g.astype(dtype)


def widen(x):
    """float16 and bfloat16 as float32, anything else as it is."""
    if type(x) is tuple:
        return tuple(map(widen, x))
    return x.astype(dtypes.float32) if _is_half(x) else x


def _narrow(y, dtype):
    """float32 results back in the half type that the arguments had."""
    if isinstance(y, tuple):
        return tuple(_narrow(part, dtype) for part in y)
    return y.astype(dtype) if y.dtype == dtypes.float32 else y


def _is_half(x):
    return getattr(x, "dtype", None) in HALF


def _call_hooks(vertex, g):
    for kind, hook in vertex.hooks:
        value = g if isinstance(g, Value) else kind.wrap(g)
        replaced = hook(value)
        if replaced is not None:
            if replaced.data.shape != value.data.shape:
                raise ValueError(
                    f"hook: returned shape {replaced.data.shape}, expected {value.data.shape}"
                )
            g = replaced if isinstance(g, Value) else replaced.data
    return g


# ------------------------------------------------------------------------------------- modes


@contextmanager
def recording(on):
    """Within it, operations are recorded on the tape (or not)."""
    token = _recording.set(on)
    try:
        yield
    finally:
        _recording.reset(token)


def no_grad():
    """`with tg.no_grad():` nothing is recorded; also a decorator."""
    return recording(False)


def is_recording():
    """Whether operations are being recorded here."""
    return _recording.get()


@contextmanager
def detect_anomaly():
    """Within it, the first NaN or inf raises, naming the op and the line of your code.

    An error raised by a backward pass names the line of the forward call, so the forward pass
    must run within it too.
    """
    with _looking(_anomalies, True):
        yield


def watching(look):
    """`with watching(look):` look(op, arrays, y) is called for every op that is given Tensors."""
    return _looking(_onlooker, look)


@contextmanager
def _looking(variable, value):
    global _onlookers
    token = variable.set(value)
    _onlookers += 1
    try:
        yield
    finally:
        _onlookers -= 1
        variable.reset(token)


def _look_at(op, arrays, y):
    if _anomalies.get():
        _check_finite(op.__name__, y, _user_line())
    look = _onlooker.get()
    if look is not None:
        look(op, arrays, y)


def _check_finite(name, result, where):
    for y in result if type(result) is tuple else (result,):
        y = y.data if isinstance(y, Value) else y
        if dtypes.is_float(y.dtype) and not namespace([y]).isfinite(y).all():
            raise FloatingPointError(
                f"{name} made the first NaN or inf, called at {where}. If a branch of `where` "
                "made it, guard the argument as well as the result: "
                "where(ok, f(where(ok, x, 1)), 0), since 0 * inf is NaN"
            )


_OURS = str(Path(__file__).parent)


def _user_line():
    """The innermost line outside this package, as 'file:line: text'."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    name, line = frame.f_code.co_filename, frame.f_lineno
    return f"{name}:{line}: {linecache.getline(name, line).strip()}"
