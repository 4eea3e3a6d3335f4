"""The registry: what is known of every differentiable function, and that none is missing.

An OpSpec says how to make inputs for a function, and what else it should equal. The library's own
stand in tables (specs_*.py), one for each module; anybody's own are added by `@spec(...)`.
"""

import importlib
import inspect
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..autograd import Op, grad
from ..tensor import Tensor
from .gradcheck import ROUNDINGS, Check, GradientError, Result
from .strategies import Draw, HypothesisDraw


class Case(NamedTuple):
    """One call of a function: its arguments, its options, and how they were made."""

    args: tuple
    options: dict
    notes: str = ""


class Subgradient(NamedTuple):
    """What is answered where there is no derivative: d sum(f(*args)) / d(each argument)."""

    where: str
    args: tuple
    expected: tuple
    options: dict = {}
    says: str = ""


@dataclass(frozen=True)
class OpSpec:
    """What is known of one differentiable function.

    inputs        inputs(draw) -> args, or (args, options)
    reference     the same function on numpy arrays; None: its own forward is differentiated
    analytic      the reference takes complex numbers
    kinks         kinks(*args, **options): changes sign where there is no derivative; or numbers
    subgradients  what is answered there
    order         up to which derivative
    rounding      how many roundings the rules may commit in a row
    exact         recorded and plain backward give the same bits
    torch, jax    the function's name elsewhere, where it is another
    """

    name: str
    function: Callable
    inputs: Callable
    reference: Callable | None = None
    analytic: bool = False
    kinks: object = None
    subgradients: tuple = ()
    order: int = 2
    rounding: int = ROUNDINGS
    exact: bool = True
    torch: str | None = None
    jax: str | None = None


REGISTRY: dict[str, OpSpec] = {}
PROFILES = {"ci": 8, "thorough": 400}  # cases of each function
TABLES = ("specs_ops", "specs_arrays", "specs_functional", "specs_linalg", "specs_models")
NOT_DIFFERENTIABLE = {  # public all the same, and why there is nothing to check
    "ops.last_writes": "its result is boolean",
    "ops.flip": "the arrays' function of that name is checked",
    "linalg.matrix_rank": "its result is an integer",
    "quant.dequantize": "from bytes, of which there is no derivative",
    "quant.quantize_q8_0": "its result is bytes",
    "quant.quantize_nf4": "its result is bytes",
    **{f"arrays.{name}": "a question: its result is a plain array" for name in (
        "all", "allclose", "any", "argmax", "argmin", "argsort", "array_equal", "count_nonzero",
        "equal", "greater", "greater_equal", "isclose", "isfinite", "isinf", "isnan", "less",
        "less_equal", "logical_and", "logical_not", "logical_or", "logical_xor", "nonzero",
        "not_equal", "searchsorted", "signbit")},
}  # fmt: skip
observers: list[Callable] = []  # each is called with every Result


def declare(function, inputs, reference=None, *, name=None, **fields):
    """Enter a function in the registry."""
    name = name or _name(function)
    REGISTRY[name] = OpSpec(name, function, inputs, reference, **fields)
    return function


def spec(inputs, reference=None, **fields):
    """Decorator: `@spec(inputs=lambda draw: (draw.array((3,)),), reference=np.sinh)` above `@op`."""
    return lambda function: declare(function, inputs, reference, **fields)


def _name(function):
    module = function.__module__.rpartition(".")[2]
    return f"{module}.{function.__name__}"


def registry():
    """Every OpSpec by name, the library's tables read in; ImportError without scipy."""
    for table in TABLES:
        try:
            importlib.import_module(f"{__package__}.{table}")
        except ModuleNotFoundError as error:
            raise ImportError(
                f"the specs need {error.name}, to compare with: pip install 'tinygrad_ml[test]'"
            ) from error
    return REGISTRY


def find(name):
    """The spec called `module.name`, or `name` if there is just one; KeyError with likely names."""
    specs = registry()
    if name in specs:
        return specs[name]
    found = [s for n, s in specs.items() if n.rpartition(".")[2] == name]
    if len(found) == 1:
        return found[0]
    likely = [n for n in specs if name in n] or sorted(specs)
    raise KeyError(f"name: no single spec is called {name!r}; there are {', '.join(likely[:20])}")


