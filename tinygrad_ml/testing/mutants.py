"""Is the checker good enough? Make every rule of the library wrong in many ways, and count.

A mutant is a vjp with one mistake built in, or a kernel's backward pass with one of its gradients
spoilt. It is killed when some case of the function's spec raises; a survivor is a mistake that the
suite would let through, or a mutant that is no mistake: those stand in EQUIVALENT, each with its
reason.

    python -m tinygrad_ml.testing.mutants [--jobs N] [OP ...]     which case killed which mutant
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np

from .. import arrays, functional, kernels, linalg, ops, quant
from ..autograd import Op, Value
from . import registry
from .strategies import Draw

MODULES = (ops, arrays, functional, linalg, quant)
MUTATIONS: dict = {}


class Rule(NamedTuple):
    """One derivative that can be made wrong.

    vjp    vjp(g, *saved) -> gradient; `names` says what is saved
    plant  plant(wrong vjp): a context in which the library computes by it
    """

    spec: registry.OpSpec
    argument: str
    vjp: Callable
    names: tuple
    plant: Callable
    numbers: bool = True  # whether numbers are saved, by which a mistake can be told
    recorded: bool = True  # whether the vjp itself can be differentiated

    @property
    def name(self):
        """e.g. ops.mul.a"""
        return f"{self.spec.name}.{self.argument}"


class Verdict(NamedTuple):
    """What became of one mutant: killed by the case of this seed, or None if it survived."""

    rule: str
    mutation: str
    seed: int | None


def mutation(make):
    """Enter make(vjp, names it saves) -> wrong vjp, or None where the mistake cannot be made."""
    MUTATIONS[make.__name__] = make
    return make


def _after(change):
    """The vjp, and then something done to its result."""
    return lambda vjp: lambda g, *saved: change(vjp(g, *saved), g, saved)


def _plain(x):
    return x.data if isinstance(x, Value) else x


def _saved_arrays(saved):
    flat = [part for x in saved for part in (x if type(x) is tuple else (x,))]
    return [_plain(x) for x in flat if isinstance(_plain(x), np.ndarray)]


@mutation
def scaled_by_a_millionth(vjp, names):
    return _after(lambda r, g, saved: r * (1 + 1e-6))(vjp)


@mutation
def opposite_sign(vjp, names):
    return _after(lambda r, g, saved: -r)(vjp)


@mutation
def zero(vjp, names):
    return _after(lambda r, g, saved: r * 0)(vjp)


@mutation
def swapped_saved_values(vjp, names):
    if len(names) < 2 or any(n in ("y", "i") or n.endswith("shape") for n in names[:2]):
        return None
    return lambda g, a, b, *rest: vjp(g, b, a, *rest)


@mutation
def reversed_order(vjp, names):
    return _after(lambda r, g, saved: r[..., ::-1] if len(r.shape) else r * 2)(vjp)


@mutation
def transposed(vjp, names):
    def turn(r, g, saved):
        square = len(r.shape) >= 2 and r.shape[-1] == r.shape[-2]
        return r.swapaxes(-1, -2) if square and r.shape[-1] > 1 else r * 1.5

    return _after(turn)(vjp)


@mutation
def ignored_cotangent(vjp, names):
    ones = lambda g: tuple(p * 0 + 1 for p in g) if isinstance(g, tuple) else g * 0 + 1
    return lambda g, *saved: vjp(ones(g), *saved)


@mutation
def last_entry_off_by_5_percent(vjp, names):
    def change(r, g, saved):
        weights = np.ones(r.shape)
        weights.flat[weights.size - 1 :] = 1.05
        return r * weights

    return _after(change)(vjp)


@mutation
def through_float32(vjp, names):
    return _after(lambda r, g, saved: r.astype(np.dtype("float32")).astype(np.dtype("float64"))
                  * (1 + 3e-8))(vjp)  # fmt: skip


@mutation
def changed_cotangent(vjp, names):
    def change(r, g, saved):
        r = r * 1  # a result that is the cotangent itself must not change with it
        for part in g if isinstance(g, tuple) else (g,):
            if isinstance(part, np.ndarray) and part.flags.writeable:
                part *= 2
        return r

    return _after(change)(vjp)


@mutation
def wrong_on_non_contiguous(vjp, names):
    def change(r, g, saved):
        every = [*_saved_arrays(saved), *_saved_arrays([g])]
        return r if all(a.flags.c_contiguous for a in every) else r * 2

    return _after(change)(vjp)


@mutation
def wrong_at_0(vjp, names):
    return _where_saved(lambda a: a == 0, vjp, lambda r: r + 7)


@mutation
def nan_when_large(vjp, names):
    return _where_saved(lambda a: np.abs(a) > 700, vjp, lambda r: r * np.nan)


def _where_saved(condition, vjp, spoil):
    """Spoilt where the condition holds of a saved number; all of it, if the shapes differ."""

    def change(r, g, saved):
        for a in _saved_arrays(saved):
            if a.dtype.kind == "f" and condition(a).any():
                return _chosen(condition(a), spoil(r), r) if a.shape == r.shape else spoil(r)
        return r

    return _after(change)(vjp)


def _chosen(where, a, b):
    return ops.where(where, a, b) if isinstance(b, Value) else np.where(where, a, b)


@mutation
def detached(vjp, names):
    return _after(lambda r, g, saved: r.wrap(r.data) if isinstance(r, Value) else r)(vjp)


@mutation
def other_bits_when_recorded(vjp, names):
    return _after(lambda r, g, saved: r * (1 + 1e-15) if isinstance(r, Value) else r)(vjp)


def rules():
    """Every Rule of the library for which the registry has a spec."""
    specs = registry.registry()
    for module in MODULES:
        short = module.__name__.rpartition(".")[2]
        for name, f in list(vars(module).items()):
            spec = specs.get(f"{short}.{name}")
            if spec is None or f.__module__ != module.__name__:
                continue
            if isinstance(f, Op):
                for argument, (vjp, names) in list(f.vjps.items()):
                    plant = partial(planted, f, argument)
                    numbers = not {"y", *f.arguments}.isdisjoint(names)
                    yield Rule(spec, argument, vjp, names, plant, numbers)
            elif hasattr(f, "kernel") and kernels.level() != "off":
                yield from _kernel_rules(spec, f.kernel)


def _kernel_rules(spec, kernel):
    """A Rule for each gradient that the kernel computed in some case of the spec."""
    right, computed = kernel.backward, set()

    def spy(xp, needs, *rest, **options):
        found = right(xp, needs, *rest, **options)
        computed.update(i for i, g in enumerate(found) if needs[i] and g is not None)
        return found

    with _replaced(kernel, spy):
        for seed in range(20):
            registry.check_case(spec, registry.sample(spec, Draw(seed)), seed)
    if not computed:
        raise LookupError(f"{spec.name}: no case of its spec reaches the kernel")
    for i in sorted(computed):
        vjp = lambda g, *saved, i=i: right(*_call_of(saved, g), **saved[0].options)[i]
        yield Rule(spec, f"kernel[{i}]", vjp, (), partial(_spoilt, kernel, i), recorded=False)


class _Call(NamedTuple):
    """What a kernel's backward pass was given besides the cotangent."""

    xp: object
    needs: list
    residuals: object
    options: dict


