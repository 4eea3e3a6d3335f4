"""Optimisers: SGD, Adam, AdamW; gradient clipping; learning-rate schedules.

    optimizer = optim.AdamW(model.named_parameters(), lr=3e-4, schedule=warmup_cosine(100, 2000))
    for tokens, targets in batches:
        model.loss(tokens, targets).backward()
        optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

Parameters are changed in place. A tape that was recorded before a step and still needs the old
numbers refuses to run backward after it.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from . import dtypes, kernels
from .backend import device_of, is_recorded, namespace, to_device, to_host
from .fused import accelerated
from .tensor import Tensor

# --------------------------------------------------------------------------------- optimisers


def matrices(parameter):
    """Whether weight decay applies: to matrices, and not to gains and biases."""
    return parameter.ndim >= 2


class Update(NamedTuple):
    """What one parameter's step needs: its array, gradient, slots and numbers."""

    w: Any
    g: Any
    slots: list
    group: dict
    lr: float
    decay: float
    steps: int
    numbers: Any = None  # of AdamW in a CUDA graph: its factors, on the device
    rounded: Any = None  # of AdamW on a GPU: the parameter's half array, to be written along with w

    def factors(self, b1, b2):
        """The numbers of Adam's formula that change from step to step: see there."""
        return factors(self.lr, self.decay, b1, b2, self.steps)


