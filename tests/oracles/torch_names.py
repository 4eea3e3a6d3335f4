"""What PyTorch's functions are called here: each entry takes torch's arguments and calls ours.

An entry's parameters are the options that we offer. One that it does not name, or that `refuse`
turns away, is an option that we do not have.
"""

import math
import operator
from functools import wraps

import numpy as np
from unsupported import refuse

import tinygrad_ml as tg
from tinygrad_ml import functional as F
from tinygrad_ml import linalg, ops

# ------------------------------------------------------------------------------ small adaptions


def with_axes(f):
    """A function that is not for 0-d tensors; to torch they have an axis of length 1."""

    @wraps(f)
    def adapted(x, *args, **options):
        refuse(x.ndim == 0, "an axis of a 0-d tensor")
        return f(x, *args, **options)

    return adapted


def axes(x, dim):
    """torch's dim: a number, several, or none and [] for all."""
    refuse(x.ndim == 0 and dim not in (None, (), []), "an axis of a 0-d tensor")
    return tuple(dim) or None if isinstance(dim, list | tuple) else dim


def last_to_class(x):
    """torch has the classes along axis 1, we along the last."""
    return tg.moveaxis(x, 1, -1) if x.ndim > 1 else x


def per_class(f):
    """A loss of class scores and targets."""

    def adapted(x, target, weight=None, *, reduction="mean", ignore_index=-100, **options):
        refuse(hasattr(target, "requires_grad") or target.dtype.kind == "f",
               "targets that are probabilities")  # fmt: skip
        refuse(set(options) - {"label_smoothing"}, "options: " + ", ".join(options))
        counted = target[target != ignore_index]
        refuse(counted.size == 0 and reduction == "mean", "the mean of no loss: NaN there, 0 here")
        return f(last_to_class(x), target, weight=weight, ignore_index=ignore_index,
                 reduction=reduction, **options)  # fmt: skip

    return adapted


def paired(f, *names):
    """A loss of x and a target of the same shape."""

    def adapted(x, target, weight=None, *, reduction="mean", **options):
        refuse(weight is not None, "weights of entries")
        refuse(set(options) - set(names), "options: " + ", ".join(options))
        refuse(x.shape != target.shape, "a target that broadcasts")
        return f(x, target, reduction=reduction, **options)

    return adapted


def kl_div(x, target, *, reduction="mean", log_target=False):
    refuse(not log_target, "a target that is not in logarithms")
    refuse(reduction == "mean", "a mean over entries and not over distributions")
    return F.kl_div(x, target, reduction={"batchmean": "mean"}.get(reduction, reduction))


def moment(f):
    """var and std: torch's correction is numpy's ddof."""

    def adapted(x, dim=None, unbiased=True, keepdim=False, *, correction=None):
        if isinstance(dim, bool):
            dim, unbiased = None, dim
        ddof = int(unbiased) if correction is None else correction
        over = axes(x, dim)
        count = math.prod(x.shape if over is None else np.take(x.shape, over).ravel())
        refuse(count <= ddof, "a moment of too few entries: NaN there, an error here")
        return f(x, over, ddof, keepdim)

    return adapted


def sorting(f):
    def adapted(x, dim=-1, descending=False, *, stable=True):
        return f(x, axes(x, dim), descending)

    return adapted


def extreme(f, where):
    """max and min: of all, along an axis (with the place), or of two tensors."""

    def adapted(x, dim=None, keepdim=False):
        if hasattr(dim, "shape"):
            return (tg.maximum if f is tg.max else tg.minimum)(x, dim)
        over = axes(x, dim)
        y = f(x, over, keepdim)
        return y if dim is None else (y, where(x, axis=over, keepdims=keepdim))

    return adapted


def divided(a, b, *, rounding_mode=None):
    if rounding_mode == "floor":
        return tg.floor_divide(a, b)
    return tg.trunc(a / b) if rounding_mode else a / b


def clamped(x, min=None, max=None):
    return tg.clip(x, min, max)


def cut(x, size, dim=0):
    """split: parts of one size, the last one shorter; or of the sizes given."""
    if isinstance(size, list | tuple):
        return tg.array_split(x, np.cumsum(size)[:-1].tolist(), dim)
    return tg.array_split(x, list(range(size, x.shape[dim], size)), dim)