def _call_of(saved, g):
    call, *arrays_ = saved
    return call.xp, call.needs, g, call.residuals, *arrays_


@contextmanager
def _spoilt(kernel, i, wrong):
    """Within it, the i-th gradient of the kernel is the wrong one."""
    right = kernel.backward

    def backward(xp, needs, g, residuals, *arrays_, **options):
        found = list(right(xp, needs, g, residuals, *arrays_, **options))
        if needs[i] and found[i] is not None:
            found[i] = wrong(g, _Call(xp, needs, residuals, options), *arrays_)
        return found

    with _replaced(kernel, backward):
        yield


@contextmanager
def _replaced(kernel, backward):
    right, kernel.backward = kernel.backward, backward
    try:
        yield
    finally:
        kernel.backward = right


def mutants(rule):
    """(name, wrong vjp) of every mistake that can be made in one rule."""
    for name, make in MUTATIONS.items():
        if make in (wrong_at_0, nan_when_large) and not rule.numbers:
            continue  # they look at the saved numbers
        if make in (swapped_saved_values, detached, other_bits_when_recorded) and not rule.recorded:
            continue  # C reads memory by the shapes it is told, and a kernel is never recorded
        wrong = make(rule.vjp, rule.names)
        if wrong is not None:
            yield name, wrong


