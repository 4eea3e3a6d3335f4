"""Is the checker good enough? Make every rule of the library wrong in many ways, and count.

A mutant is a vjp with one mistake built in. It is killed when some case of the op's spec raises;
a survivor is a mistake that the suite would let through, or a mutant that is no mistake: those
stand in EQUIVALENT, each with its reason.

    python -m tinygrad_ml.testing.mutants [OP ...]     prints which case killed which mutant
"""

import sys
import warnings
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from .. import arrays, functional, linalg, ops
from ..autograd import Op, Value
from . import registry
from .strategies import Draw

MODULES = (ops, arrays, functional, linalg)
MUTATIONS: dict = {}


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
    flat = [part for x in saved for part in (x if isinstance(x, tuple) else (x,))]
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
    def change(r, g, saved):
        for a in _saved_arrays(saved):
            if a.shape == r.shape and a.dtype.kind == "f" and (a == 0).any():
                return r + np.where(a == 0, 7.0, 0.0)
        return r

    return _after(change)(vjp)


@mutation
def nan_when_large(vjp, names):
    def change(r, g, saved):
        for a in _saved_arrays(saved):
            if a.shape == r.shape and a.dtype.kind == "f" and (np.abs(a) > 700).any():
                return r * np.where(np.abs(a) > 700, np.nan, 1.0)
        return r

    return _after(change)(vjp)


@mutation
def detached(vjp, names):
    return _after(lambda r, g, saved: r.wrap(r.data) if isinstance(r, Value) else r)(vjp)


@mutation
def other_bits_when_recorded(vjp, names):
    return _after(lambda r, g, saved: r * (1 + 1e-15) if isinstance(r, Value) else r)(vjp)


def rules():
    """(spec, op, argument) of every vjp of the library that the registry has a spec for."""
    specs = registry.registry()
    for module in MODULES:
        for name, op in list(vars(module).items()):
            if isinstance(op, Op) and op.__module__ == module.__name__:
                spec = specs.get(f"{module.__name__.rpartition('.')[2]}.{name}")
                for argument in op.vjps if spec else ():
                    yield spec, op, argument


def mutants(op, argument):
    """(name, wrong vjp) of every mistake that can be made in one rule."""
    vjp, names = op.vjps[argument]
    saves_numbers = not {"y", *op.arguments}.isdisjoint(names)
    for name, make in MUTATIONS.items():
        if make in (wrong_at_0, nan_when_large) and not saves_numbers:
            continue  # they look at the saved numbers
        wrong = make(vjp, names)
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


def trial(spec, op, argument, name, wrong, cases=60):
    """The Verdict on one mutant: the first case that it does not pass."""
    rule = f"{spec.name}.{argument}"
    with planted(op, argument, wrong), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(cases):
            try:
                registry.check_case(spec, registry.sample(spec, Draw(seed)), seed)
            except Exception:  # whatever is raised, the mistake was noticed
                return Verdict(rule, name, seed)
        try:
            registry.check_subgradients(spec)
        except Exception:
            return Verdict(rule, name, -1)
    return Verdict(rule, name, None)


def verdicts(names=(), every=1, cases=60):
    """The Verdicts on the mutants of all rules (or some), on each `every`-th: a sample that still
    covers each rule, and each mutation."""
    for k, (spec, op, argument) in enumerate(rules()):
        if names and spec.name not in names:
            continue
        for i, (name, wrong) in enumerate(mutants(op, argument)):
            if (i + k) % every == 0:
                yield trial(spec, op, argument, name, wrong, cases)


def survivors(found):
    """Those that live, and are not known to be no mistake."""
    return [v for v in found if v.seed is None and (v.rule, v.mutation) not in EQUIVALENT]


_UNSHAPED = "what is saved has another shape than the argument, so that nothing is changed"
_NO_MISTAKE = {
    ("wrong_at_0", "0 is outside the domain, or there is no derivative there"): (
        "ops.div.a", "ops.mod.b", "ops.sqrt.x", "ops.rsqrt.x", "ops.cbrt.x", "ops.arctan2.a",
        "ops.arctan2.b", "ops.log.x", "ops.log2.x", "ops.log10.x", "ops.arccosh.x",
    ),
    ("nan_when_large", "what is saved is at most 1, or the domain is bounded"): (
        "ops.tanh.x", "ops.sigmoid.x", "ops.softmax.x", "functional.masked_softmax.x", "ops.tan.x",
        "ops.arcsin.x", "ops.arccos.x", "ops.arctanh.x", "ops.arctan2.a", "ops.arctan2.b",
        "ops.mod.b", "ops.pow.b",
    ),
    ("nan_when_large", "beyond 710 the value itself overflows"): ("ops.sinh.x", "ops.cosh.x"),
    ("nan_when_large", "the condition that is saved holds booleans"): ("ops.where.a", "ops.where.b"),
    ("nan_when_large", "the cases hold numbers of ordinary size only"): (
        "ops.matmul.a", "ops.matmul.b", "functional.projected.x", "functional.projected.weight",
        "functional.rotated.x", "functional.rotated.cos", "functional.rotated.sin", "linalg.inv.a",
        "linalg.solve.a", "linalg.solve.b", "linalg.pinv.a", "linalg.det.a", "linalg.cofactors.a",
        "linalg.cofactors_jvp.a", "linalg.cofactors_jvp.h", "linalg.cholesky.a", "linalg.eigh.a",
        "linalg.eigvalsh.a", "linalg.thin_svd.a", "linalg.svdvals.a", "linalg.thin_qr.a", "linalg.slogdet.a",
        "linalg.p_norm.x",
    ),
    ("wrong_at_0", _UNSHAPED): (
        "ops.matmul.b", "functional.projected.x", "functional.projected.weight",
        "functional.rotated.x", "functional.rotated.cos", "functional.rotated.sin",
        "linalg.pinv.a", "linalg.thin_svd.a", "linalg.eigh.a", "linalg.svdvals.a",
    ),
    ("wrong_at_0", "no entry of the cases' matrices is exactly 0"): (
        "linalg.inv.a", "linalg.solve.b", "linalg.cofactors.a",
        "linalg.cofactors_jvp.h", "linalg.eigvalsh.a", "linalg.p_norm.x", "linalg.slogdet.a",
    ),
}  # fmt: skip
EQUIVALENT = {
    (rule, name): reason for (name, reason), rules_ in _NO_MISTAKE.items() for rule in rules_
}


def main(argv):
    """Print the verdict on each mutant; 1 if one survives."""
    found = []
    for v in verdicts([registry.find(n).name for n in argv]):
        found.append(v)
        how = "survived" if v.seed is None else f"killed by case {v.seed}"
        reason = EQUIVALENT.get((v.rule, v.mutation), "") if v.seed is None else ""
        print(f"{v.rule:<40}{v.mutation:<30}{how} {reason}")
    left = survivors(found)
    print(f"{len(found)} mutants, {len(left)} survivors")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
