"""What is known of the functions in functional.py."""

# fmt: off  (tables, aligned by hand)
import math

import numpy as np
import scipy.special as special

from .. import functional as F
from .registry import Subgradient, declare
from .specs_arrays import either, options, shaped
from .specs_ops import logits, nll, unary
from .strategies import MILD, REAL, Domain

NARROW = Domain(-3, 3, (0.0, -0.0, 1.0))
WIDE = Domain(-3, 3, (0.0, -0.0, 1.0), (1e-3, 1e3))
NORMED = Domain(-3, 3, (), (1e-8, 1e8))  # norms have no derivative at 0
APART = ("plain",)


def _sigmoid(x):
    return special.expit(x)


# --- activations

declare(F.softplus, unary(), lambda x: np.logaddexp(x, 0))
declare(F.log_sigmoid, unary(), special.log_expit)
declare(F.gelu, unary(), lambda x: x * (special.erfc(-x * math.sqrt(0.5)) / 2), exact=False)
declare(F.gelu_tanh, unary(MILD), lambda x: x * _sigmoid(
    2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
declare(F.leaky_relu, unary(), lambda x: np.where(x > 0, x, 0.01 * x), kinks=0, subgradients=(
    Subgradient("leaky_relu at 0", ([0.0],), ([0.01],), says="the slope of the left"),))
declare(F.elu, unary(), lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), kinks=0)
declare(F.selu, unary(), lambda x: 1.0507009873554805 * np.where(
    x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))), kinks=0,
    subgradients=(Subgradient("selu at 0", ([0.0],), ([1.0507009873554805 * 1.6732632423543772],),
                              says="the slope of the left"),))
declare(F.mish, unary(), lambda x: x * np.tanh(np.logaddexp(x, 0)))
declare(F.hardtanh, unary(), lambda x: np.clip(x, -1, 1), kinks=(-1, 1), subgradients=(
    Subgradient("hardtanh at its bounds", ([-1.0, 1.0],), ([1.0, 1.0],),
                says="the gradient passes"),))
declare(F.glu, options(shaped((2, 4)), {}, {"axis": 0}),
        lambda x, axis=-1: np.split(x, 2, axis)[0] * _sigmoid(np.split(x, 2, axis)[1]))
declare(F.swiglu, shaped((2, 3), (2, 3), domain=REAL), lambda a, b: a * _sigmoid(a) * b,
        exact=False)

# --- dropout: the mask of one key

declare(F.dropped, options(unary(MILD), {"p": 0.5, "key": 7}, {"p": 0.0, "key": 1},
        {"p": 1.0, "key": 2}))
declare(lambda x, *, p: F.dropout(x, p, np.random.default_rng(0)),
        options(unary(MILD), {"p": 0.3}, {"p": 0.0}), name="functional.dropout")

# --- norms


def _rms(x, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def _layer_norm(x, w, b):
    return _rms(x - x.mean(-1, keepdims=True), 1e-5) * w + b


declare(F.rms_normalized, options(shaped((2, 3), domain=MILD), {"eps": 1e-6}),
        lambda x, *, eps: _rms(x, eps), analytic=True)
declare(F.rms_norm, shaped((2, 3, 4), (4,), domain=WIDE), lambda x, w: _rms(x, 1e-6) * w,
        analytic=True, exact=False)
declare(F.add_rms_norm, shaped((2, 4), (2, 4), (4,), domain=WIDE),
        lambda x, r, w: (x + r, _rms(x + r, 1e-6) * w), analytic=True, exact=False)
declare(F.linear_maps, either(shaped((2, 3), (4, 3), (1, 3)), shaped((3, 3, 2), (4, 2), (3, 2))),
        lambda x, a, b: (x @ a.T, x @ b.T), analytic=True, exact=False)
declare(F.layer_norm, shaped((2, 4), (4,), (4,), domain=NARROW, flavours=APART), _layer_norm,
        analytic=True)
declare(lambda x, w, b: F.group_norm(x, 2, w, b),
        shaped((2, 4, 3), (4,), (4,), domain=NARROW, flavours=APART),
        lambda x, w, b: _rms(x.reshape(2, 2, 6) - x.reshape(2, 2, 6).mean(-1, keepdims=True), 1e-5)
        .reshape(x.shape) * w[:, None] + b[:, None],
        name="functional.group_norm", analytic=True)
declare(F.normalize, shaped((2, 3), domain=NORMED, flavours=("plain", "scaled")),
        lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True)), analytic=True)
declare(F.cosine_similarity, shaped((2, 3), (2, 3), domain=NORMED, flavours=APART),
        lambda a, b: (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)),
        analytic=True)

# --- linear maps, embedding, attention


