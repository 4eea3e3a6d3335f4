"""PyTorch's own sample inputs (its OpInfo database) through our functions.

float64: value, gradient and double backward are PyTorch's, but for roundings.
float32: value and gradient are as close to the float64 truth as PyTorch's own float32 ones are.

A few samples of each function in each run, others on each day; TINYGRAD_ML_PROFILE=thorough takes
them all. ORACLE_SEED=n draws what a run of seed n (printed at its end) drew.
"""

import datetime
import os
import warnings
from collections import Counter

import numpy as np
import pytest

import tinygrad_ml as tg

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="torch.testing's databases need it")

from torch.testing._internal.common_methods_invocations import op_db  # noqa: E402
from torch_names import OURS, UNIQUE  # noqa: E402
from unsupported import Unsupported, call  # noqa: E402

SEED = int(os.environ.get("ORACLE_SEED", datetime.date.today().toordinal()))
WHOLE = os.environ.get("TINYGRAD_ML_PROFILE") == "thorough"
FEW = 3  # samples of each function in a short run
TITLE = "OpInfo, every sample" if WHOLE else f"OpInfo, {FEW} samples each, ORACLE_SEED={SEED}"
EPS32 = float(np.finfo(np.float32).eps)

FUNCTIONS = {
    f"{info.name} {info.variant_test_name}".strip(): info
    for info in op_db
    if info.name in OURS and torch.float64 in info.supported_dtypes("cpu")
}


def samples(name, info):
    """The sample inputs: all, or a few that change with the seed."""
    torch.manual_seed(0)
    needs_gradient = info.supports_autograd
    found = list(info.sample_inputs("cpu", torch.float64, requires_grad=needs_gradient))
    if WHOLE or len(found) <= FEW:
        return found
    chosen = np.random.default_rng([SEED, *name.encode()]).permutation(len(found))
    return [found[i] for i in sorted(chosen[:FEW])]


# --------------------------------------------------------------- the same arguments for both sides


class Arguments:
    """A sample's arguments, for PyTorch or for us, and those of them that get a gradient.

    casts: the dtypes that floats go through, the last one to stay
    """

    def __init__(self, sample, casts, ours):
        self.casts, self.ours, self.leaves = casts, ours, {}
        self.args = self.convert((sample.input, *sample.args))
        self.options = self.convert(sample.kwargs)

    def convert(self, x):
        if isinstance(x, torch.Tensor):
            return self.leaves[id(x)] if id(x) in self.leaves else self.tensor(x)
        if isinstance(x, dict):
            return {k: self.convert(v) for k, v in x.items()}
        if type(x) in (list, tuple):
            return type(x)(map(self.convert, x))
        return str(x).removeprefix("torch.") if self.ours and isinstance(x, torch.dtype) else x

    def tensor(self, x):
        y = x.detach().clone()
        for dtype in self.casts if y.is_floating_point() else ():
            y = y.to(dtype)
        if not self.ours:
            y.requires_grad_(x.requires_grad)
        elif y.is_floating_point():
            y = tg.tensor(y.numpy(), requires_grad=x.requires_grad)
        else:
            y = y.numpy()
        if x.requires_grad:
            self.leaves[id(x)] = y
        return y


def flat(y):
    """The outputs as a list; None stands for one that we do not have."""
    if isinstance(y, list | tuple):
        return [part for each in y for part in flat(each)]
    return [y]


def array(y):
    if isinstance(y, torch.Tensor):
        y = (y.float() if y.dtype == torch.bfloat16 else y).numpy(force=True)
    y = np.asarray(y.data if isinstance(y, tg.Tensor) else y)
    return y.astype(np.float32) if y.dtype.name == "bfloat16" else y


def differentiable(y):
    return isinstance(y, tg.Tensor | torch.Tensor) and y.requires_grad


def weighed(ys, order):
    """A number made of all outputs, with fixed weights: its gradient is their vjp."""
    rng = np.random.default_rng(order)
    total = 0
    for y in ys:
        w = rng.normal(size=tuple(y.shape)).astype(array(y).dtype)
        total = total + (y * (w if isinstance(y, tg.Tensor) else torch.as_tensor(w))).sum()
    return total


def derivative(total, leaves, recorded):
    """The gradients (not recorded: by our kernels); zeros where nothing depends on a leaf."""
    zeros = [(tg if isinstance(x, tg.Tensor) else torch).zeros_like(x) for x in leaves]
    if not leaves or not differentiable(total):
        return zeros
    if isinstance(total, tg.Tensor):
        return tg.grad(total, leaves, create_graph=recorded)
    found = torch.autograd.grad(total, leaves, create_graph=recorded, allow_unused=True)
    return [zero if g is None else g for g, zero in zip(found, zeros, strict=True)]


