"""What layers are made of: activations, dropout, norms, attention, losses, convolution, pooling.

Shapes by one legend: b batch, t time, h heads, k head width, d model width, v vocabulary,
c channels, o output channels. numpy's array functions (arrays.py) are reachable here too.
Norms and losses of half types are computed in float32; a loss is returned in float32.
"""

import builtins
import math

from . import dtypes, kernels, ops
from .arrays import *  # noqa: F403
from .arrays import UFUNCS as UFUNCS
from .arrays import (
    _axis,
    _integers,
    _xp,
    array_of,
    astype,
    clip,
    einsum,
    full_precision,
    mean,
    reshape,
    split,
    square,
)
from .autograd import op
from .backend import DeviceError, is_host, is_recorded, row_max, row_sums
from .fused import accelerated, fused

# -------------------------------------------------------------------------------- activations


def softplus(x):
    """log(1 + e^x), without overflow."""
    return ops.logaddexp(x, 0)


def log_sigmoid(x):
    """log(1 / (1 + e^-x)), without overflow."""
    return -softplus(-x)


@fused(kernels.gelu)
def gelu(x):
    """x Phi(x), Phi the normal distribution function      Hendrycks & Gimpel 2016

    Phi(x) = erfc(-x / sqrt 2) / 2 keeps its digits in the lower tail, where 1 + erf loses them.
    """
    return x * (0.5 * ops.erfc(x * -math.sqrt(0.5)))


def gelu_tanh(x):
    """x (1 + tanh u) / 2,  u = sqrt(2 / pi) (x + 0.044715 x^3)      Hendrycks & Gimpel 2016

    (1 + tanh u) / 2 is sigmoid(2 u), which keeps its digits in the lower tail.
    """
    inner = x * (1 + 0.044715 * square(ops.clip(x, min=-30, max=30)))  # 0 or 1 already; no overflow
    return x * ops.sigmoid((2 * math.sqrt(2 / math.pi)) * inner)


def leaky_relu(x, slope=0.01):
    """x where x > 0, slope x elsewhere (there the derivative at 0, too)."""
    return ops.where(array_of(x) > 0, x, x * slope)


def elu(x, alpha=1.0):
    """x where x > 0, alpha (e^x - 1) elsewhere (there the derivative at 0, too)."""
    return ops.where(array_of(x) > 0, x, alpha * ops.expm1(ops.clip(x, max=0)))


def selu(x):
    """elu, scaled so that mean 0 and variance 1 stay      Klambauer et al. 2017"""
    return 1.0507009873554805 * elu(x, 1.6732632423543772)


def mish(x):
    """x tanh(softplus(x))      Misra 2019"""
    return x * ops.tanh(softplus(x))


def hardtanh(x, low=-1.0, high=1.0):
    """x held between low and high."""
    return clip(x, low, high)


def glu(x, axis=-1):
    """a sigmoid(b), a and b the halves of x      Dauphin et al. 2017"""
    n = x.shape[_axis(axis, x.ndim)]
    if n % 2:
        raise ValueError(f"glu: axis {axis} has length {n}, expected an even one")
    a, b = split(x, 2, axis)
    return a * ops.sigmoid(b)


@fused(kernels.swiglu)
def swiglu(gate, up):
    """silu(gate) up      gate, up: (..., d)      Shazeer 2020"""
    return gate * ops.sigmoid(gate) * up  # the sigmoid is kept: silu's vjp would make it again


# ------------------------------------------------------------------------------------ dropout