def _turned(x, cos, sin):
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _attention(q, k, v, mask=None, *, causal=False, scale=None):
    h, g = q.shape[1], k.shape[1]
    k, v = np.repeat(k, h // g, 1), np.repeat(v, h // g, 1)
    scores = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    t, s = scores.shape[-2:]
    seen = np.tri(t, s, s - t, dtype=bool) if causal and t > 1 else np.ones((t, s), bool)
    if mask is not None and mask.dtype == bool:
        seen = seen & mask
    elif mask is not None:
        scores = scores + mask
    scores = np.where(seen, scores, -np.inf)
    most = scores.real.max(-1, keepdims=True)
    e = np.exp(scores - np.where(np.isfinite(most), most, 0))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1, total) @ v


def _attended(draw):
    h, g, t, s = draw.pick([(2, 2, 3, 3), (2, 1, 2, 3), (1, 1, 1, 4), (4, 2, 2, 2)])
    width = draw.pick([2, 3])  # of the values: the kernel wants that of the keys
    q, k = shaped((1, h, t, 2), (1, g, s, 2), domain=NARROW)(draw)
    large = draw.pick([1, 1, 1e3, 1e-3])  # of one beside the other: ordinary scores
    q, k, v = large * q, k / large, draw.array((1, g, s, width), WIDE)
    mask = draw.pick([None, draw.rng.random((1, 1, t, s)) < 0.6, draw.rng.normal(size=(t, s))])
    return (q, k, v, mask), draw.pick([{}, {"causal": True}, {"scale": 0.3}])


declare(F.projected, either(shaped((2, 2, 3), (4, 3)), shaped((2, 2, 3), (2, 4, 3))),
        lambda x, w: x @ w.swapaxes(-1, -2), analytic=True)
declare(F.linear, shaped((2, 3), (4, 3), (4,)), lambda x, w, b: x @ w.T + b, analytic=True)
declare(F.affine, shaped((2, 2, 3), (4, 3), (4,)), lambda x, w, b: x @ w.T + b, analytic=True)
declare(F.embedding, lambda draw: (draw.array((3, 2), MILD), np.array([[0, 2], [2, 2]])),
        lambda w, i: w[i], analytic=True)
declare(F.rotated, shaped((2, 3, 4), (3, 2), (3, 2)), _turned, analytic=True)
declare(F.rope, either(shaped((1, 2, 3, 4), (3, 2), (3, 2)), shaped((2, 3, 4), (3, 2), (3, 2))),
        _turned, analytic=True, exact=False)
declare(F.masked_softmax, lambda draw: ((draw.array((2, 3), NARROW),),
        {"mask": draw.rng.random((2, 3)) < 0.6}),
        lambda x, *, mask: (e := np.where(mask, np.exp(x), 0)) / np.maximum(e.sum(-1, keepdims=True),
                                                                            1e-300))


REACHED = np.arange(5) < np.array([[2, 2, 4, 4, 5]]).T  # five rows, whose diagonal goes by twos
PACKED = (REACHED.sum(),)


def _in_steps(*shapes, **options):
    """Arrays of these shapes, or several of each in a batch."""

    def inputs(draw):
        batch = draw.pick([(), (2,)])
        return tuple(draw.array(batch + s, MILD) for s in shapes), {"step": 2, **options}

    return inputs


def _unpacked(x):
    y = np.zeros((*x.shape[:-1], 5, 5), x.dtype)
    y[..., REACHED] = x
    return y


def _lower_softmax(x, *, t, step):
    e = np.tri(5) * np.exp(_unpacked(x))
    return (e / e.sum(-1, keepdims=True))[..., REACHED]


declare(F.lower_outer, _in_steps((5, 2), (5, 2)), analytic=True,
        reference=lambda a, b, *, step: (a @ b.swapaxes(-1, -2))[..., REACHED])
declare(F.lower_matmul, _in_steps(PACKED, (5, 2)), analytic=True,
        reference=lambda w, x, *, step: _unpacked(w) @ x)
declare(F.lower_matmul_t, _in_steps(PACKED, (5, 2)), analytic=True,
        reference=lambda w, x, *, step: _unpacked(w).swapaxes(-1, -2) @ x)
declare(F.lower_sums, _in_steps(PACKED, t=5), analytic=True, reference=lambda x, *, t, step: (
    REACHED * _unpacked(x).sum(-1, keepdims=True))[..., REACHED])
declare(F.lower_softmax, lambda draw: ((draw.array((2, *PACKED), NARROW),), {"t": 5, "step": 2}),
        _lower_softmax)
declare(F.attention, _attended, _attention, analytic=True, exact=False)

# --- losses

CANCELS = 10_000  # a loss near 0 is the difference of two logits
CLASS_WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0])
REDUCTIONS = ({"reduction": "mean"}, {"reduction": "sum"}, {"reduction": "none"})


def _reduced(losses, reduction):
    return {"mean": np.mean, "sum": np.sum, "none": np.asarray}[reduction](losses)