def missing(*modules, exempt=()):
    """The public functions, and all the Ops, of these modules without a spec: `module.name`."""
    covered = {id(s.function) for s in registry().values()}
    names = []
    for module in modules:
        public = set(getattr(module, "__all__", [n for n in vars(module) if n[0] != "_"]))
        for name, f in vars(module).items():
            wanted = isinstance(f, Op) or (name in public and inspect.isfunction(f))
            if not wanted or f.__module__ != module.__name__ or id(f) in covered:
                continue
            full = f"{module.__name__.rpartition('.')[2]}.{name}"
            if full not in exempt and full not in REGISTRY:
                names.append(full)
    return sorted(names)


def require_complete(*modules, exempt=()):
    """LookupError that names every differentiable function without a spec."""
    names = missing(*modules, exempt=exempt)
    if names:
        raise LookupError(
            "no gradient spec (see tinygrad_ml/testing/specs_*.py): " + ", ".join(names)
        )


# ---------------------------------------------------------------------------------------- cases


def sample(op, draw):
    """One Case of an op, by a Draw."""
    made = op.inputs(draw)
    args, options = made if isinstance(made[-1], dict) else (made, {})
    return Case(tuple(args), options, ", ".join(draw.notes))


def cases(name):
    """A Hypothesis strategy of the Cases of one op; failures shrink to small shapes."""
    from hypothesis import strategies as st

    op = find(name)
    return st.composite(lambda draw: sample(op, HypothesisDraw(draw)))()


def check_case(op, case, seed=0, repro=None):
    """Check one call of one function; GradientError if anything is wrong, else a Result."""
    op = find(op) if isinstance(op, str) else op

    def with_options(f):
        return f and (lambda *args: f(*args, **case.options))

    kinks = with_options(op.kinks) if callable(op.kinks) else op.kinks
    check = Check(with_options(op.function), case.args, ("rev", "fwd"), with_options(op.reference),
                  op.analytic, kinks, seed, op.rounding, op.name, repro)  # fmt: skip
    with np.errstate(all="ignore"):
        check.derivatives(op.order)
        check.contracts(op.exact)
    return check.result


def check_op(name, examples=None, seed=None, profile="ci"):
    """Check a registered function on seeded cases (or on the one case of `seed`)."""
    op = find(name) if isinstance(name, str) else name
    start = zlib.crc32(op.name.encode()) % 10**6  # no two functions see the same numbers
    count = examples or PROFILES[profile]
    seeds = [seed] if seed is not None else range(start, start + count)
    result = Result(op.name)
    for s in seeds:
        draw = Draw(s)
        case = sample(op, draw)
        repro = f"  {'case':<13}{case.notes} {_shown(case.options)}\n" \
                f"  {'repro':<13}from tinygrad_ml.testing import check_op\n" \
                f"  {'':<13}check_op({op.name!r}, seed={s})"  # fmt: skip
        found = check_case(op, case, s, repro)
        found.layouts |= draw.layouts
        result.add(found)
    check_subgradients(op)
    for observe in observers:
        observe(result)
    return result


def check_subgradients(op):
    """The stated answers at kinks, plain and recorded; the second derivative there is finite."""
    for case in op.subgradients:
        leaves = [Tensor.leaf(np.array(a, float), requires_grad=True) for a in case.args]
        y = op.function(*leaves, **case.options)
        u = np.ones(y.shape)
        for create_graph in (False, True):
            found = grad(y, leaves, u, create_graph=create_graph)
            for g, expected in zip(found, case.expected, strict=True):
                if not np.array_equal(g.data, np.array(expected, float), equal_nan=True):
                    raise GradientError(
                        f"{op.name}: the subgradient {case.where}\n  got          {g.tolist()}\n"
                        f"  expected     {expected} (create_graph={create_graph})"
                    )


def check_all(profile="ci", names=None):
    """Check every registered function; the Results by name."""
    return {name: check_op(name, profile=profile) for name in names or sorted(registry())}


def _shown(options):
    return ", ".join(f"{k}={v!r}"[:60] for k, v in options.items())


def changed(name, **fields):
    """A copy of a spec with other fields, not entered in the registry."""
    return replace(find(name), **fields)