class Optimizer:
    """What all optimisers share. One of its own states `slots`, `defaults` and `update`.

    parameters  Tensors, or pairs (name, Tensor) as named_parameters() gives them, or groups:
                dicts of "parameters" and the settings that differ for them, {"lr": 1e-4, ...}
    schedule    step -> factor on every group's lr, with step counted from 0
    decays      parameter -> whether weight_decay applies to it
    master      "float32": half-typed parameters are kept in float32 from step to step, and those
                in the model are these rounded. None: only the rounded ones are kept, and a step
                smaller than their spacing is lost.

    A parameter that has no gradient (frozen, or not used) is skipped. Slots of half-typed
    parameters are float32. TypeError or ValueError for what is no trainable leaf, for one that
    comes twice, and for an unknown setting.
    """

    slots: tuple[str, ...] = ()  # names of the arrays kept for each parameter

    def __init__(self, parameters, *, schedule=None, decays=matrices, master="float32", **settings):
        self.schedule, self.decays = schedule or constant(), decays
        if master is not None and dtypes.as_dtype(master) != dtypes.float32:
            raise ValueError(f"master: got {master!r}, expected 'float32' or None")
        self.master = master
        self.groups = _groups(parameters, settings)
        for group in self.groups:
            self.check(group)
        self.steps = 0
        self.state = {}  # name of a parameter: {slot: array, "steps": number of its updates}
        self.versions = {}  # name of a parameter: its version when its master was last equal to it

    def check(self, group):
        """ValueError for a setting that makes no sense."""
        _expect("lr", group["lr"], 0)
        _expect("weight_decay", group["weight_decay"], 0)

    def update(self, xp, w, g, slots, group, lr, decay, steps):
        """Change the array w and the slots in place; g is the gradient, in w's dtype.

        The arrays are pieces of the whole, so only what works entry by entry can stand here.
        steps counts this parameter's updates, this one included; decay is 0 where none applies.
        """
        raise NotImplementedError

    def step(self):
        """Update every parameter that has a gradient; ValueError before it if one does not fit."""
        factor = self.schedule(self.steps)
        ready = [(name, p, group) for name, p, group in self._each() if p.grad is not None]
        for name, p, _ in ready:
            if p.grad.shape != p.shape:
                raise ValueError(f"step: {name} is {p.shape}, its gradient {p.grad.shape}")
        for some in _turns(ready):
            updates = [
                self._update(name, p, group, group["lr"] * factor) for name, p, group in some
            ]
            self.update_all(updates)
            for (name, p, _), done in zip(some, updates, strict=True):
                self.state[name]["steps"] = done.steps
                if done.w is p.data or done.rounded is p.data:
                    p.version[0] += 1
                else:
                    p.assign_(done.w)
                self.versions[name] = p.version[0]
        self.steps += 1

    def update_all(self, updates):
        """Make every Update, a few rows at a time."""
        for u in updates:
            xp = namespace([u.w, u.g, *u.slots])
            for w, g, *slots in _pieces(xp, u.w, u.g, *u.slots):
                self.update(xp, w, g, slots, u.group, u.lr, u.decay, u.steps)

    def _update(self, name, p, group, lr):
        state = self._state(name, p)
        w, slots = self._weights(name, p, state), [state[slot] for slot in self.slots]
        g = self._gradient(p, w)
        namespace([w, g, *slots])  # refuses two devices
        decay = group["weight_decay"] if self.decays(p) else 0.0
        return Update(w, g, slots, group, lr, decay, state["steps"] + 1)

    def _gradient(self, p, w):
        """Its array, in w's dtype."""
        return p.grad.data.astype(w.dtype, copy=False)

    def _state(self, name, p):
        """The slots of a parameter, zero before its first step."""
        if name not in self.state:
            xp = namespace([p.data])
            dtype = _working_dtype(p)
            zeros = {slot: xp.zeros_like(p.data, dtype=dtype) for slot in self.slots}
            self.state[name] = {"steps": 0, **zeros}
            if p.dtype in dtypes.HALF and self.master:
                self.state[name]["master"] = p.data.astype(dtypes.float32)
        return self.state[name]

    def _weights(self, name, p, state):
        """The array that a step changes: the master, or the parameter's own if it can be written.

        Somebody else may have assigned to the parameter since: then the master starts from that,
        unless it still rounds to the very same numbers.
        """
        if "master" in state:
            master = state["master"]
            changed = self.versions.get(name) != p.version[0]
            if changed and not (master.astype(p.dtype) == p.data).all():
                master[...] = p.data
            return master
        w = p.data.astype(_working_dtype(p), copy=False)
        return w if getattr(w.flags, "writeable", True) else w.copy()  # cupy's have no such name

    def zero_grad(self):
        """Forget the gradients of its parameters."""
        for _, p, _ in self._each():
            p.grad = None

    def rates(self):
        """The learning rate that the next step uses, for each group."""
        return [group["lr"] * self.schedule(self.steps) for group in self.groups]

    def _each(self):
        for group in self.groups:
            for name, p in group["parameters"]:
                yield name, p, group

    # --- to stop and go on

    def state_dict(self):
        """{name: host array or number}: all that changes from step to step, as a copy.

        Settings (lr, betas, ...) are the constructor's and are not in it.
        """
        found = {"steps": self.steps}
        for name, state in self.state.items():
            for slot, x in state.items():
                found[f"{name}.{slot}"] = x if slot == "steps" else to_host(x).copy()
        return found

    def load_state_dict(self, saved):
        """Go on exactly where the other stopped, whose state_dict() this is.

        ValueError, before anything is changed, naming every missing, unexpected and misshapen
        entry. Arrays are moved to their parameter's device.
        """
        state, expected, problems = {}, {"steps"}, []
        for name, p, _ in self._each():
            if f"{name}.steps" not in saved:  # it was never updated
                continue
            half = p.dtype in dtypes.HALF and self.master
            shapes = {"steps": ()} | dict.fromkeys(self.slots + ("master",) * bool(half), p.shape)
            expected |= {f"{name}.{slot}" for slot in shapes}
            problems += _misfits(name, shapes, saved)
            state[name] = (p, list(shapes))
        missing = ["steps is missing"] * ("steps" not in saved)
        problems += missing + [f"{key} is unexpected" for key in saved if key not in expected]
        if problems:
            raise ValueError("optimiser state: " + "\n                 ".join(problems))
        self.steps = int(saved["steps"])
        self.state = {
            name: {slot: self._restored(saved[f"{name}.{slot}"], slot, p) for slot in slots}
            for name, (p, slots) in state.items()
        }
        self.versions = {}

    def _restored(self, x, slot, p):
        if slot == "steps":
            return int(x)
        return to_device(x, p.device).astype(_working_dtype(p))  # always a copy