@contextmanager
def planted(op, argument, wrong):
    """Within it, the op has the wrong rule."""
    right = op.vjps[argument]
    op.vjps[argument] = (wrong, right[1])
    op.plans.clear()
    try:
        yield
    finally:
        op.vjps[argument] = right
        op.plans.clear()


def trial(rule, name, wrong, cases=60):
    """The Verdict on one mutant: the first case that it does not pass."""
    spec = rule.spec
    with rule.plant(wrong), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(cases):
            try:
                registry.check_case(spec, registry.sample(spec, Draw(seed)), seed)
            except Exception:  # whatever is raised, the mistake was noticed
                return Verdict(rule.name, name, seed)
        try:
            registry.check_subgradients(spec)
        except Exception:
            return Verdict(rule.name, name, -1)
    return Verdict(rule.name, name, None)


def verdicts(names=(), every=1, cases=60):
    """The Verdicts on the mutants of all rules (or some), on each `every`-th: a sample that still
    covers each rule, and each mutation."""
    for k, rule in enumerate(rules()):
        if names and rule.spec.name not in names:
            continue
        for i, (name, wrong) in enumerate(mutants(rule)):
            if (i + k) % every == 0:
                yield trial(rule, name, wrong, cases)


def survivors(found):
    """Those that live, and are not known to be no mistake."""
    return [v for v in found if v.seed is None and (v.rule, v.mutation) not in EQUIVALENT]


_NO_MISTAKE = {
    ("wrong_at_0", "0 is outside the domain, or there is no derivative there"): (
        "ops.div.a", "ops.mod.b", "ops.sqrt.x", "ops.rsqrt.x", "ops.cbrt.x", "ops.log.x",
        "ops.log2.x", "ops.log10.x", "ops.arccosh.x",
    ),
    ("nan_when_large", "what is saved is at most 1, or the domain is bounded"): (
        "ops.tanh.x", "ops.sigmoid.x", "ops.softmax.x", "functional.masked_softmax.x",
        "functional.lower_softmax.x", "ops.arcsin.x", "ops.arccos.x", "ops.arctanh.x",
    ),
    ("nan_when_large", "the condition that is saved holds booleans"): ("ops.where.a", "ops.where.b"),
}  # fmt: skip
EQUIVALENT = {
    (rule, name): reason for (name, reason), rules_ in _NO_MISTAKE.items() for rule in rules_
}


def _verdicts_of(name):
    return list(verdicts([name]))


def all_verdicts(names=(), jobs=1):
    """The Verdicts on all mutants, several functions at a time."""
    names = names or sorted({rule.spec.name for rule in rules()})
    with ProcessPoolExecutor(jobs) as pool:
        for found in pool.map(_verdicts_of, names):
            yield from found


def main(argv=None):
    """Print the verdict on each mutant; 1 if one survives."""
    parser = argparse.ArgumentParser("python -m tinygrad_ml.testing.mutants", description=__doc__)
    parser.add_argument("op", nargs="*", help="names, as in 'softmax' or 'linalg.det'; all if none")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    asked = parser.parse_args(argv)
    found = []
    for v in all_verdicts([registry.find(n).name for n in asked.op], asked.jobs):
        found.append(v)
        how = "survived" if v.seed is None else f"killed by case {v.seed}"
        reason = EQUIVALENT.get((v.rule, v.mutation), "") if v.seed is None else ""
        print(f"{v.rule:<40}{v.mutation:<30}{how} {reason}", flush=True)
    left = survivors(found)
    print(f"{len(found)} mutants, {len(left)} survivors")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