def _targets(draw):
    return draw.pick([np.array([0, 2, 3]), np.array([1, -100, 1]), np.array([-100] * 3)])


def _cross_entropy(logits, targets, *, reduction="mean", label_smoothing=0.0, weight=None):
    counted = targets != -100
    at = np.where(counted, targets, 0)
    beyond = logits - np.take_along_axis(logits, at[..., None], -1)  # 0 at the target
    losses = nll(logits, at) + label_smoothing * -beyond.mean(-1)
    counted = counted * 1.0 if weight is None else counted * weight[at]
    losses = losses * counted
    return (
        losses.sum() / (counted.sum() or 1) if reduction == "mean" else _reduced(losses, reduction)
    )


declare(F.cross_entropy, logits(lambda draw: ((draw.array((3, 4), REAL), _targets(draw)),
        draw.pick([*REDUCTIONS, {"label_smoothing": 0.1}, {"weight": CLASS_WEIGHTS}]))), _cross_entropy,
        rounding=CANCELS)
declare(F.linear_cross_entropy, lambda draw: ((draw.array((3, 2), WIDE), draw.array((4, 2), WIDE),
        _targets(draw)), draw.pick(REDUCTIONS)),
        lambda x, w, t, **o: _cross_entropy(x @ w.T, t, **o), exact=False,
        rounding=CANCELS)
declare(F.nll_loss, lambda draw: ((draw.array((3, 4), NARROW), _targets(draw)),
        draw.pick([*REDUCTIONS, {"weight": CLASS_WEIGHTS}])))
declare(F.binary_cross_entropy_with_logits, options(lambda draw: (
        draw.array((2, 3), REAL), draw.array((2, 3), Domain(0, 1))), *REDUCTIONS,
        {"pos_weight": 2.0}),
        lambda x, z, pos_weight=1.0, reduction="mean": _reduced(
            (1 - z) * x + (1 + (pos_weight - 1) * z) * np.logaddexp(0, -x), reduction))
declare(F.mse_loss, options(shaped((2, 3), (2, 3)), *REDUCTIONS),
        lambda x, z, *, reduction: _reduced((x - z) ** 2, reduction), analytic=True)
declare(F.l1_loss, options(shaped((2, 3), (2, 3)), *REDUCTIONS),
        lambda x, z, *, reduction: _reduced(abs(x - z), reduction),
        kinks=lambda x, z, *, reduction: x - z)


def _huber(x, z, *, reduction, delta=1.0):
    e = abs(x - z)
    return _reduced(np.where(e <= delta, e * e / 2, delta * (e - delta / 2)), reduction)


declare(F.huber_loss, options(shaped((2, 3), (2, 3)), *REDUCTIONS), _huber,
        kinks=lambda x, z, *, reduction, delta=1.0: abs(x - z) - delta)
declare(F.kl_div, options(shaped((2, 3), (2, 3), domain=Domain(-3, 0)), *REDUCTIONS),
        lambda q, p, *, reduction: (np.exp(p) * (p - q)).sum() / 2 if reduction == "mean"
        else _reduced(np.exp(p) * (p - q), reduction), analytic=True)

# --- convolution and pooling

declare(F.conv1d, options(shaped((1, 2, 5), (2, 1, 2), (2,)), {"groups": 2},
        {"groups": 2, "stride": 2, "padding": 1}, {"groups": 2, "dilation": 2},
        {"groups": 2, "padding": "same"}, {"groups": 2, "padding": ((0, 2),)}))
declare(F.conv2d, options(shaped((1, 2, 3, 4), (1, 2, 2, 2), (1,)), {}, {"stride": (2, 1)},
        {"padding": (1, 0), "dilation": (2, 1)}))
declare(
    F.avg_pool1d,
    options(shaped((1, 2, 6)), {"size": 2}, {"size": 3, "stride": 1, "padding": 1},
            {"size": 3, "padding": 1, "count_include_pad": False}, {"size": 4, "ceil_mode": True}),
)
declare(F.avg_pool2d, options(shaped((1, 1, 4, 4)), {"size": 2}, {"size": (2, 3), "stride": 1},
        {"size": 3, "padding": 1, "ceil_mode": True, "count_include_pad": False}))
declare(F.max_pool1d, options(shaped((1, 2, 6), flavours=APART), {"size": 2},
        {"size": 3, "stride": 1, "padding": 1}, {"size": 2, "dilation": 3},
        {"size": 4, "ceil_mode": True}))
declare(F.max_pool2d, options(shaped((1, 1, 4, 4), flavours=APART), {"size": 2},
        {"size": (2, 3), "stride": 1}), subgradients=(
    Subgradient("max_pool of equal entries", (np.ones((1, 1, 2, 2)),),
                (np.full((1, 1, 2, 2), 0.25),), {"size": 2}, "shared equally"),))