def chunks(x, number, dim=0):
    return cut(x, -(-x.shape[dim] // number), dim)


def cat(xs, dim=0):
    refuse(len({x.ndim for x in xs}) > 1, "an empty vector among matrices")
    return tg.concatenate(xs, dim)


def one(f):
    def adapted(x):
        refuse(isinstance(x, list), "several at once")
        return f(x)

    return adapted


def einsum(operands, subscripts):
    left, _, right = subscripts.partition("->")
    refuse("..." in left and "..." not in right, "an ellipsis that is summed")
    return tg.einsum(subscripts, *operands)


def at(x, dim, index):
    return x[(slice(None),) * (dim % x.ndim) + (index,)]


@with_axes
def flattened(x, start_dim=0, end_dim=-1):
    start, end = start_dim % x.ndim, end_dim % x.ndim
    return tg.reshape(x, (*x.shape[:start], -1, *x.shape[end + 1 :]))


def spread(x, *shape):
    """expand: -1 keeps a length."""
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
    new = len(shape) - x.ndim
    return tg.broadcast_to(x, tuple(x.shape[i - new] if n == -1 else n
                                    for i, n in enumerate(shape)))  # fmt: skip


def tiled(x, *reps):
    reps = reps[0] if len(reps) == 1 and isinstance(reps[0], list | tuple) else reps
    return tg.tile(x, tuple(reps))


def padded(x, pad, mode="constant", value=None):
    refuse(any(p < 0 for p in pad), "padding that cuts off")
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]  # torch begins at the last axis
    return tg.pad(
        x,
        [(0, 0)] * (x.ndim - len(pairs)) + pairs,
        value or 0,
        {"replicate": "edge", "circular": "wrap"}.get(mode, mode),
    )


def quantile(x, q, dim=None, keepdim=False, *, interpolation="linear"):
    refuse(getattr(q, "requires_grad", False), "a gradient to the place of a quantile")
    return tg.quantile(x, q, axes(x, dim), keepdim, interpolation)


def median(x, dim=None, keepdim=False):
    """torch takes the lower one of two in the middle."""
    y = tg.quantile(x, 0.5, axes(x, dim), keepdim, "lower")
    return y if dim is None else (y, None)


def differences(x, n=1, dim=-1, prepend=None, append=None):
    return tg.diff(x, n, dim, prepend, append)


@with_axes
def topk(x, k, dim=-1, largest=True, sorted=True):
    return tg.topk(x, k, dim, largest)


@with_axes
def index_add(x, dim, index, source, *, alpha=1):
    return tg.index_add(x, (slice(None),) * (dim % x.ndim) + (index,), alpha * source)


@with_axes
def scatter_add(x, dim, index, src):
    places = list(np.indices(index.shape, sparse=True))
    places[dim] = index
    return tg.index_add(x, tuple(places), src[tuple(slice(n) for n in index.shape)])


def index_put(x, indices, values, accumulate=False):
    return (tg.index_add if accumulate else tg.index_update)(x, tuple(indices), values)


def scattered(x, dim, index, src, *, reduce=None):
    refuse(reduce is not None, f"scatter with the reduction {reduce!r}")
    refuse(x.ndim == 0 or index.ndim == 0, "an axis of a 0-d tensor")
    refuse(index.size == 0, "no index at all")
    rows = [slice(n) for n in index.shape]
    first = np.indices(index.shape)
    first[dim] = index
    named = np.stack([f.ravel() for f in first])
    refuse(np.unique(named, axis=1).shape[1] != named.shape[1], "a place that is written twice")
    return tg.put_along_axis(x, index, src[tuple(rows)] if hasattr(src, "shape") else src, dim)


def picked(x, dim, index, *, sparse_grad=False):
    """gather: torch takes an index that is shorter along the other axes."""
    refuse(x.ndim == 0 or index.ndim == 0, "an axis of a 0-d tensor")
    refuse(x.ndim != index.ndim, "an empty index of other axes")
    dim %= x.ndim
    return tg.gather(x[tuple(slice(None) if a == dim else slice(n)
                             for a, n in enumerate(index.shape))], index, dim)  # fmt: skip


@with_axes
def windows(x, dim, size, step):
    return ops.windows(x, size=size, stride=step, axis=dim)


def whole_axes(f):
    """layer_norm, rms_norm: over as many last axes as normalized_shape has."""

    def adapted(x, normalized_shape, weight=None, bias=None, eps=None):
        width, n = math.prod(normalized_shape), len(normalized_shape)
        rest = x.shape[: x.ndim - n]
        flat = [w if w is None else tg.reshape(w, (width,)) for w in (weight, bias)]
        return tg.reshape(f(tg.reshape(x, (*rest, width)), *flat, eps), x.shape)

    return adapted


def layer_norm(x, weight, bias, eps):
    return F.layer_norm(x, weight, bias, eps=1e-5 if eps is None else eps)


def rms_norm(x, weight, bias, eps):
    eps = float(np.finfo(x.dtype).eps) if eps is None else eps
    return F.rms_norm(x, tg.ones((x.shape[-1],), x.dtype) if weight is None else weight, eps=eps)


def group_norm(x, groups, weight=None, bias=None, eps=1e-5):
    return F.group_norm(x, groups, weight, bias, eps=eps)


def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
              enable_gqa=False):  # fmt: skip
    refuse(dropout_p != 0, "dropout inside")
    refuse(q.ndim != 4 or q.shape[0] != k.shape[0], "attention of other than four axes each")
    refuse(q.shape[1] != k.shape[1] and not enable_gqa, "heads that broadcast")
    if is_causal:  # torch aligns the first query with the first key, we the last with the last
        attn_mask = np.tri(q.shape[2], k.shape[2], dtype=bool)
    return F.attention(q, k, v, attn_mask, scale=scale)