def dropout(x, p, rng=None):
    """Each entry 0 with probability p, else divided by 1 - p; x itself without an rng.

    One key is drawn from `rng`. Entry i is decided by word i mod 4 of Philox block i div 4, so
    that any device makes the same mask from the same key.      Srivastava et al. 2014
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p: got {p}, expected a probability from 0 to 1")
    if rng is None or p == 0:
        return x
    if is_recorded():
        raise DeviceError(
            "dropout: in a recorded step every launch would drop the same entries; pass rng=None"
        )
    return dropped(x, p=p, key=int(rng.integers(2**64, dtype="uint64")))


@op(half="native")
def dropped(xp, x, *, p, key):
    """x with the entries dropped whose word is below 2^32 p, the others divided by 1 - p."""
    return _dropped(x, p=p, key=key)


@accelerated(kernels.dropout)
def _dropped(x, *, p, key):
    if x.dtype in dtypes.HALF:  # 1 / (1 - p) is not rounded to a half
        return _dropped(x.astype(dtypes.float32), p=p, key=key).astype(x.dtype)
    xp, threshold = _xp(x), int(p * 2**32)
    words = random_words(xp, key, x.size).reshape(x.shape)
    kept = (words >= threshold).astype(x.dtype)
    if p < 1:
        kept *= 1 / (1 - p)
    return x * kept


dropped.vjp(x=lambda g, p, key: dropped(g, p=p, key=key))


def random_words(xp, key, count):
    """The first `count` 32-bit words of the Philox4x32-10 stream of a 64-bit key."""
    block = xp.arange(-(-count // 4), dtype="uint64")
    words = philox(xp, (block & _LOW, block >> 32, 0 * block, 0 * block), key)
    return xp.stack(words, axis=-1).reshape(-1)[:count]


_LOW = 0xFFFFFFFF


def philox(xp, counter, key):
    """Philox4x32-10: ten rounds that turn four counter words into four random ones.

    counter: four uint64 arrays, each below 2^32      key: a number below 2^64
    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
    """
    a, b, c, d = counter
    low, high = key & _LOW, key >> 32
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57  # 32 by 32 bits: exact in 64
        a, b, c, d = (right >> 32) ^ b ^ low, right & _LOW, (left >> 32) ^ d ^ high, left & _LOW
        low, high = (low + 0x9E3779B9) & _LOW, (high + 0xBB67AE85) & _LOW  # Weyl sequences
    return a, b, c, d


# -------------------------------------------------------------------------------------- norms


@op
def rms_normalized(xp, x, *, eps):
    """x / sqrt(mean x^2 + eps)      over the last axis"""
    return x * _inverse_rms(x, eps)


def _inverse_rms(x, eps):
    """(mean x^2 + eps)^(-1/2)      x: (..., d) -> (..., 1)"""
    return ops.rsqrt(_row_products(x, x) / x.shape[-1] + eps)


def _row_products(a, b):
    """sum_j a_j b_j      a, b: (..., d) -> (..., 1)

    A batched product of rows with columns: one pass, and no array of what is added up.
    """
    return (a[..., None, :] @ b[..., :, None])[..., 0]


def _rms_normalized_vjp(g, x, eps):
    """r (g - n mean(g n)),  r = (mean x^2 + eps)^(-1/2),  n = r x"""
    r = _inverse_rms(x, eps)
    return (x * (_row_products(g, x) * r * r / -x.shape[-1]) + g) * r  # g is added in place


rms_normalized.vjp(x=_rms_normalized_vjp)


@fused(kernels.rms_norm)
def rms_norm(x, weight, *, eps=1e-6):
    """y = x / sqrt(mean x^2 + eps) * w      x: (..., d)  w: (d,)

    Zhang & Sennrich 2019, eq. 4
    """
    _check_width("rms_norm", x, weight)
    return rms_normalized(x, eps=eps) * weight


@fused(kernels.add_rms_norm)
def add_rms_norm(x, residual, weight, *, eps=1e-6):
    """(h, rms_norm(h)) with h = x + residual      x, residual: (..., d)  w: (d,)"""
    h = x + residual
    return h, rms_norm(h, weight, eps=eps)


def layer_norm(x, weight=None, bias=None, *, eps=1e-5):
    """y = (x - mean x) / sqrt(var x + eps) * w + b      x: (..., d)  w, b: (d,)      Ba et al. 2016

    The variance is the mean square of what is centred: RMSNorm of x - mean x.
    """
    _check_width("layer_norm", x, weight, bias)
    wide = full_precision(x)
    y = rms_normalized(wide - mean(wide, -1, keepdims=True), eps=eps)
    y = astype(y, x.dtype)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def group_norm(x, groups, weight=None, bias=None, *, eps=1e-5):
    """layer_norm over the channels of each group and all places      x: (b, c, ...)  w, b: (c,)

    Wu & He 2018
    """
    b, c = x.shape[:2]
    if c % groups:
        raise ValueError(f"group_norm: {c} channels do not make {groups} equal groups")
    flat = reshape(x, (b, groups, math.prod(x.shape[1:]) // groups))
    y = reshape(layer_norm(flat, eps=eps), x.shape)
    column = (c, *(1,) * (x.ndim - 2))
    y = y if weight is None else y * reshape(weight, column)
    return y if bias is None else y + reshape(bias, column)


def _check_width(name, x, *weights):
    for weight in weights:
        if weight is not None and weight.shape != x.shape[-1:]:
            raise ValueError(f"{name}: x is {x.shape}, weight {weight.shape}, not {x.shape[-1:]}")


def normalize(x, axis=-1, eps=1e-12):
    """x / max(|x|, eps), of length 1 along the axis; the zero vector stays zero."""
    wide = full_precision(x)
    squares = ops.sum(square(wide), axis=axis, keepdims=True)
    return astype(wide * ops.rsqrt(ops.clip(squares, min=eps * eps)), x.dtype)


def cosine_similarity(a, b, axis=-1, eps=1e-8):
    """The cosine of the angle between a and b along the axis; 0 with a zero vector."""
    dtype = dtypes.promote(a.dtype, b.dtype)
    shape = _xp(a, b).broadcast_shapes(a.shape, b.shape)  # first: a stretched axis counts in |a|
    a, b = (ops.broadcast_to(full_precision(x), shape=shape) for x in (a, b))
    return astype(ops.sum(normalize(a, axis, eps) * normalize(b, axis, eps), axis=axis), dtype)


# ----------------------------------------------------------------------- linear maps, embedding


@op(half="native")
def projected(xp, x, weight):
    """x W^T      x: (..., n, i)  W: (o, i) or (..., o, i) -> (..., n, o)

    An op, so that W's gradient is made in W's own layout: no transposed copy.
    """
    return ops.matmul.forward(xp, x, weight.swapaxes(-1, -2))


def _projected_vjp_weight(g, x, weight_shape):
    if len(weight_shape) == 2:  # one W for all: its gradient is a sum over all rows
        g, x = _rows(g), _rows(x)
    return ops.matmul(g.swapaxes(-1, -2), x)


def _rows(x):
    return x.reshape((math.prod(x.shape[:-1]), x.shape[-1]))


projected.vjp(x=lambda g, weight: ops.matmul(g, weight),
              weight=_projected_vjp_weight)  # fmt: skip


def linear(x, weight, bias=None):
    """x W^T + b      x: (..., i)  W: (o, i)  b: (o,) -> (..., o)"""
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:]:
        raise ValueError(f"linear: x is {x.shape}, weight {weight.shape}; expected (o, x's last)")
    return projected(x, weight) if bias is None else affine(x, weight, bias)


@fused(kernels.affine)
def affine(x, weight, bias):
    """x W^T + b      x: (..., i)  W: (o, i)  b: (o,) -> (..., o)"""
    return projected(x, weight) + bias


@fused(kernels.linear_maps)
def linear_maps(x, *weights):
    """(x W_1^T, x W_2^T, ...)      x: (..., i)  W: (o, i) -> (..., o) for each W"""
    return tuple(linear(x, weight) for weight in weights)


@fused(kernels.embedding)
def embedding(weight, indices):
    """The rows of a table      weight: (v, d)  indices: (...) ints in 0 .. v - 1 -> (..., d)"""
    indices, v = _integers(indices, weight), weight.shape[0]
    if indices.size and not (indices.min() >= 0 and indices.max() < v):
        raise IndexError(
            f"indices: got {indices.min()} to {indices.max()}, expected 0 to {v - 1} for a table "
            f"of shape {weight.shape}"
        )
    return weight[indices]


# ---------------------------------------------------------------------------------- attention


@fused(kernels.rope)
def rope(x, cos, sin):
    """Rotary positions: pairs (x_i, x_(i + k/2)) turned by their angle      Su et al. 2021

    x: (..., t, k)  cos, sin: (t, k/2), or more axes that broadcast: (b, 1, t, k/2)
    The halves are the pairs' two coordinates, in the order of Hugging Face's models.
    """
    half = x.shape[-1] // 2
    if x.shape[-1] != 2 * half or {cos.shape[-1], sin.shape[-1]} != {half}:
        raise ValueError(
            f"rope: x is {x.shape}, cos {cos.shape}, sin {sin.shape}; expected an even width in x "
            "and half of it in the tables"
        )
    return rotated(x, cos, sin)


@op
def rotated(xp, x, cos, sin):
    """(a cos - b sin, b cos + a sin), a and b the halves of x"""
    a, b = _coordinates(x)
    y = xp.concatenate([b, a], axis=-1)
    y *= _table(xp, x, -sin, sin)  # whole rows: two passes are cheaper than four halves
    y += x * _table(xp, x, cos, cos)
    return y


def _table(xp, x, left, right):
    """[left, right]; for many x in x[0]'s shape and layout, which numpy multiplies in one go"""
    table = xp.concatenate([left, right], axis=-1)
    if x.ndim <= table.ndim or len(x) < 4:
        return table
    wide = xp.empty_like(x[0])
    wide[...] = table
    return wide