def derivatives(ys, chosen, leaves, order):
    """[outputs, gradients, second derivatives, ...] as arrays, of the outputs that are chosen."""
    parts = [ys[i] for i in chosen if differentiable(ys[i])]
    results = [[y if y is None else array(y) for y in ys]]
    for k in range(order):
        gradients = derivative(weighed(parts, k), leaves, recorded=k + 1 < order)
        results.append([array(g) for g in gradients])
        parts = [g for g in gradients if differentiable(g)]
    return results


def outcomes(info, sample, order, casts, truth=None):
    """Ours, PyTorch's, and PyTorch's by other casts: outputs, gradients, ..."""
    unique = UNIQUE.get(info.name, lambda y: y)
    us = Arguments(sample, casts, ours=True)
    ours = flat(unique(call(OURS[info.name], us.args, us.options)))
    results, chosen = [], None
    for way in (casts, truth) if truth else (casts,):
        them = Arguments(sample, way, ours=False)
        theirs = flat(unique(info.op(*them.args, **them.options)))
        assert len(ours) == len(theirs), f"{len(ours)} outputs, expected {len(theirs)}"
        if chosen is None:
            chosen = [i for i, y in enumerate(ours) if y is not None and differentiable(theirs[i])]
        results.append(derivatives(theirs, chosen, list(them.leaves.values()), order))
    return derivatives(ours, chosen, list(us.leaves.values()), order), *results


# -------------------------------------------------------------------------------- the comparison

ORDERS = ("value", "gradient", "second derivative")


def tolerance(z):
    """Roundings, amplified by subtractions: the numbers that go in are of size 1 to 10."""
    size = np.abs(z[np.isfinite(z)]).max(initial=1)
    return {"rtol": 1e-10, "atol": 1e-13 * size}


def compare64(info, sample):
    twice = info.supports_gradgrad and not info.variant_test_name.startswith("chunked")
    order = 0 if not info.supports_autograd else 2 if twice else 1
    try:
        ours, theirs = outcomes(info, sample, order, (torch.float64,))
    except RuntimeError as error:
        if "is not implemented" not in str(error):  # PyTorch's second derivative
            raise
        ours, theirs = outcomes(info, sample, 1, (torch.float64,))
    for what, got, want in zip(ORDERS, ours, theirs, strict=False):
        for y, z in zip(got, want, strict=True):
            if y is None:
                continue
            assert y.shape == z.shape, f"{what}: shape {y.shape}, expected {z.shape}"
            if y.dtype.kind != "f":
                np.testing.assert_array_equal(y, z, what)
                continue
            assert y.dtype == z.dtype, f"{what}: dtype {y.dtype}, expected {z.dtype}"
            if what == ORDERS[2] and (unknown := np.isnan(z) & np.isfinite(y)).any():
                np.testing.assert_allclose(y[~unknown], z[~unknown], **tolerance(z), err_msg=what)
                raise Unsupported("PyTorch's second derivative is NaN, ours is finite")
            np.testing.assert_allclose(y, z, **tolerance(z), err_msg=what)


def compare32(info, sample):
    """No further from the truth than PyTorch by more than 4 times, or some roundings."""
    casts, truth = (torch.float32,), (torch.float32, torch.float64)
    order = 1 if info.supports_autograd else 0
    ours, theirs, exact = outcomes(info, sample, order, casts, truth)
    for what, *results in zip(ORDERS, ours, theirs, exact, strict=False):
        for y, z, t in zip(*results, strict=True):
            if y is None or y.dtype != np.float32:
                continue
            known = np.isfinite(t) & np.isfinite(z)
            size = np.abs(t[known]).max(initial=1)
            off = np.abs(y - t)[known].max(initial=0)
            allowed = 4 * np.abs(z - t)[known].max(initial=0) + 32 * EPS32 * size
            assert off <= allowed, f"{what} in float32: off by {off:.3g}, not up to {allowed:.3g}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_samples(name, record_property):
    info, counts, failures = FUNCTIONS[name], Counter(), []
    for number, sample in enumerate(samples(name, info)):
        try:
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compare64(info, sample)
                compare32(info, sample)
            counts["compared"] += 1
        except Unsupported as reason:
            counts[f"unsupported: {reason} ({info.name})"] += 1
        except Exception as error:
            counts["failed"] += 1
            failures.append(f"sample {number} {sample}\n{type(error).__name__}: {error}")
    record_property("oracle", [TITLE, dict(counts)])
    assert not failures, "\n\n".join(failures[:3])