def linear(x, weight, bias=None):
    refuse(weight.ndim != 2 or x.ndim == 0, "a weight that is no matrix")
    return F.linear(x, weight, bias)


def without_batch(n):
    """torch takes one example without a batch axis, too."""

    def decorated(f):
        def adapted(x, *args, **options):
            if x.ndim == n + 2:
                return f(x, *args, **options)
            y = f(x[None], *args, **options)
            return (y[0][0], None) if isinstance(y, tuple) else y[0]

        return adapted

    return decorated


def convolution(f, n):
    @without_batch(n)
    def adapted(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        stride, padding, dilation = (
            s if isinstance(s, int | str) else s[0] if len(s) == 1 else tuple(s)
            for s in (stride, 0 if padding == "valid" else padding, dilation)
        )
        return f(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)

    return adapted


def pooling(f, n):
    @without_batch(n)
    def adapted(x, kernel_size, stride=None, padding=0, *others, **options):
        names = ("dilation", "ceil_mode", "return_indices") if f in MAXIMA else (
            "ceil_mode", "count_include_pad", "divisor_override")  # fmt: skip
        options = {**dict(zip(names, others, strict=False)), **options}
        refuse(options.pop("divisor_override", None), "another divisor")
        places = options.pop("return_indices", False)
        sizes = (s if s is None or isinstance(s, int) else s[0] if len(s) == 1 else tuple(s)
                 for s in (kernel_size, stride, padding))  # fmt: skip
        y = f(x, *sizes, **options)
        return (y, None) if places else y

    return adapted


MAXIMA = (F.max_pool1d, F.max_pool2d)


def norm(x, p="fro", dim=None, keepdim=False):
    refuse(x.ndim == 0 and dim is not None, "an axis of a 0-d tensor")
    dim = dim[0] if isinstance(dim, list | tuple) and len(dim) == 1 else dim
    if p in ("fro", None, 2) and (dim is None or isinstance(dim, int)):
        return linalg.norm(x, None, dim, keepdim)
    if not isinstance(p, str):  # torch.norm's numbers are of vectors, whatever the axes
        return linalg.vector_norm(x, axis=dim if dim is None else axes(x, dim), ord=p,
                                  keepdims=keepdim)  # fmt: skip
    return linalg.norm(x, p, dim if dim is None else tuple(dim), keepdim)


def linalg_norm(x, ord=None, dim=None, keepdim=False):
    refuse(ord in ("nuc", 2, -2) and x.ndim == 2 and not x.data.any(),
           "another subgradient of singular values of 0")  # fmt: skip
    dim = dim[0] if isinstance(dim, list | tuple) and len(dim) == 1 else dim
    return linalg.norm(x, ord, dim if dim is None or isinstance(dim, int) else tuple(dim), keepdim)


def vector_norm(x, ord=2, dim=None, keepdim=False):
    over = axes(x, dim)
    return linalg.vector_norm(x, axis=over, ord=ord, keepdims=keepdim)


def matrix_norm(x, ord="fro", dim=(-2, -1), keepdim=False):
    return linalg.norm(x, ord, tuple(dim), keepdim)


def svd(a, full_matrices=False, some=True, compute_uv=True):
    refuse((full_matrices or not some) and a.shape[-1] != a.shape[-2],
           "full matrices: not differentiable")  # fmt: skip
    return linalg.svd(a)


def qr(a, mode="reduced", some=True):
    refuse(mode == "complete" or not some, "complete matrices: not differentiable")
    return (None, linalg.qr(a, "r")) if mode == "r" else linalg.qr(a)


def pinv(a, b=None, *, atol=None, rtol=None, hermitian=False):
    a = a if b is None else a @ b.mT  # the samples of singular matrices
    refuse(atol is not None or hasattr(rtol, "shape"), "pinv by an absolute tolerance")
    refuse(hermitian, "pinv of one triangle")
    return linalg.pinv(a, rtol=rtol)


def lstsq(a, b, *, rcond=None, driver=None):
    return linalg.lstsq(a, b, rcond)[0]


def solve(a, b, *, left=True):
    refuse(not left, "X A = B")
    refuse(b.ndim != 1 and b.ndim == a.ndim - 1, "a batch of vectors")
    return linalg.solve(a, b)


def matrix_rank(a, *, atol=None, rtol=None, hermitian=False, tol=None):
    refuse(hermitian or hasattr(atol, "shape") or hasattr(rtol, "shape"), "options of matrix_rank")
    refuse(atol is not None and rtol is not None, "an absolute and a relative tolerance")
    return linalg.matrix_rank(a, tol if atol is None else atol, rtol=rtol)


def cast(name):
    return lambda x, *, memory_format=None: tg.astype(x, name)


def made(f):
    """Creation: torch's shape may come as several numbers; nothing of it has a gradient."""

    def adapted(*shape, dtype=None, device=None, requires_grad=False):
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
        return f(tuple(shape), dtype=dtype or "float32")

    return adapted


def meshgrid(*xs, indexing="ij"):
    xs = xs[0] if isinstance(xs[0], list | tuple) else xs
    return list(tg.meshgrid(*xs, indexing=indexing))


def gelu(x, *, approximate="none"):
    return F.gelu_tanh(x) if approximate == "tanh" else F.gelu(x)


def prelu(x, weight):
    """One slope, or one for each channel."""
    one_each = (-1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (-1,)
    return F.leaky_relu(x, tg.reshape(weight, () if weight.size == 1 else one_each))


def softplus(x, beta=1, threshold=20):
    refuse(beta != 1 or threshold < 20, "a softplus of another steepness or threshold")
    return F.softplus(x)


def normalize(x, p=2.0, dim=1, eps=1e-12):
    refuse(p != 2, "another norm than the Euclidean")
    return F.normalize(x, dim, eps)


def bce(x, target, weight=None, *, reduction="mean", pos_weight=None):
    refuse(weight is not None, "weights of entries")
    return F.binary_cross_entropy_with_logits(x, target, reduction=reduction, pos_weight=pos_weight)


def linear_cross_entropy(x, matrix, target, *, reduction="mean", ignore_index=-100, **options):
    options.pop("options", None)  # how torch cuts the work up
    refuse(options, "options: " + ", ".join(options))
    refuse(matrix.ndim != 2, "logits of more axes")
    refuse(target.dtype.kind == "f", "targets that are probabilities")
    refuse(x.ndim > 2, "classes along axis 1 of more axes")
    refuse(not (target != ignore_index).any() and reduction == "mean",
           "the mean of no loss: NaN there, 0 here")  # fmt: skip
    return F.linear_cross_entropy(x, matrix, target, ignore_index=ignore_index, reduction=reduction)


def huber(x, target, reduction="mean", delta=1.0):
    return paired(F.huber_loss, "delta")(x, target, reduction=reduction, delta=delta)


def embedding(weight, indices, padding_idx=None, max_norm=None, norm_type=2.0,
              scale_grad_by_freq=False, sparse=False):  # fmt: skip
    refuse(padding_idx is not None or max_norm is not None or scale_grad_by_freq,
           "padding, renormalisation or scaling of an embedding")  # fmt: skip
    return F.embedding(weight, indices)


def dropout(x, p=0.5, training=True):
    refuse(training and p not in (0, 1), "random numbers of torch's own")
    return F.dropout(x, p, np.random.default_rng(0) if training else None)


def filled(x, mask, value):
    return tg.where(mask, value, x)


def tensordot(a, b, dims=2):
    if not isinstance(dims, int):
        summed = [tuple(x.shape[i] for i in d) for x, d in zip((a, b), dims, strict=True)]
        refuse(summed[0] != summed[1], "summed axes of length 1 that broadcast")
    return tg.tensordot(a, b, dims)


def repeat_interleave(x, repeats, dim=None, *, output_size=None):
    refuse(x.ndim == 0 and dim is not None, "an axis of a 0-d tensor")
    return tg.repeat(x, repeats, dim)


def answer(name):
    """all and any."""
    f = getattr(tg, name)
    return lambda x, dim=None, keepdim=False: f(x, axis=axes(x, dim), keepdims=keepdim)


def reduced(f):
    return lambda x, dim=None, keepdim=False: f(x, axes(x, dim), keepdim)


def along(f):
    return lambda x, dim: f(x, axes(x, dim))


def nan_to_num(x, nan=None, posinf=None, neginf=None):
    return tg.nan_to_num(x, 0.0 if nan is None else nan, posinf, neginf)


def logit(x, eps=None):
    refuse(eps is not None, "a logit that holds x within eps of 0 and 1")
    return tg.logit(x)


def isclose(a, b, rtol=1e-5, atol=1e-8, equal_nan=False):
    return tg.isclose(a, b, rtol=rtol, atol=atol, equal_nan=equal_nan)


def searchsorted(a, x, *, out_int32=False, right=False, side=None, sorter=None):
    refuse(a.ndim != 1, "rows searched each in its own")
    return tg.searchsorted(a, x, side=side or ("right" if right else "left"), sorter=sorter)


def softmax(f):
    @with_axes
    def adapted(x, dim, dtype=None):
        refuse(x.shape[dim] == 0, "an axis of length 0")
        return f(x if dtype is None else tg.astype(x, dtype), axis=dim)

    return adapted


# --------------------------------------------------------------------------------------- the table

ELEMENTWISE = {  # ours: torch's, where it differs
    **dict.fromkeys(("abs", "ceil", "cos", "cosh", "deg2rad", "erf", "erfc", "exp", "exp2",
                     "expm1", "floor", "log", "log10", "log1p", "log2", "neg", "positive",
                     "rad2deg", "reciprocal", "rsqrt", "sigmoid", "sign", "sin", "sinc", "sinh",
                     "sqrt", "square", "tan", "tanh", "trunc", "isnan", "isinf", "isfinite",
                     "signbit", "logical_not", "ravel")),
    "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh", "arctan": "atan",
    "arctanh": "atanh", "relu": "nn.functional.relu", "silu": "nn.functional.silu",
    "log_sigmoid": "nn.functional.logsigmoid", "mish": "nn.functional.mish",
    "elu": "nn.functional.elu", "selu": "nn.functional.selu",
}  # fmt: skip

BINARY = {
    **dict.fromkeys(("mul", "pow", "maximum", "minimum", "hypot", "logaddexp", "logaddexp2",
                     "floor_divide", "matmul", "dot", "vdot", "inner", "outer", "kron",
                     "logical_and", "logical_or", "logical_xor", "lerp")),
    "arctan2": "atan2", "mod": "remainder",
    "equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt",
    "greater_equal": "ge", "array_equal": "equal",
}  # fmt: skip

OURS = {
    **{theirs or ours: getattr(tg, ours) for ours, theirs in {**ELEMENTWISE, **BINARY}.items()},
    # arithmetic
    "add": lambda a, b, *, alpha=1: a + (b if alpha == 1 else alpha * b),
    "sub": lambda a, b, *, alpha=1: a - (b if alpha == 1 else alpha * b),
    "rsub": lambda a, b, *, alpha=1: b - (a if alpha == 1 else alpha * a),
    "div": divided,
    "true_divide": divided,
    "float_power": lambda a, b: tg.pow(tg.astype(a, "float64"), b),
    **{f"__r{name}__": lambda a, b, f=f: f(b, a) for name, f in {
        "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv,
        "mod": operator.mod, "pow": operator.pow, "matmul": operator.matmul}.items()},
    "round": lambda x, *, decimals=0: tg.round(x, decimals),
    "sgn": lambda x: tg.sign(x),
    "nan_to_num": nan_to_num,
    "logit": logit,
    "clamp": clamped,
    "clamp_min": lambda x, bound: tg.maximum(x, bound),
    "clamp_max": lambda x, bound: tg.minimum(x, bound),
    "where": lambda a, condition, b: tg.where(condition, a, b),  # in the order of the samples
    "masked_fill": filled,
    # activations
    "nn.functional.gelu": gelu,
    "nn.functional.prelu": prelu,
    "nn.functional.softplus": softplus,
    "nn.functional.leaky_relu": lambda x, negative_slope=0.01: F.leaky_relu(x, negative_slope),
    "nn.functional.elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "nn.functional.hardtanh": lambda x, min_val=-1.0, max_val=1.0: F.hardtanh(x, min_val, max_val),
    "nn.functional.relu6": lambda x: F.hardtanh(x, 0, 6),
    "nn.functional.glu": lambda x, dim=-1: F.glu(x, dim),
    "nn.functional.dropout": dropout,
    "softmax": softmax(tg.softmax),
    "log_softmax": softmax(tg.log_softmax),
    # reductions
    "sum": reduced(tg.sum),
    "mean": reduced(tg.mean),
    "amax": reduced(tg.max),
    "amin": reduced(tg.min),
    "logsumexp": lambda x, dim, keepdim=False: tg.logsumexp(x, axes(x, dim), keepdim),
    "prod": reduced(tg.prod),
    "max": extreme(tg.max, tg.argmax),
    "min": extreme(tg.min, tg.argmin),
    "aminmax": lambda x, *, dim=None, keepdim=False: tuple(
        f(x, axes(x, dim), keepdim) for f in (tg.min, tg.max)),
    "std": moment(tg.std),
    "var": moment(tg.var),
    "std_mean": lambda x, dim=None, *rest, keepdim=False, **options: (
        moment(tg.std)(x, dim, *rest, keepdim=keepdim, **options),
        tg.mean(x, None if isinstance(dim, bool) else axes(x, dim), keepdim)),
    "var_mean": lambda x, dim=None, *rest, keepdim=False, **options: (
        moment(tg.var)(x, dim, *rest, keepdim=keepdim, **options),
        tg.mean(x, None if isinstance(dim, bool) else axes(x, dim), keepdim)),
    "quantile": quantile,
    "median": median,
    "cumsum": along(tg.cumsum),
    "cumprod": along(tg.cumprod),
    "diff": differences,
    "trace": lambda x: tg.trace(x),
    "argmax": lambda x, dim=None, keepdim=False: tg.argmax(x, axis=axes(x, dim), keepdims=keepdim),
    "argmin": lambda x, dim=None, keepdim=False: tg.argmin(x, axis=axes(x, dim), keepdims=keepdim),
    "all": answer("all"),
    "any": answer("any"),
    "count_nonzero": lambda x, dim=None: tg.count_nonzero(x, axis=axes(x, dim)),
    "isclose": isclose,
    "allclose": lambda a, b, **options: tg.allclose(a, b, **options),
    "searchsorted": searchsorted,
    "argwhere": with_axes(lambda x: np.stack(tg.nonzero(x), -1)),
    "nonzero": with_axes(lambda x, *, as_tuple=False: tg.nonzero(x) if as_tuple
                         else np.stack(tg.nonzero(x), -1)),
    # order
    "sort": lambda x, *args, **options: (sorting(tg.sort)(x, *args, **options),
                                         sorting(tg.argsort)(x, *args, **options)),
    "argsort": sorting(tg.argsort),
    "msort": lambda x: tg.sort(x, 0),
    "topk": topk,
    # shape
    "atleast_1d": one(tg.atleast_1d),
    "atleast_2d": one(tg.atleast_2d),
    **dict.fromkeys(("reshape", "view", "view_copy"), lambda x, shape: tg.reshape(x, tuple(shape))),
    **dict.fromkeys(("reshape_as", "view_as"), lambda x, other: tg.reshape(x, other.shape)),
    **dict.fromkeys(("permute", "permute_copy"), lambda x, dims: tg.transpose(x, tuple(dims))),
    **dict.fromkeys(("transpose", "transpose_copy"),
                    with_axes(lambda x, a, b: tg.swapaxes(x, a, b))),
    **dict.fromkeys(("t", "t_copy", "T"), lambda x: tg.transpose(x)),
    "mT": lambda x: x.mT,
    "movedim": lambda x, source, destination: tg.moveaxis(x, source, destination),
    **dict.fromkeys(("expand", "expand_copy", "broadcast_to"), spread),
    "expand_as": lambda x, other: tg.broadcast_to(x, other.shape),
    **dict.fromkeys(("unsqueeze", "unsqueeze_copy"), lambda x, dim: tg.expand_dims(x, dim)),
    **dict.fromkeys(("squeeze", "squeeze_copy"), lambda x, dim=None: squeezed(x, dim)),
    "flatten": flattened,
    "flip": lambda x, dims: tg.flip(x, tuple(dims)),
    "fliplr": lambda x: tg.flip(x, 1),
    "flipud": lambda x: tg.flip(x, 0),
    "rot90": lambda x, k=1, dims=(0, 1): tg.rot90(x, k, tuple(dims)),
    "roll": lambda x, shifts, dims=None: tg.roll(x, shifts, dims),
    "tile": tiled,
    "repeat": tiled,
    "repeat_interleave": repeat_interleave,
    "meshgrid": meshgrid,
    "cat": cat,
    "stack": lambda xs, dim=0: tg.stack(xs, dim),
    "hstack": lambda xs: tg.hstack(xs),
    "vstack": lambda xs: tg.vstack(xs),
    **dict.fromkeys(("split", "unsafe_split"), cut),
    **dict.fromkeys(("split_with_sizes", "split_with_sizes_copy"), cut),
    **dict.fromkeys(("chunk", "unsafe_chunk"), chunks),
    "tensor_split": lambda x, parts, dim=0: tg.array_split(
        x, parts if isinstance(parts, int) else np.asarray(parts).tolist(), dim),
    "hsplit": lambda x, parts: tg.split(x, parts, 0 if x.ndim == 1 else 1),
    "vsplit": lambda x, parts: tg.split(x, parts, 0),
    "dsplit": lambda x, parts: tg.split(x, parts, 2),
    **dict.fromkeys(("unbind", "unbind_copy"), lambda x, dim=0: list(tg.moveaxis(x, dim, 0))),
    **dict.fromkeys(("nn.functional.pad", "constant_pad_nd"),
                    lambda x, pad, *args, **options: padded(
                        x, pad, *((args and isinstance(args[0], float) and ("constant", *args))
                                  or args), **options)),
    **dict.fromkeys(("unfold", "unfold_copy"), windows),
    # picking and placing
    "__getitem__": lambda x, index: x[index],
    "slice": lambda x, dim=0, start=None, end=None, step=1: at(x, dim, slice(start, end, step)),
    "select": lambda x, dim, index: at(x, dim, index),
    **dict.fromkeys(("narrow", "narrow_copy"),
                    lambda x, dim, start, length: at(
                        x, dim, slice(int(start), int(start) + length))),
    "index_select": with_axes(lambda x, dim, index: tg.take(x, index, dim)),
    "take": lambda x, index: tg.take(x, index),
    "take_along_dim": lambda x, index, dim=None: tg.take_along_axis(
        x, index.ravel() if dim is None else index, dim),
    "gather": picked,
    "scatter": scattered,
    "scatter_add": scatter_add,
    "index_add": index_add,
    "index_put": index_put,
    "masked_select": lambda x, mask: tg.broadcast_to(x, np.broadcast_shapes(x.shape, mask.shape))[
        np.broadcast_to(mask, np.broadcast_shapes(x.shape, mask.shape))],
    **dict.fromkeys(("diagonal", "diagonal_copy"),
                    lambda x, offset=0, dim1=0, dim2=1: tg.diagonal(x, offset, dim1, dim2)),
    "linalg.diagonal": lambda x, *, offset=0, dim1=-2, dim2=-1: tg.diagonal(x, offset, dim1, dim2),
    "diag": lambda x, diagonal=0: tg.diag(x, diagonal),
    "tril": lambda x, diagonal=0: tg.tril(x, diagonal),
    "triu": lambda x, diagonal=0: tg.triu(x, diagonal),
    # products
    "mm": lambda a, b: a @ b,
    "bmm": lambda a, b: a @ b,
    "mv": lambda a, b: a @ b,
    "tensordot": tensordot,
    "einsum": einsum,
    "cross": lambda a, b, dim=-1: tg.cross(a, b, dim),
    # linear algebra
    "linalg.cross": lambda a, b, *, dim=-1: linalg.cross(a, b, dim),
    "linalg.det": lambda a: linalg.det(a),
    "linalg.inv": lambda a: linalg.inv(a),
    "linalg.slogdet": lambda a: linalg.slogdet(a),
    "linalg.solve": solve,
    "linalg.lstsq": lstsq,
    "linalg.pinv": pinv,
    "pinverse": lambda a, rcond=1e-15: linalg.pinv(a, rtol=rcond),
    "linalg.cholesky": lambda a, *, upper=False: linalg.cholesky(a, upper=upper),
    "cholesky": lambda a, upper=False: linalg.cholesky(a, upper=upper),
    "linalg.eigh": lambda a, UPLO="L": linalg.eigh(a, UPLO=UPLO),
    "linalg.eigvalsh": lambda a, UPLO="L": linalg.eigvalsh(a, UPLO=UPLO),
    "linalg.svd": svd,
    "svd": lambda a, some=True, compute_uv=True: (lambda u, s, vt: (u, s, vt.mT))(
        *svd(a, some=some)),
    "linalg.svdvals": lambda a: linalg.svdvals(a),
    "linalg.qr": qr,
    "qr": lambda a, some=True: qr(a, some=some),
    "linalg.norm": linalg_norm,
    "linalg.vector_norm": vector_norm,
    "linalg.matrix_norm": matrix_norm,
    "norm": norm,
    "linalg.matrix_power": lambda a, n: linalg.matrix_power(a, n),
    "linalg.multi_dot": lambda arrays: linalg.multi_dot(arrays),
    "linalg.cond": lambda a, p=None: linalg.cond(a, p),
    "linalg.matrix_rank": matrix_rank,
    "matrix_exp": lambda a: linalg.expm(a),
    # layers
    "nn.functional.linear": linear,
    "nn.functional.embedding": embedding,
    "nn.functional.layer_norm": whole_axes(layer_norm),
    "nn.functional.rms_norm": lambda x, shape, weight=None, eps=None: whole_axes(rms_norm)(
        x, shape, weight, None, eps),
    "nn.functional.group_norm": group_norm,
    "nn.functional.normalize": normalize,
    "nn.functional.cosine_similarity": lambda a, b, dim=1, eps=1e-8: F.cosine_similarity(
        a, b, dim, eps),
    "nn.functional.scaled_dot_product_attention": attention,
    "nn.functional.conv1d": convolution(F.conv1d, 1),
    "nn.functional.conv2d": convolution(F.conv2d, 2),
    "nn.functional.max_pool1d": pooling(F.max_pool1d, 1),
    "nn.functional.max_pool2d": pooling(F.max_pool2d, 2),
    "nn.functional.avg_pool1d": pooling(F.avg_pool1d, 1),
    "nn.functional.avg_pool2d": pooling(F.avg_pool2d, 2),
    # losses
    "nn.functional.cross_entropy": per_class(F.cross_entropy),
    "nn.functional.nll_loss": per_class(F.nll_loss),
    "nn.functional.linear_cross_entropy": linear_cross_entropy,
    "nn.functional.mse_loss": paired(F.mse_loss),
    "nn.functional.l1_loss": paired(F.l1_loss),
    "nn.functional.huber_loss": huber,
    "nn.functional.kl_div": kl_div,
    "nn.functional.binary_cross_entropy_with_logits": bce,
    # dtypes and new tensors
    **{name: cast(ours) for name, ours in {
        "double": "float64", "float": "float32", "half": "float16", "bfloat16": "bfloat16",
        "long": "int64", "int": "int32", "short": "int16", "char": "int8", "byte": "uint8",
        "bool": "bool"}.items()},
    "to": lambda x, *wanted, memory_format=None: tg.astype(x, next(
        w for w in (getattr(w, "dtype", w) for w in wanted) if w != "cpu" and w is not True)),
    "item": lambda x: x.item(),
    "zeros": made(tg.zeros),
    "ones": made(tg.ones),
    "full": lambda shape, value, *, dtype=None, device=None: tg.full(tuple(shape), value, dtype),
    "zeros_like": lambda x, dtype=None, device=None: tg.zeros_like(x, dtype),
    "ones_like": lambda x, dtype=None, device=None: tg.ones_like(x, dtype),
    "full_like": lambda x, value, dtype=None, device=None: tg.full_like(x, value, dtype),
    "eye": lambda n, m=None, *, dtype=None, device=None, requires_grad=False: tg.eye(
        n, m, dtype=dtype or "float32"),
    "arange": lambda *bounds, end=None, step=1, dtype=None, device=None, requires_grad=False:
        tg.arange(*bounds, *(() if end is None else (end,)), *((step,) if step != 1 else ()),
                  dtype=dtype),
    "linspace": lambda start, end, steps, *, dtype=None, device=None: tg.linspace(
        float(start), float(end), steps, dtype=dtype or "float32"),
}  # fmt: skip


def squeezed(x, dim):
    """Without the named axes, as far as they have length 1."""
    if dim is None:
        return tg.squeeze(x)
    refuse(x.ndim == 0, "an axis of a 0-d tensor")
    several = dim if isinstance(dim, list | tuple) else (dim,)
    return tg.squeeze(x, tuple(a for a in several if x.shape[a] == 1))


# ------------------------------------------------------- outputs that are unique to a sign only


def columns_times(x, y):
    """x_ik y_jk: the signs of the columns, which are LAPACK's free choice, cancel."""
    return x[..., :, None, :] * y[..., None, :, :]


def transposed(x):
    return x.swapaxes(-1, -2)


def of_svd(y, right):
    u, s, v = y
    return columns_times(u, u), s, columns_times(u, right(v))


UNIQUE = {  # what to compare of a result, ours or torch's
    "linalg.eigh": lambda y: (y[0], columns_times(y[1], y[1])),
    "linalg.svd": lambda y: of_svd(y, transposed),
    "svd": lambda y: of_svd(y, lambda v: v),
    "linalg.lstsq": lambda y: y[0] if isinstance(y, tuple) else y,
}
for name in ("linalg.qr", "qr"):
    UNIQUE[name] = lambda y: (
        (None, abs(y[1])) if y[0] is None or not math.prod(y[0].shape)
        else (columns_times(y[0], y[0]), columns_times(y[0], transposed(y[1]))))  # fmt: skip