def _coordinates(x):
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _rotated_vjp_cos(g, x):
    (ga, gb), (a, b) = _coordinates(g), _coordinates(x)
    return ga * a + gb * b


def _rotated_vjp_sin(g, x):
    (ga, gb), (a, b) = _coordinates(g), _coordinates(x)
    return gb * a - ga * b


rotated.vjp(x=lambda g, cos, sin: rotated(g, cos, -sin),  # the transpose turns back
            cos=_rotated_vjp_cos,
            sin=_rotated_vjp_sin)  # fmt: skip


@op
def masked_softmax(xp, x, *, mask=None):
    """softmax over the last axis where the mask holds, exact zeros elsewhere

    A row without any entry (all masked, or all -inf) is all zeros, not NaN.
    """
    x = xp.array(x)
    if mask is not None:
        xp.copyto(x, -math.inf, where=~mask)  # `where` with a broadcast mask is slow
    return _softmax_in_place(xp, x)


def _softmax_in_place(xp, x):
    """softmax of rows that are ours to overwrite; zeros where all are -inf"""
    m = row_max(x)
    x -= xp.where(m == -math.inf, 0, m)
    e = xp.exp(x, out=x)
    total = row_sums(e)
    e /= xp.where(total == 0, 1, total)
    return e


masked_softmax.vjp(x=lambda g, y: y * (g - _row_products(g, y)))