class SGD(Optimizer):
    """v = momentum v + g;  w = w - lr v,  with g = dL/dw + weight_decay w

    nesterov: w = w - lr (g + momentum v), the gradient looked up one step ahead.
    Sutskever et al. 2013, with lr outside of v, as in PyTorch: a new lr acts at once.
    """

    def __init__(self, parameters, lr, momentum=0.0, nesterov=False, weight_decay=0.0, **shared):
        super().__init__(
            parameters,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            **shared,
        )
        if any(group["momentum"] for group in self.groups):
            self.slots = ("velocity",)

    def check(self, group):
        super().check(group)
        _expect("momentum", group["momentum"], 0, 1)
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("nesterov: needs a momentum above 0")

    def update(self, xp, w, g, slots, group, lr, decay, steps):
        if decay:
            g = g + decay * w
        if slots:
            (v,) = slots
            v *= group["momentum"]
            v += g
            g = g + group["momentum"] * v if group["nesterov"] else v
        w -= lr * g


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = w - lr m' / (sqrt(v') + eps)

    with g = dL/dw + weight_decay w, and m' = m / (1 - b1^t), v' = v / (1 - b2^t), which undo the
    start from 0 at this parameter's t-th update.      Kingma & Ba 2015, algorithm 1
    """

    slots = ("m", "v")

    def __init__(
        self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, **shared
    ):
        super().__init__(
            parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **shared
        )

    def check(self, group):
        super().check(group)
        for beta in group["betas"]:
            _expect("betas", beta, 0, 1)
        _expect("eps", group["eps"], 0)

    def update_all(self, updates):
        for settings, some in _by_settings([self.plain(u) for u in updates]):
            adamw(some, **settings)

    def _gradient(self, p, w):
        return p.grad.data if _in_halves(p) else super()._gradient(p, w)

    def plain(self, u):
        """The update without what AdamW does not do: a decay within the gradient."""
        return u._replace(g=u.g + u.decay * u.w, decay=0.0) if u.decay else u

    # --- in a CUDA graph, where a number of Python's would stay what it was (train/captured.py)

    numbers = None  # {name: array on the device} while the optimiser is part of a graph

    def _update(self, name, p, group, lr):
        u = super()._update(name, p, group, lr)
        if _in_halves(p):
            u = u._replace(rounded=p.data)
        if self.numbers is None or not is_recorded():
            return u
        if name not in self.numbers:
            raise ValueError(f"step: {name} had no gradient in the first call, and has one now")
        return u._replace(numbers=self.numbers[name])

    def to_graph(self):
        """Keep what changes from step to step on the device, for all that has been updated."""
        self.tables, self.numbers = {}, {}  # {dtype: (names, an array of three numbers for each)}
        for name, p, _ in self._each():
            if name in self.state:
                self._weights(name, p, self.state[name])  # a recording cannot look for changes
                self.versions[name] = p.version[0]
                kind = self.state[name]["m"].dtype
                self.tables.setdefault(kind, []).append(name)
        for kind, names in self.tables.items():
            xp = namespace([self.state[names[0]]["m"]])
            self.tables[kind] = names, xp.zeros((len(names), 3), kind)
            self.numbers |= dict(zip(names, self.tables[kind][1], strict=True))

    def send_numbers(self):
        """The numbers of the step that was counted last, to the device; nothing waits."""
        factor, found = self.schedule(self.steps - 1), {}
        for name, p, group in self._each():
            if name in self.numbers:
                decay = group["weight_decay"] if self.decays(p) and type(self) is AdamW else 0.0
                steps, betas = self.state[name]["steps"], group["betas"]
                found[name] = factors(group["lr"] * factor, decay, *betas, steps)
        for kind, (names, table) in self.tables.items():
            numbers = np.array([found[name] for name in names], kind)
            table[...] = to_device(numbers, device_of(table))

    def count(self):
        """A step that a graph makes: what Python knows of it."""
        self.steps += 1
        for name, p, _ in self._each():
            if name in self.numbers:
                self.state[name]["steps"] += 1
                p.version[0] += 1
                self.versions[name] = p.version[0]


def factors(lr, decay, b1, b2, steps):
    """keep = 1 - lr decay, rate = lr / (1 - b1^t), correction = 1 / sqrt(1 - b2^t)"""
    return 1 - lr * decay, lr / (1 - b1**steps), (1 - b2**steps) ** -0.5


def _by_settings(updates):
    """Pairs ({betas, eps}, the updates of one dtype that share them)."""
    found = {}
    for u in updates:
        key = (tuple(u.group["betas"]), u.group["eps"], u.w.dtype, u.g.dtype)
        found.setdefault(key, []).append(u)
    return [({"betas": betas, "eps": eps}, some) for (betas, eps, *_), some in found.items()]


@accelerated(kernels.adamw)
def adamw(updates, *, betas, eps):
    """One step of AdamW for each Update, whose slots are m and v, in place."""
    for u in updates:
        xp = namespace([u.w, u.g, *u.slots])
        for w, g, m, v in _pieces(xp, u.w, u.g, *u.slots):
            plain, g = u.factors(*betas), g.astype(w.dtype, copy=False)
            _descend(w, g, m, v, betas, eps, u.decay, *(plain if u.numbers is None else u.numbers))
        if u.rounded is not None:
            u.rounded[...] = u.w


def _descend(w, g, m, v, betas, eps, decay, keep, rate, correction):
    b1, b2 = betas
    if decay:
        w *= keep
    m *= b1
    m += (1 - b1) * g
    square = g * g  # numpy reuses the memory of large temporaries by itself, not of a piece's
    square *= 1 - b2
    v *= b2
    v += square
    spread = v**0.5
    spread += eps / correction  # divided by it once, not in every entry
    step = (rate / correction) * m
    step /= spread
    w -= step


class AdamW(Adam):
    """w = w - lr weight_decay w, then Adam's step on the gradient alone

    The decay is not divided by sqrt(v), as it would be inside of the gradient.
    Loshchilov & Hutter 2019, algorithm 2; as in PyTorch, lr multiplies the decay too.
    """

    def __init__(
        self, parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, **shared
    ):
        super().__init__(parameters, lr, betas, eps, weight_decay, **shared)

    def plain(self, u):
        return u


PIECE = 65536  # entries: a piece's temporaries stay in the cache, which beats whole arrays by half


def _pieces(xp, *arrays):
    """The same rows of each of these arrays of one shape, a few at a time; on a GPU all at once."""
    shape = arrays[0].shape
    if xp is not np or arrays[0].size <= PIECE:
        yield arrays
        return
    rows = max(1, PIECE * shape[0] // arrays[0].size)
    for i in range(0, shape[0], rows):
        yield [a[i : i + rows] for a in arrays]


COPIES = 1 << 20  # entries: of half gradients the float32 copies that are there at a time


def _turns(ready):
    """The (name, parameter, group) in lists, each updated at once: all, but few of half types."""
    turn, copied = [], 0
    for entry in ready:
        p = entry[1]
        copied += p.size if _working_dtype(p) != p.dtype and not _in_halves(p) else 0
        if copied > COPIES and turn:
            yield turn
            turn, copied = [], p.size
        turn.append(entry)
    if turn:
        yield turn


def _in_halves(p):
    """Whether AdamW's kernel takes its gradients and leaves it as they are, in a half type."""
    return p.dtype in dtypes.HALF and namespace([p.data]) is not np


