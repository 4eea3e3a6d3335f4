"""The corpus of planted bugs through the gradient checkers of PyTorch, JAX and HIPS autograd.

python tests/benchmarks/checkers.py [-v]

Each bug of tests/planted.py is written once for any library's arrays and made a function of that
library with a derivative of its own. It goes through the library's checker as its documentation
shows it, with default tolerances, at the same point. Before that the same function without the
mistake has to pass ("false alarm" if not), lest the checker complain of something else.

    torch       torch.autograd.gradcheck(f, args), which looks at the first derivative
    torch all   the same, forward mode where the function has one, and gradgradcheck
    torch fast  gradcheck(..., fast_mode=True)
    JAX         jax.test_util.check_grads(f, args, order=2), in float64 and in float32
    HIPS        autograd.test_util.check_grads(f)(*args), to the second order
    ours        tinygrad_ml.testing.check_grads(f, args)

n/a: the library has no such thing (JAX's arrays cannot be written to and have no strides).
With torch 2.13, JAX 0.10 and autograd 1.9: 9, 14 and 9 of 24, 15 of 21 and 10 of 20, 15 of 24;
ours 24.
"""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted import PLANTED

from tinygrad_ml.testing import check_grads

BUGS = {}


def bug(make):
    BUGS[make.__name__] = make
    return make


def points(*shape):
    return np.random.default_rng(3).normal(size=shape)


def case(forward, *rules, args, tangent=None):
    """A function, the vjp of each argument (or its jvp), and where to check it."""
    return SimpleNamespace(forward=forward, rules=rules, args=args, tangent=tangent)


def sine(library, rule, n=4):
    return case(library.np.sin, rule, args=[points(n)])


# ------------------------------------------------------------------- the bugs, for any library L


@bug
def wrong_sign_at_a_tiny_scale(L, wrong):
    sign = -1 if wrong else 1
    return case(lambda x: 1e-8 * L.np.sin(x), lambda g, x: sign * 1e-8 * g * L.np.cos(x),
                args=[points(4)])  # fmt: skip


@bug
def scaled_by_1_001(L, wrong):
    return sine(L, lambda g, x: (1.001 if wrong else 1) * g * L.np.cos(x))


@bug
def scaled_by_a_millionth(L, wrong):
    return sine(L, lambda g, x: (1 + 1e-6 * wrong) * g * L.np.cos(x))


def weights(L, wrong):
    w = np.ones(1000)
    w[617] += 0.05 * wrong
    return L.array(w)


@bug
def one_entry_in_1000_off_by_5_percent(L, wrong):
    return sine(L, lambda g, x: g * L.np.cos(x) * weights(L, wrong), 1000)


@bug
def one_entry_in_1000_of_a_sum(L, wrong):
    return case(lambda x: L.np.sin(x).sum(), lambda g, x: g * L.np.cos(x) * weights(L, wrong),
                args=[points(1000)])  # fmt: skip


@bug
def nan_only_at_0(L, wrong):
    return case(lambda x: x * x, lambda g, x: g * (2 * x * x / x if wrong else 2 * x),
                args=[points(4)])  # fmt: skip


@bug
def relu_prime_of_0_is_7(L, wrong):
    at_0 = 7.0 if wrong else 0.0
    return case(lambda x: L.np.where(x > 0, x, 0 * x),
                lambda g, x: L.np.where(x == 0, at_0 * g, L.np.where(x > 0, g, 0 * g)),
                args=[points(4)])  # fmt: skip


@bug
def softplus_nan_past_700(L, wrong):
    def rule(g, x):
        return g * L.np.exp(x) / (1 + L.np.exp(x)) if wrong else g / (1 + L.np.exp(-x))

    return case(lambda x: L.np.logaddexp(x, 0 * x), rule, args=[points(4)])


@bug
def second_derivative_dropped(L, wrong):
    return sine(L, lambda g, x: g * L.np.cos(L.detached(x) if wrong else x))


@bug
def cotangent_detached(L, wrong):
    return sine(L, lambda g, x: (L.detached(g) if wrong else g) * L.np.cos(x))


@bug
def scatter_overwrites_duplicates(L, wrong):
    index = np.array([0, 1, 1, 2])
    back = np.eye(4)[index].T  # the transpose of picking: entries that are named twice are added
    back[1, 1] = 0 if wrong else 1  # of the two that are written to entry 1 the last one stands
    return case(lambda x: x[index], lambda g, x: L.array(back) @ g, args=[points(4)])