@fused(kernels.attention)
def attention(q, k, v, mask=None, *, causal=False, scale=None):
    """softmax(q k^T scale + mask) v, scale = k^(-1/2)      Vaswani et al. 2017, eq. 1

    q: (b, h, t, k)  keys k, values v: (b, g, s, k), g dividing h: h/g heads share each
    mask: broadcasts to (b, h, t, s), True = may be attended to, or floats that are added
    causal: the last query is at the last key; query i sees keys up to i + s - t
    A query that may see nothing gets zeros.
    """
    fits = q.ndim == k.ndim == v.ndim == 4 and q.shape[-1] == k.shape[-1]
    if not fits or k.shape[:3] != v.shape[:3] or q.shape[1] % builtins.max(k.shape[1], 1):
        raise ValueError(f"attention: q {q.shape}, k {k.shape}, v {v.shape} do not go together")
    t, s = q.shape[2], k.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if causal and mask is None and _in_steps(q, k, v):
        return lower_matmul(lower_softmax(lower_outer(q * scale, k), t=t), v)
    scores = grouped(projected, q * scale, k)  # (b, h, t, s)
    seen = _xp(q).tri(t, s, s - t, dtype=bool) if causal and t > 1 else None
    if mask is not None:
        if dtypes.is_float(mask.dtype):
            scores = scores + mask
        else:
            allowed = array_of(mask).astype(bool)
            seen = allowed if seen is None else seen & allowed
    weights = masked_softmax(scores, mask=seen)
    return grouped(ops.matmul, weights, v)


# Causal attention needs nothing beyond the diagonal, which here goes down in steps: a block of rows
# reaches as far as its last one. Scores and weights are packed: the entries of one block after the
# other make one axis, and what lies beyond is not there.

STEP = 64  # rows: products of fewer are slow


def _in_steps(q, k, v):
    alike = q.shape == k.shape and q.dtype == k.dtype == v.dtype
    return alike and q.shape[-2] > STEP and is_host(_xp(q))


def _steps(t, step):
    """Pairs (a block of rows, the columns that it reaches)."""
    stops = [builtins.min(i + step, t) for i in range(0, t, step)]
    return [(slice(i * step, stop), slice(0, stop)) for i, stop in enumerate(stops)]


def _packed(xp, a, step):
    """Room for the blocks of a (t, t) matrix for each of      a: (..., t, k) -> (..., packed)"""
    entries = builtins.sum((r.stop - r.start) * c.stop for r, c in _steps(a.shape[-2], step))
    return xp.empty((*a.shape[:-2], entries), a.dtype)


def _blocks(packed, t, step):
    """Triples (a block's rows, the columns that it reaches, a view of its entries)."""
    begin = 0
    for rows, columns in _steps(t, step):
        shape = rows.stop - rows.start, columns.stop
        end = begin + shape[0] * shape[1]
        yield rows, columns, packed[..., begin:end].reshape(*packed.shape[:-1], *shape)
        begin = end


@op
def lower_outer(xp, a, b, *, step=STEP):
    """a b^T on and below the diagonal      a, b: (..., t, k) -> (..., packed)"""
    y = _packed(xp, a, step)
    for rows, columns, block in _blocks(y, a.shape[-2], step):
        xp.matmul(a[..., rows, :], b[..., columns, :].swapaxes(-1, -2), out=block)
    return y