def _working_dtype(p):
    """The dtype in which a parameter's update is computed and its slots are kept."""
    return dtypes.float32 if p.dtype in dtypes.HALF else p.dtype


def _groups(parameters, settings):
    """A list of dicts: "parameters", the pairs (name, Tensor), and every setting."""
    given = list(parameters)
    if not given:
        raise ValueError("parameters: got none")
    given = given if isinstance(given[0], dict) else [{"parameters": given}]
    groups, seen, names = [], set(), set()
    for group in given:
        unknown = sorted(group.keys() - settings.keys() - {"parameters"})
        if unknown or "parameters" not in group:
            expected = f"expected 'parameters' and any of {sorted(settings)}"
            raise TypeError(f"group: unknown setting {unknown}; {expected}")
        pairs = []
        for entry in group["parameters"]:
            name, p = entry if isinstance(entry, tuple) else (str(len(seen)), entry)
            _check_parameter(name, p)
            if id(p) in seen or name in names:
                raise ValueError(f"parameters: {name} comes twice")
            seen.add(id(p))
            names.add(name)
            pairs.append((name, p))
        groups.append(settings | group | {"parameters": pairs})
    return groups


def _check_parameter(name, p):
    if not isinstance(p, Tensor):
        raise TypeError(f"parameters: {name} is {type(p).__name__}, expected a Tensor")
    if p.node is not None or p.version is None:
        raise ValueError(
            f"parameters: {name} of shape {p.shape} is a computed value, which nothing can assign "
            "to; make a leaf of it: tg.tensor(x, requires_grad=True)"
        )


def _expect(name, x, low, below=math.inf):
    if not low <= x < below:
        raise ValueError(f"{name}: got {x}, expected {low} <= {name} < {below}")


def _misfits(name, shapes, saved):
    """A line for each slot of one parameter that is missing from `saved` or misshapen there."""
    problems = []
    for slot, shape in shapes.items():
        key = f"{name}.{slot}"
        if key not in saved:
            problems.append(f"{key} {shape} is missing")
        elif getattr(saved[key], "shape", ()) != shape:
            problems.append(f"{key} is {saved[key].shape}, expected {shape}")
    return problems


# ----------------------------------------------------------------------------------- clipping