@bug
def backward_changes_its_cotangent(L, wrong):
    def rule(g, x):
        if wrong and L.written(g):
            g *= 3
            return g
        return g * 3

    return L.mutable and case(lambda x: x * 3, rule, args=[points(4)])


@bug
def float32_in_a_float64_backward(L, wrong):
    return sine(L, lambda g, x: L.rounded(g * L.np.cos(x)) if wrong else g * L.np.cos(x))


@bug
def wrong_only_on_non_contiguous_input(L, wrong):
    def rule(g, x):
        good = not wrong or L.contiguous(x)
        return 2 * g * (x if good else x.T.reshape(x.shape))

    return L.strided and case(lambda x: x * x, rule, args=[points(2, 3)])


@bug
def forward_mode_wrong_at_1000(L, wrong):
    def tangent(v, x):
        return v * L.np.cos(x) * (1.5 if wrong and x.shape[0] >= 1000 else 1)

    return case(L.np.sin, lambda g, x: g * L.np.cos(x), args=[points(1000)], tangent=tangent)


@bug
def not_linear_in_the_cotangent(L, wrong):
    return sine(L, lambda g, x: (L.np.clip(g, -1, 1) if wrong else g) * L.np.cos(x))


@bug
def ignores_its_cotangent(L, wrong):
    return sine(L, lambda g, x: (g * 0 + 1 if wrong else g) * L.np.cos(x))


@bug
def swapped_arguments(L, wrong):
    a, b = (lambda g, a, b: g * a), (lambda g, a, b: g * b)
    rules = (a, b) if wrong else (b, a)
    return case(lambda a, b: a * b, *rules, args=[points(3), points(3) + 1])


@bug
def transposed_gradient(L, wrong):
    return case(lambda a, b: a @ b, lambda g, a, b: (g @ b.T).T if wrong else g @ b.T,
                lambda g, a, b: a.T @ g, args=[points(3, 3), points(3, 3) + 1])  # fmt: skip


@bug
def broadcast_keeps_one_row(L, wrong):
    return case(lambda a, b: a + b, lambda g, a, b: g,
                lambda g, a, b: g[:1] if wrong else g.sum(0)[None],
                args=[points(3, 2), points(1, 2)])  # fmt: skip


@bug
def gradients_of_both_arguments_differ_when_saved_value_changes(L, wrong):
    calls = []

    def rule(g, x):
        calls.append(None)
        return g * L.np.cos(x) * (1 + 1e-3 * (len(calls) % 2) * wrong)

    return sine(L, rule)


@bug
def an_input_is_changed(L, wrong):
    def forward(x):
        y = L.np.sin(x)
        if wrong:
            x += 1e-12
        return y

    return L.mutable and case(forward, lambda g, x: g * L.np.cos(x), args=[points(4)])


@bug
def max_gives_all_to_every_tie(L, wrong):
    def rule(g, x):
        hit = x == x.max()
        share = 2.0 if wrong and hit.sum() > 1 else 1.0
        return L.np.where(hit, g * share, 0 * x)

    return case(lambda x: x.max(), rule, args=[points(4)])


@bug
def wrong_third_output(L, wrong):
    third = 1.01 if wrong else 1
    return case(lambda x: L.np.stack([L.np.sin(x), L.np.cos(x), L.np.exp(x)]),
                lambda g, x: g[0] * L.np.cos(x) - g[1] * L.np.sin(x) + g[2] * L.np.exp(x) * third,
                args=[points(3)])  # fmt: skip


# ------------------------------------------------------------------------------------- libraries


def in_torch():
    import torch

    L = SimpleNamespace(
        np=torch, array=torch.as_tensor, detached=lambda x: x.detach(), mutable=True, strided=True,
        rounded=lambda x: x.float().double(), contiguous=lambda x: x.is_contiguous(),
        written=lambda g: not g.requires_grad)  # fmt: skip

    def function(c):
        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *xs):
                ctx.save_for_backward(*xs)
                ctx.save_for_forward(*xs)
                return c.forward(*xs)

            @staticmethod
            def backward(ctx, g):
                return tuple(rule(g, *ctx.saved_tensors) for rule in c.rules)

            @staticmethod
            def jvp(ctx, *vs):
                return c.tangent(*vs, *ctx.saved_tensors)

        return Function.apply

    def checked(everything=False, **options):
        def run(c):
            torch.manual_seed(0)
            f, args = function(c), [torch.tensor(a, requires_grad=True) for a in c.args]
            forward = everything and c.tangent is not None
            torch.autograd.gradcheck(f, args, check_forward_ad=forward, **options)
            if everything:
                torch.autograd.gradgradcheck(f, args)

        return run

    columns = {
        "torch": checked(),
        "torch all": checked(True),
        "torch fast": checked(fast_mode=True),
    }
    return {name: (L, run) for name, run in columns.items()}