@op
def lower_sums(xp, x, *, t, step=STEP):
    """In the place of each entry the sum of its row      x: (..., packed)"""
    y = xp.empty_like(x)
    for (*_, block), (*_, sums) in zip(_blocks(x, t, step), _blocks(y, t, step), strict=True):
        sums[...] = row_sums(block)
    return y


lower_sums.vjp(x=lambda g, t, step: lower_sums(g, t=t, step=step))


@op
def lower_softmax(xp, x, *, t, step=STEP):
    """softmax of each of t rows up to the diagonal      x: (..., packed)"""
    y = xp.array(x)
    beyond = ~xp.tri(step, dtype=bool)
    for rows, _, block in _blocks(y, t, step):
        n = rows.stop - rows.start
        xp.copyto(block[..., rows], -math.inf, where=beyond[:n, :n])
        _softmax_in_place(xp, block)
    return y


lower_softmax.vjp(x=lambda g, y, t, step: y * (g - lower_sums(g * y, t=t, step=step)))


@op
def lower_matmul(xp, w, x, *, step=STEP):
    """w x, of w what is on and below the diagonal      w: (..., packed)  x: (..., t, k)"""
    y = xp.empty_like(x)
    for rows, columns, block in _blocks(w, x.shape[-2], step):
        xp.matmul(block, x[..., columns, :], out=y[..., rows, :])
    return y


@op
def lower_matmul_t(xp, w, x, *, step=STEP):
    """w^T x, of w what is on and below the diagonal      shapes as there"""
    *others, (rows, _, widest) = _blocks(w, x.shape[-2], step)
    y = xp.empty_like(x)
    xp.matmul(widest.swapaxes(-1, -2), x[..., rows, :], out=y)
    for rows, columns, block in others:
        y[..., columns, :] += block.swapaxes(-1, -2) @ x[..., rows, :]
    return y


lower_outer.vjp(a=lambda g, b, step: lower_matmul(g, b, step=step),
                b=lambda g, a, step: lower_matmul_t(g, a, step=step))  # fmt: skip
lower_matmul.vjp(w=lambda g, x, step: lower_outer(g, x, step=step),
                 x=lambda g, w, step: lower_matmul_t(w, g, step=step))  # fmt: skip
lower_matmul_t.vjp(w=lambda g, x, step: lower_outer(x, g, step=step),
                   x=lambda g, w, step: lower_matmul(w, g, step=step))  # fmt: skip


