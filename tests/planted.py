"""Functions with one mistake each in their gradients: what a checker has to find.

Each maker returns (function of Tensors, arguments). Most were let through by other libraries'
checkers at their default settings; tests/benchmarks/checkers.py runs the same ideas through them.
"""

import numpy as np

import tinygrad_ml as tg
from tinygrad_ml import op, ops

PLANTED = {}


def planted(make):
    """Enter a maker in the corpus."""
    PLANTED[make.__name__] = make
    return make


def _points(*shape):
    return np.random.default_rng(3).normal(size=shape)


def _sine(rule, n=4):
    @op
    def sine(xp, x):
        return xp.sin(x)

    sine.vjp(x=rule)
    return sine, [_points(n)]


def _plain(x):
    return x.data if isinstance(x, tg.Tensor) else x


@planted
def wrong_sign_at_a_tiny_scale():
    @op
    def f(xp, x):
        return 1e-8 * xp.sin(x)

    f.vjp(x=lambda g, x: -1e-8 * g * ops.cos(x))
    return f, [_points(4)]


@planted
def scaled_by_1_001():
    return _sine(lambda g, x: 1.001 * g * ops.cos(x))


@planted
def scaled_by_a_millionth():
    return _sine(lambda g, x: (1 + 1e-6) * g * ops.cos(x))


@planted
def one_entry_in_1000_off_by_5_percent():
    weights = np.ones(1000)
    weights[617] = 1.05
    return _sine(lambda g, x: g * ops.cos(x) * weights, 1000)


@planted
def one_entry_in_1000_of_a_sum():
    weights = np.ones(1000)
    weights[617] = 1.05

    @op
    def f(xp, x):
        return xp.sin(x).sum()

    f.vjp(x=lambda g, x: g * ops.cos(x) * weights)
    return f, [_points(1000)]


@planted
def nan_only_at_0():
    @op
    def f(xp, x):
        return x * x

    f.vjp(x=lambda g, x: g * (2 * x * x / x))
    return f, [_points(4)]


@planted
def relu_prime_of_0_is_7():
    @op
    def f(xp, x):
        return xp.maximum(x, 0)

    f.vjp(x=lambda g, x: ops.where(x == 0, 7 * g, ops.where(x > 0, g, 0)))
    return f, [_points(4)]


@planted
def softplus_nan_past_700():
    @op
    def f(xp, x):
        return xp.logaddexp(x, 0)

    f.vjp(x=lambda g, x: g * ops.exp(x) / (1 + ops.exp(x)))
    return f, [_points(4)]


@planted
def second_derivative_dropped():
    return _sine(lambda g, x: g * np.cos(_plain(x)))


@planted
def cotangent_detached():
    return _sine(lambda g, x: _plain(g) * ops.cos(x))


@planted
def scatter_overwrites_duplicates():
    index = np.array([0, 1, 1, 2])

    @op
    def f(xp, x):
        return x[index]

    @op
    def put(xp, x):
        y = xp.zeros(4, x.dtype)
        y[index] = x
        return y

    f.vjp(x=lambda g: put(g))
    put.vjp(x=lambda g: f(g))
    return f, [_points(4)]


@planted
def backward_changes_its_cotangent():
    @op
    def f(xp, x):
        return x * 3

    def rule(g):
        if isinstance(g, np.ndarray):
            g *= 3
            return g
        return g * 3

    f.vjp(x=rule)
    return f, [_points(4)]


@planted
def float32_in_a_float64_backward():
    return _sine(lambda g, x: (g * ops.cos(x)).astype(np.float32).astype(np.float64))


@planted
def wrong_only_on_non_contiguous_input():
    @op
    def f(xp, x):
        return x * x

    def rule(g, x):
        good = _plain(x).flags.c_contiguous
        return 2 * g * x if good else 2 * g * ops.reshape(ops.transpose(x), shape=x.shape)

    f.vjp(x=rule)
    return f, [_points(2, 3)]


@planted
def forward_mode_wrong_at_1000():
    def rule(g, x):
        wrong = isinstance(g, tg.Tensor) and x.size >= 1000
        return g * ops.cos(x) * (1.5 if wrong else 1)

    return _sine(rule, 1000)


@planted
def not_linear_in_the_cotangent():
    return _sine(lambda g, x: ops.clip(g, min=-1, max=1) * ops.cos(x))


@planted
def ignores_its_cotangent():
    return _sine(lambda g, x: g * 0 + ops.cos(x))


@planted
def swapped_arguments():
    @op
    def f(xp, a, b):
        return a * b

    f.vjp(a=lambda g, a: g * a, b=lambda g, b: g * b)
    return f, [_points(3), _points(3) + 1]


@planted
def transposed_gradient():
    @op
    def f(xp, a, b):
        return a @ b

    f.vjp(a=lambda g, b: (g @ b.swapaxes(0, 1)).swapaxes(0, 1), b=lambda g, a: a.swapaxes(0, 1) @ g)
    return f, [_points(3, 3), _points(3, 3) + 1]


@planted
def broadcast_keeps_one_row():
    @op
    def f(xp, a, b):
        return a + b

    f.vjp(a=lambda g: g, b=lambda g: g[:1])
    return f, [_points(3, 2), _points(1, 2)]


@planted
def gradients_of_both_arguments_differ_when_saved_value_changes():
    state = []

    def rule(g, x):
        state.append(None)
        return g * ops.cos(x) * (1 + 1e-3 * (len(state) % 2))

    return _sine(rule)


@planted
def an_input_is_changed():
    @op
    def f(xp, x):
        y = xp.sin(x)
        if x.flags.writeable:
            x += 1e-12
        return y

    f.vjp(x=lambda g, x: g * ops.cos(x))
    return f, [_points(4)]


@planted
def max_gives_all_to_every_tie():
    @op
    def f(xp, x):
        return x.max()

    f.vjp(x=lambda g, x, y: ops.where(x == y, 2.0 * g, 0.0) if (x == y).sum() > 1
          else ops.where(x == y, g, 0.0))  # fmt: skip
    return f, [_points(4)]


@planted
def wrong_third_output():
    @op
    def f(xp, x):
        return xp.sin(x), xp.cos(x), xp.exp(x)

    f.vjp(x=lambda g, x, y: g[0] * y[1] - g[1] * y[0] + g[2] * y[2] * 1.01)
    return f, [_points(3)]