def in_jax():
    import jax
    import jax.numpy as jnp
    from jax.test_util import check_grads as check

    jax.config.update("jax_enable_x64", True)
    L = SimpleNamespace(
        np=jnp, array=jnp.asarray, detached=jax.lax.stop_gradient, mutable=False, strided=False,
        rounded=lambda x: x.astype(jnp.float32).astype(x.dtype))  # fmt: skip

    def function(c):
        if c.tangent:
            f = jax.custom_jvp(c.forward)
            f.defjvp(lambda xs, vs: (c.forward(*xs), c.tangent(*vs, *xs)))
        else:
            f = jax.custom_vjp(c.forward)
            f.defvjp(
                lambda *xs: (c.forward(*xs), xs),
                lambda xs, g: tuple(
                    rule(g, *xs).astype(x.dtype) for rule, x in zip(c.rules, xs, strict=True)
                ),
            )
        return f  # fmt: skip

    def checked(dtype):
        def run(c):
            modes = ("fwd", "rev") if c.tangent else ("rev",)  # a custom_vjp has no forward mode
            check(function(c), tuple(jnp.asarray(a, dtype) for a in c.args), order=2, modes=modes)

        return run

    return {"JAX f64": (L, checked("float64")), "JAX f32": (L, checked("float32"))}


def in_autograd():
    import autograd.numpy as anp
    from autograd.extend import defjvp, defvjp, primitive
    from autograd.test_util import check_grads as check
    from autograd.tracer import getval, isbox

    L = SimpleNamespace(
        np=anp, array=np.asarray, detached=getval, mutable=True, strided=True,
        rounded=lambda x: x.astype(np.float32).astype(np.float64),
        contiguous=lambda x: getval(x).flags.c_contiguous,
        written=lambda g: not isbox(g))  # fmt: skip

    def run(c):
        np.random.seed(0)  # noqa: NPY002  it draws from numpy's global generator
        f = primitive(c.forward)
        defvjp(f, *[lambda y, *xs, rule=rule: lambda g: rule(g, *xs) for rule in c.rules])
        if c.tangent:
            defjvp(f, lambda v, y, x: c.tangent(v, x))
        modes = ["fwd", "rev"] if c.tangent else ["rev"]
        check(f, modes=modes)(*[np.array(a) for a in c.args])

    return {"HIPS": (L, run)}


CHECKERS = [  # where a library is missing its columns are "-"
    (in_torch, ("torch", "torch all", "torch fast")),
    (in_jax, ("JAX f64", "JAX f32")),
    (in_autograd, ("HIPS",)),
]


def outcome(make, library, run):
    """caught or missed; false alarm if the function without the mistake does not pass."""
    right = make(library, False)
    if not right:
        return "n/a"
    if raises(run, right):
        return "false alarm"
    return "caught" if raises(run, make(library, True)) else "missed"


def raises(run, c):
    try:
        run(c)
    except Exception as error:
        if "-v" in sys.argv:
            print(f"    {type(error).__name__}: {str(error)[:150]!r}")
        return True
    return False


def ours(name):
    f, args = PLANTED[name]()
    return "caught" if raises(lambda c: check_grads(*c), (f, args)) else "missed"


def table():
    """{bug: {checker: outcome}}"""
    columns = {}
    for load, names in CHECKERS:
        try:
            columns |= load()
        except ModuleNotFoundError:
            columns |= dict.fromkeys(names)
    rows = {}
    for name, make in BUGS.items():
        if "-v" in sys.argv:
            print(name)
        rows[name] = {k: outcome(make, *c) if c else "-" for k, c in columns.items()}
        rows[name]["ours"] = ours(name)
    return rows


def main():
    warnings.simplefilter("ignore")
    assert set(BUGS) == set(PLANTED), f"not in both: {set(BUGS) ^ set(PLANTED)}"
    rows = table()
    columns = list(next(iter(rows.values())))
    wide = max(map(len, rows))
    print(f"{'':{wide}}" + "".join(f"{c:>12}" for c in columns))
    for name, found in rows.items():
        print(f"{name:{wide}}" + "".join(f"{found[c]:>12}" for c in columns))
    caught = {c: sum(found[c] == "caught" for found in rows.values()) for c in columns}
    there = {c: sum(found[c] in ("caught", "missed") for found in rows.values()) for c in columns}
    print(f"{'caught':{wide}}" + "".join(f"{caught[c]:>6} of {there[c]:2}" for c in columns))


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