def grouped(product, a, b):
    """product(a, b) where several heads of a share one of b      a: (b, h, n, ..)  b: (b, g, ..)"""
    (batch, h, n, width), groups = a.shape, b.shape[1]
    if h == groups:
        return product(a, b)
    together = reshape(a, (batch, groups, h // groups * n, width))  # b is not repeated
    y = product(together, b)
    return reshape(y, (batch, h, n, y.shape[-1]))


# ------------------------------------------------------------------------------------- losses


def _reduced(losses, reduction, weight=None):
    """mean, sum or none of the losses; the mean over `weight` of them, if it is given."""
    if reduction == "none":
        return losses
    total = ops.sum(losses)
    if reduction == "sum":
        return total
    if reduction != "mean":
        raise ValueError(f"reduction: got {reduction!r}, expected 'mean', 'sum' or 'none'")
    return total / (losses.size if weight is None else weight)


def _targets(logits, targets, ignore_index):
    """Checked targets, with 0 in the place of those to ignore, and which ones count."""
    targets = _integers(targets, logits, "targets")
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets: got shape {targets.shape}, expected {logits.shape[:-1]}")
    counted = targets != ignore_index
    safe = _xp(logits).where(counted, targets, 0)
    if safe.size and not (safe.min() >= 0 and safe.max() < logits.shape[-1]):
        raise IndexError(
            f"targets: got {safe.min()} to {safe.max()}, expected 0 to {logits.shape[-1] - 1}, "
            f"or {ignore_index} to be ignored"
        )
    return safe, counted


def _factors(weight, logits, targets):
    """The class weight of each target, off the tape; None without weights."""
    if weight is None:
        return None
    if weight.shape != logits.shape[-1:]:
        raise ValueError(f"weight: got shape {weight.shape}, expected {logits.shape[-1:]}")
    return full_precision(array_of(weight))[targets]


def _counted(losses, counted, reduction, factors=None):
    """The reduction of the losses that count. The mean of none of them is 0."""
    if counted.all() and factors is None:
        return _reduced(losses, reduction)
    number = counted.sum() if factors is None else (factors * counted).sum()
    return _reduced(ops.where(counted, losses, 0), reduction, float(number) or 1.0)


def cross_entropy(logits, targets, *, weight=None, ignore_index=-100, reduction="mean",
                  label_smoothing=0.0):  # fmt: skip
    """-log softmax(logits)[target]      logits: (..., v)  targets: (...) ints  weight: (v,)

    weight: a factor for the loss of each class; the mean is then divided by the targets' factors
    label_smoothing e: the target distribution is 1 - e at the target and e / v everywhere.
    Rows whose target is ignore_index count neither in the sum nor in the mean; the mean of none
    of them is 0.
    """
    logits = full_precision(logits)
    targets, counted = _targets(logits, targets, ignore_index)
    factors = _factors(weight, logits, targets)
    losses = ops.nll(logits, targets=targets)
    losses = losses if factors is None else losses * factors
    if label_smoothing:
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing: got {label_smoothing}, expected 0 to 1")
        everywhere = ops.logsumexp(logits, axis=-1, keepdims=True) - logits  # -log softmax
        everywhere = everywhere if weight is None else everywhere * array_of(weight)
        losses = losses * (1 - label_smoothing) + mean(everywhere, -1) * label_smoothing
    return _counted(losses, counted, reduction, factors)


@fused(kernels.linear_cross_entropy)
def linear_cross_entropy(x, weight, targets, *, ignore_index=-100, reduction="mean"):
    """cross_entropy(x W^T, targets)      x: (..., d)  W: (v, d)  targets: (...) ints"""
    logits = linear(x, weight)  # (..., v)
    return cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)


def nll_loss(log_probabilities, targets, *, weight=None, ignore_index=-100, reduction="mean"):
    """-log_probabilities[target]      log_probabilities: (..., v)  targets: (...) ints

    weight (v,): a factor for the loss of each class, as in cross_entropy
    """
    wide = full_precision(log_probabilities)
    targets, counted = _targets(wide, targets, ignore_index)
    factors = _factors(weight, wide, targets)
    picked = ops.take_along_axis(wide, indices=targets[..., None], axis=-1)
    losses = -reshape(picked, targets.shape)
    return _counted(losses if factors is None else losses * factors, counted, reduction, factors)


def binary_cross_entropy_with_logits(logits, targets, *, pos_weight=None, reduction="mean"):
    """-(w z log s(x) + (1 - z) log(1 - s(x))),  s the sigmoid, z the target, without overflow

    = w z softplus(-x) + (1 - z) softplus(x): no term is negative, so that nothing cancels
    pos_weight w: broadcasts to x
    """
    x, z = full_precision(logits), _like_targets("targets", targets, logits)
    positive = z * softplus(-x)
    if pos_weight is not None:
        positive = positive * pos_weight
    return _reduced(positive + (1 - z) * softplus(x), reduction)


def mse_loss(x, target, *, reduction="mean"):
    """(x - target)^2"""
    target = _like_targets("target", target, x)
    return _reduced(square(full_precision(x) - target), reduction)


def l1_loss(x, target, *, reduction="mean"):
    """|x - target|, with derivative 0 where they are equal"""
    target = _like_targets("target", target, x)
    return _reduced(ops.abs(full_precision(x) - target), reduction)


def huber_loss(x, target, *, delta=1.0, reduction="mean"):
    """e^2 / 2 where |e| <= delta, delta (|e| - delta / 2) beyond,  e = x - target

    Huber 1964
    """
    if delta <= 0:
        raise ValueError(f"delta: got {delta}, expected a positive number")
    e = full_precision(x) - _like_targets("target", target, x)
    near = ops.abs(array_of(e)) <= delta
    losses = ops.where(near, 0.5 * square(e), delta * (ops.abs(e) - 0.5 * delta))
    return _reduced(losses, reduction)


def kl_div(log_q, log_p, *, reduction="mean"):
    """p (log p - log q), of log-probabilities      reduction "mean" divides by the first length

    So for (b, v) it is the mean divergence of the b distributions. p = 0 contributes 0.
    """
    log_q, log_p = full_precision(log_q), _like_targets("log_p", log_p, log_q)
    zero = array_of(log_p) == -math.inf
    log_p = ops.where(zero, 0, log_p)
    losses = ops.where(zero, 0, ops.exp(log_p) * (log_p - ops.where(zero, 0, log_q)))
    return _reduced(losses, reduction, losses.shape[0] if losses.ndim else 1)


def _like_targets(name, target, x):
    """The target, in x's precision: of x's shape, or a ValueError (broadcasting hides mistakes)."""
    if not hasattr(target, "dtype"):
        target = _xp(x).asarray(target, dtype=x.dtype)
    if target.shape != x.shape:
        raise ValueError(f"{name}: got shape {target.shape}, expected {x.shape}")
    wide = full_precision(target)
    return wide if dtypes.is_float(wide.dtype) else astype(wide, full_precision(x).dtype)


# ----------------------------------------------------------------------- convolution and pooling


def conv1d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    """y[b, o, i] = sum_(c, u) w[o, c, u] x[b, c, i stride + u dilation] + bias[o]

    x: (b, c, t)  weight: (o, c / groups, u)  bias: (o,)
    padding: zeros at both ends: a number, [(before, after)], or "same" (as many places as x has)
    """
    return _convolution("conv1d", 1, x, weight, bias, stride, padding, dilation, groups)


def conv2d(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1):
    """y[b, o, i, j] = sum_(c, u, v) w[o, c, u, v] x[b, c, i stride + u dilation, ...] + bias[o]

    x: (b, c, y, x)  weight: (o, c / groups, u, v)  bias: (o,)
    stride, dilation: a number, or one for each of the two axes
    padding: the same, or a pair (before, after) for each, or "same" (as many places as x has)
    """
    return _convolution("conv2d", 2, x, weight, bias, stride, padding, dilation, groups)


def _convolution(name, n, x, weight, bias, stride, padding, dilation, groups):
    """The windows of x against the weights: one matrix product for each group."""
    if x.ndim != n + 2 or weight.ndim != n + 2:
        raise ValueError(f"{name}: x is {x.shape}, weight {weight.shape}; expected {n + 2} axes")
    (b, c), (o, each) = x.shape[:2], weight.shape[:2]
    if groups < 1 or c != each * groups or o % groups:
        raise ValueError(f"{name}: x is {x.shape}, weight {weight.shape}, not for {groups} groups")
    size, dilation = weight.shape[2:], _per_axis("dilation", dilation, n, 1)
    stride = _per_axis("stride", stride, n, 1)
    if isinstance(padding, str):
        padding = _same(name, padding, size, stride, dilation)
    padding = _pairs(padding, n)
    columns = _windows(name, x, size, stride, padding, dilation)
    columns = reshape(columns, (b, groups, each, *columns.shape[2:]))
    kernels = reshape(weight, (groups, o // groups, each, *size))
    places, taps = "xy"[:n], "uv"[:n]
    y = einsum(f"bgc{places}{taps},goc{taps}->bgo{places}", columns, kernels)
    y = reshape(y, (b, o, *y.shape[3:]))
    return y if bias is None else y + reshape(bias, (o, *(1,) * n))


def _same(name, padding, size, stride, dilation):
    """The padding that leaves as many places as x has, a place more behind than before."""
    if padding != "same":
        raise ValueError(f"padding: got {padding!r}, expected numbers or 'same'")
    if builtins.max(stride) > 1:
        raise ValueError(f"{name}: padding 'same' goes with stride 1, got stride {stride}")
    spans = [(u - 1) * step for u, step in zip(size, dilation, strict=True)]
    return [(span // 2, span - span // 2) for span in spans]


def _windows(name, x, size, stride, padding, dilation, value=0):
    """Windows of the last axes of x, as new last axes      (b, c, y, x) -> (b, c, i, j, u, v)"""
    n = len(size)
    if builtins.any(map(builtins.any, padding)):
        x = ops.pad(x, widths=((0, 0), (0, 0), *padding), value=value)
    reach = [(u - 1) * step + 1 for u, step in zip(size, dilation, strict=True)]
    for length, s in zip(x.shape[2:], reach, strict=True):
        if s > length:
            raise ValueError(f"{name}: a window of {s} is longer than the padded input's {length}")
    for k in range(n):
        x = ops.windows(x, size=reach[k], stride=stride[k], axis=2 + k)
    if builtins.max(dilation) > 1:
        x = x[(..., *(slice(None, None, step) for step in dilation))]
    return x


def _per_axis(name, value, n, least):
    """One number for each of n axes."""
    found = tuple(value) if isinstance(value, tuple | list) else (value,) * n
    if len(found) != n or not builtins.all(isinstance(s, int) and s >= least for s in found):
        raise ValueError(f"{name}: got {value}, expected a whole number >= {least}, or {n} of them")
    return found


def _pairs(padding, n):
    """(before, after) for each of n axes, from a number, one for each axis, or the pairs."""
    several = isinstance(padding, tuple | list)
    if several and builtins.all(isinstance(p, tuple | list) for p in padding):
        before, after = (_per_axis("padding", side, n, 0) for side in zip(*padding, strict=True))
    else:
        before = after = _per_axis("padding", padding, n, 0)
    return list(zip(before, after, strict=True))


def max_pool1d(x, size, stride=None, padding=0, *, dilation=1, ceil_mode=False):
    """The maximum of each window      x: (b, c, t); options as for max_pool2d"""
    return _max_pool("max_pool1d", 1, x, size, stride, padding, dilation, ceil_mode)


def max_pool2d(x, size, stride=None, padding=0, *, dilation=1, ceil_mode=False):
    """The maximum of each window      x: (b, c, y, x); padding never wins

    stride: the size unless given      dilation: the distance of a window's entries
    ceil_mode: the last windows may reach beyond the end
    """
    return _max_pool("max_pool2d", 2, x, size, stride, padding, dilation, ceil_mode)


def avg_pool1d(x, size, stride=None, padding=0, *, ceil_mode=False, count_include_pad=True):
    """The mean of each window      x: (b, c, t); options as for avg_pool2d"""
    return _avg_pool("avg_pool1d", 1, x, size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(x, size, stride=None, padding=0, *, ceil_mode=False, count_include_pad=True):
    """The mean of each window      x: (b, c, y, x)

    The padding counts as zeros, or not at all. What lies beyond it (ceil_mode) never counts.
    """
    return _avg_pool("avg_pool2d", 2, x, size, stride, padding, ceil_mode, count_include_pad)


def _max_pool(name, n, x, size, stride, padding, dilation, ceil_mode):
    size, stride, padding, dilation, beyond = _pool(
        name, n, x, size, stride, padding, dilation, ceil_mode
    )
    padding = [(p, q + r) for (p, q), r in zip(padding, beyond, strict=True)]
    windows = _windows(name, x, size, stride, padding, dilation, -math.inf)
    return ops.max(windows, axis=tuple(range(-n, 0)))


def _avg_pool(name, n, x, size, stride, padding, ceil_mode, count_include_pad):
    size, stride, padding, once, beyond = _pool(name, n, x, size, stride, padding, 1, ceil_mode)
    over = tuple(range(-n, 0))
    wider = [(p, q + r) for (p, q), r in zip(padding, beyond, strict=True)]
    windows = _windows(name, x, size, stride, wider, once)
    if count_include_pad and not builtins.any(beyond):
        return mean(windows, axis=over)
    counts = _xp(x).ones((1, 1, *x.shape[2:]), full_precision(x).dtype)
    if count_include_pad:  # the padding counts, what is beyond it does not
        counts = ops.pad(counts, widths=((0, 0), (0, 0), *padding), value=1)
        wider = [(0, r) for r in beyond]
    numbers = ops.sum(_windows(name, counts, size, stride, wider, once), axis=over)
    return astype(ops.sum(full_precision(windows), axis=over) / numbers, x.dtype)


def _pool(name, n, x, size, stride, padding, dilation, ceil_mode):
    """Checked sizes of a pool, and how far its last windows reach beyond the padded input."""
    if x.ndim != n + 2:
        raise ValueError(f"{name}: x is {x.shape}, expected {n + 2} axes")
    size, dilation = _per_axis("size", size, n, 1), _per_axis("dilation", dilation, n, 1)
    stride = size if stride is None else _per_axis("stride", stride, n, 1)
    padding, beyond = _pairs(padding, n), []
    for length, s, step, pair, d in zip(x.shape[2:], size, stride, padding, dilation, strict=True):
        reach, whole = (s - 1) * d + 1, length + builtins.sum(pair)
        if 2 * builtins.max(pair) > reach:
            raise ValueError(f"{name}: padding {pair} is more than half of the window's {reach}")
        places = -(-(whole - reach) // step) + 1  # rounded up
        if (places - 1) * step >= length + pair[0]:  # it would start in the padding behind
            places -= 1
        beyond.append(builtins.max((places - 1) * step + reach - whole, 0) if ceil_mode else 0)
    return size, stride, padding, dilation, beyond


__all__ = [
    "add_rms_norm", "attention", "avg_pool1d", "avg_pool2d", "binary_cross_entropy_with_logits",
    "conv1d", "conv2d", "cosine_similarity", "cross_entropy", "dropout", "elu", "embedding",
    "gelu", "gelu_tanh", "glu", "group_norm", "hardtanh", "huber_loss", "kl_div", "l1_loss",
    "layer_norm", "leaky_relu", "linear", "linear_cross_entropy", "linear_maps", "log_sigmoid",
    "max_pool1d", "max_pool2d", "mish", "mse_loss", "nll_loss", "normalize", "rms_norm", "rope",
    "selu", "softplus", "swiglu",
]  # fmt: skip