def clip_grad_norm(parameters, max_norm):
    """Scale all gradients by min(1, max_norm / norm), where norm = sqrt(sum of all g^2).

    Returns the norm as it was before, computed in float64.      Pascanu et al. 2013
    If it is NaN or inf no scaling can help: the gradients are dropped (set to None), so that the
    optimiser's next step changes no parameter, and the returned norm says so.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm: got {max_norm}, expected a number above 0")
    trained = [p for p in parameters if p.grad is not None]
    norm = grad_norm(trained)
    if not math.isfinite(norm):
        for p in trained:
            p.grad = None
    elif norm > max_norm:
        _scale(trained, max_norm / norm)
    return norm


def scale_gradients(parameters, max_norm):
    """clip_grad_norm without looking: the norm stays on the device, and nothing waits for it.

    Returns it, a 0-d array in float64. If it is NaN or inf every gradient becomes 0.
    """
    trained = [p for p in parameters if p.grad is not None]
    gradients = [p.grad.data for p in trained if p.size]
    xp = namespace(gradients)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = xp.sqrt(squares(gradients, scale=1.0).sum())
        _scale(trained, xp.where(xp.isfinite(norm), xp.minimum(1, max_norm / norm), 0))
    return norm


def _scale(trained, factor):
    """New gradients, for others may hold the old ones."""
    trained = [p for p in trained if p.size]
    for p, g in zip(trained, scaled([p.grad.data for p in trained], factor=factor), strict=True):
        p.grad = Tensor.wrap(g)


@accelerated(kernels.scaled)
def scaled(arrays, *, factor):
    """Each array times the factor, rounded once; zeros if it is 0 (0 times inf would be NaN)."""
    xp = namespace(arrays)
    known = type(factor) is float and factor > 0  # not so a number on a device
    times = lambda x: x * factor if known else xp.where(factor == 0, 0, x * factor)
    return [times(x).astype(x.dtype, copy=False) for x in arrays]


def grad_norm(parameters):
    """sqrt(sum of g^2) over all gradients, computed in float64, without overflow."""
    gradients = [p.grad.data for p in parameters if p.grad is not None and p.size]
    norm = _norm(gradients, 1.0)
    if norm in (0.0, math.inf):  # perhaps only the squares left float64's range
        largest = max((float(abs(g).max()) for g in gradients), default=0.0)
        if 0 < largest < math.inf:
            norm = largest * _norm(gradients, largest)
    return norm


def _norm(gradients, scale):
    with np.errstate(over="ignore"):  # grad_norm sees the inf and divides first
        return math.sqrt(float(squares(gradients, scale=scale).sum()))


@accelerated(kernels.squares)
def squares(arrays, *, scale):
    """Numbers in float64 that sum to the sum of (x / scale)^2 over all arrays."""
    found = []
    for x in arrays:
        for (piece,) in _pieces(namespace([x]), x):
            wide = piece.astype(dtypes.float64).ravel()
            if scale != 1.0:
                wide /= scale
            found.append(wide @ wide)
    return namespace(arrays).stack(found)  # of a GPU's arrays: nobody has waited for it yet


# ---------------------------------------------------------------------------------- schedules
#
# A schedule is a function: step, counted from 0 -> factor on the learning rate.


def constant():
    """1"""
    return lambda step: 1.0


def warmup_linear(warmup, total, floor=0.0):
    """From 0 up to 1 in `warmup` steps, then in a line down to `floor` at step `total`."""
    return _after_warmup(warmup, total, lambda t: 1 - (1 - floor) * t)


def warmup_cosine(warmup, total, floor=0.0):
    """From 0 up to 1 in `warmup` steps, then floor + (1 - floor) (1 + cos(pi t)) / 2

    with t from 0 to 1 at step `total`.      Loshchilov & Hutter 2017, eq. 5, one period
    """
    return _after_warmup(
        warmup, total, lambda t: floor + (1 - floor) * (1 + math.cos(math.pi * t)) / 2
    )


def wsd(warmup, total, decay, floor=0.0):
    """Warm-up, stable, decay: up to 1 in `warmup` steps, 1, then in the last `decay` steps of
    `total` in a line down to `floor`.      Hu et al. 2024 (MiniCPM)
    """
    if not 0 <= decay <= total - warmup:
        raise ValueError(f"decay: got {decay}, expected 0 to total - warmup = {total - warmup}")
    warm = _after_warmup(warmup, total, lambda t: 1.0)

    def factor(step):
        t = min(1.0, max(0.0, (step - (total - decay)) / max(decay, 1)))
        return warm(step) * (1 - (1 - floor) * t)

    return factor


def _after_warmup(warmup, total, curve):
    """(step + 1) / warmup, so that the first step moves; then curve(t) with t from 0 to 1."""
    if not 0 <= warmup <= total:
        raise ValueError(f"warmup: got {warmup}, expected 0 to total = {total}")

    def factor(step):
        if step < warmup:
            return (step + 1) / warmup
        return curve(min(1.0, (step - warmup) / max(total - warmup, 1)))

    return factor
