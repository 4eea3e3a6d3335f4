"""What ONNX's operators are here: each entry takes an operator's inputs and attributes.

An entry's keywords are the attributes that we can serve; `refuse` turns away what we do not offer.
A result of None stands for an output that our function does not have.
"""

import math
from functools import reduce

import numpy as np
from onnx import TensorProto, helper
from unsupported import refuse

import tinygrad_ml as tg
from tinygrad_ml import functional as F
from tinygrad_ml import linalg


def ints(x):
    """An input of indices, axes or lengths as Python numbers."""
    return None if x is None else np.asarray(getattr(x, "data", x)).tolist()


def number(x):
    return x if x is None else x.item()


def dtype_of(code):
    refuse(code in FOREIGN, f"the dtype {TensorProto.DataType.Name(code)}")
    return helper.tensor_dtype_to_np_dtype(code)


FOREIGN = {
    code
    for name, code in TensorProto.DataType.items()
    if name not in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "BOOL")
    and not (name.startswith(("INT", "UINT")) and name[-1] in "864" and not name.endswith("T4"))
}


# ------------------------------------------------------------------------------------ reductions


def reduction(f):
    def operator(x, axes_input=None, *, axes=None, keepdims=1, noop_with_empty_axes=0):
        over = ints(axes_input) if axes is None else axes
        if not over and noop_with_empty_axes:
            refuse(f not in (tg.sum, tg.max, tg.min, tg.mean, tg.prod), "a reduction over no axis")
            return x
        over = tuple(over) if over else None
        empty = 0 in (x.shape if over is None else [x.shape[a] for a in over])
        refuse(empty and f in (tg.max, tg.min, tg.logsumexp), "an extreme of no entries")
        return f(x, over, bool(keepdims))

    return operator


def extreme_place(f):
    def operator(x, *, axis=0, keepdims=1, select_last_index=0):
        refuse(select_last_index, "the last of equal extremes")
        return f(x, axis=axis, keepdims=bool(keepdims))

    return operator


def cumulative(f):
    def operator(x, axis, *, exclusive=0, reverse=0):
        refuse(exclusive or reverse, "a cumulative sum or product that is exclusive or reversed")
        refuse(x.dtype == np.int32, "sums and products of int32 that stay int32")
        return f(x, ints(axis))

    return operator


def several(f):
    return lambda *xs: reduce(f, xs)


# ------------------------------------------------------------------------------------------ shape


def reshape(x, shape, *, allowzero=0):
    wanted = [x.shape[i] if n == 0 and not allowzero else n for i, n in enumerate(ints(shape))]
    return tg.reshape(x, tuple(wanted))


def expand(x, shape):
    return tg.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(ints(shape))))


def squeeze(x, axes_input=None, *, axes=None):
    over = ints(axes_input) if axes is None else axes
    return tg.squeeze(x, None if over is None else tuple(over))


def unsqueeze(x, axes):
    return tg.expand_dims(x, tuple(np.atleast_1d(ints(axes)).tolist()))


def flatten(x, *, axis=1):
    axis = axis % x.ndim if x.ndim and axis < 0 else axis
    return tg.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def sliced(x, starts, ends, axes=None, steps=None):
    starts, ends, axes, steps = map(ints, (starts, ends, axes, steps))
    index = [slice(None)] * x.ndim
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        step = steps[k] if steps else 1
        axis = axes[k] if axes else k
        before_first = step < 0 and end < -x.shape[axis]  # Python has no number for it
        index[axis] = slice(start, None if before_first else end, step)
    return x[tuple(index)]


def split(x, sizes=None, *, axis=0, num_outputs=None):
    if sizes is not None:
        return tg.split(x, np.cumsum(ints(sizes))[:-1].tolist(), axis)
    size = -(-x.shape[axis] // num_outputs)  # the last one is the shorter
    return tg.split(x, [size * (i + 1) for i in range(num_outputs - 1)], axis)


def pad(x, pads, value=None, axes=None, *, mode=b"constant"):
    pads, axes = ints(pads), ints(axes) or list(range(x.ndim))
    refuse(min(pads) < 0, "padding that cuts off")
    widths = [(0, 0)] * x.ndim
    for k, axis in enumerate(axes):
        widths[axis] = (pads[k], pads[k + len(axes)])
    return tg.pad(x, widths, 0 if value is None else number(value), mode.decode())


def range_(start, limit, delta):
    dtype = start.dtype
    refuse(not np.issubdtype(dtype, np.integer) and dtype not in (np.float32, np.float64),
           "a range of half precision")  # fmt: skip
    return tg.arange(number(start), number(limit), number(delta), dtype=dtype)


# ------------------------------------------------------------------------------ picking, placing


def gather(x, indices, *, axis=0):
    return tg.take(x, indices, axis)


def gather_nd(x, indices, *, batch_dims=0):
    refuse(batch_dims, "an index for each example of a batch")
    return x[tuple(np.moveaxis(indices, -1, 0))]


def scatter_elements(x, indices, updates, *, axis=0, reduction=b"none"):
    refuse(reduction not in (b"none", b"add"), f"scattering by {reduction.decode()}")
    if reduction == b"none":
        return tg.put_along_axis(x, indices, updates, axis)
    places = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    return tg.index_add(x, tuple(places), updates)


def scatter_nd(x, indices, updates, *, reduction=b"none"):
    refuse(reduction not in (b"none", b"add"), f"scattering by {reduction.decode()}")
    f = tg.index_add if reduction == b"add" else tg.index_update
    return f(x, tuple(np.moveaxis(indices, -1, 0)), updates)


def compress(x, condition, *, axis=None):
    x, axis = (tg.ravel(x), 0) if axis is None else (x, axis)
    return tg.take(x, np.flatnonzero(condition), axis)


def one_hot(indices, depth, values, *, axis=-1):
    indices = np.asarray(getattr(indices, "data", indices)).astype(np.int64)
    depth = int(number(depth))
    refuse(not ((indices >= 0) & (indices < depth)).all(), "one-hot indices out of range")
    hot = tg.one_hot(indices, depth, dtype=values.dtype)
    off, on = values[0], values[1]
    return tg.moveaxis(hot * (on - off) + off, -1, axis)


def top_k(x, k, *, axis=-1, largest=1, sorted=1):
    return tg.topk(x, int(ints(k)[0]), axis, bool(largest))


def triangle(x, k=None, *, upper=1):
    refuse(x.shape[-2:].count(0), "a triangle without entries")
    return (tg.triu if upper else tg.tril)(x, 0 if k is None else int(number(k)))


# -------------------------------------------------------------------------------------- layers


def layer_norm(x, weight, bias=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    return (_flat_norm(F.layer_norm, x, axis, weight, bias, eps=epsilon), None, None)


def rms_norm(x, weight, *, axis=-1, epsilon=1e-5, stash_type=1):
    return _flat_norm(F.rms_norm, x, axis, weight, eps=epsilon)


def _flat_norm(f, x, axis, *weights, **options):
    """Over all axes from `axis` on, as one."""
    rest = x.shape[: axis % x.ndim]
    whole = x.shape[axis % x.ndim :]
    refuse(any(w is not None and w.shape != whole for w in weights), "a weight that broadcasts")
    flat = [w if w is None else tg.ravel(w) for w in weights]
    return tg.reshape(f(tg.reshape(x, (*rest, math.prod(whole))), *flat, **options), x.shape)


def group_norm(x, weight, bias, *, num_groups, epsilon=1e-5, stash_type=1):
    return F.group_norm(x, num_groups, weight, bias, eps=epsilon)


def instance_norm(x, weight, bias, *, epsilon=1e-5):
    return F.group_norm(x, x.shape[1], weight, bias, eps=epsilon)


def lp_norm(x, *, axis=-1, p=2):
    refuse(p != 2, "another norm than the Euclidean")
    refuse(not np.any(np.asarray(x.data), axis=axis).all(), "a zero vector")
    return F.normalize(x, axis)


def pads_of(x, reach, strides, pads, auto_pad):
    """(before, after) of each spatial axis."""
    if auto_pad in (b"NOTSET", b"VALID"):
        n = len(reach)
        return [(pads[k], pads[k + n]) for k in range(n)] if pads else [(0, 0)] * n
    found = []
    for length, r, stride in zip(x.shape[2:], reach, strides, strict=True):
        total = max((-(-length // stride) - 1) * stride + r - length, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto_pad == b"SAME_UPPER" else (large, small))
    return found


def conv(x, weight, bias=None, *, kernel_shape=None, strides=None, pads=None, dilations=None,
         group=1, auto_pad=b"NOTSET"):  # fmt: skip
    n = x.ndim - 2
    refuse(n > 2, "three spatial axes")
    strides, dilations = strides or [1] * n, dilations or [1] * n
    reach = [(u - 1) * d + 1 for u, d in zip(weight.shape[2:], dilations, strict=True)]
    return (F.conv1d if n == 1 else F.conv2d)(
        x, weight, bias, stride=tuple(strides), dilation=tuple(dilations), groups=group,
        padding=pads_of(x, reach, strides, pads, auto_pad))  # fmt: skip


def max_pool(x, *, kernel_shape, strides=None, pads=None, dilations=None, ceil_mode=0,
             auto_pad=b"NOTSET", storage_order=0):  # fmt: skip
    f = {1: F.max_pool1d, 2: F.max_pool2d}
    y = _pool(f, x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode=bool(ceil_mode))
    return y, None


def average_pool(x, *, kernel_shape, strides=None, pads=None, dilations=None, ceil_mode=0,
                 auto_pad=b"NOTSET", count_include_pad=0):  # fmt: skip
    refuse(any(d > 1 for d in dilations or ()), "the mean of a dilated window")
    f = {1: F.avg_pool1d, 2: F.avg_pool2d}
    return _pool(f, x, kernel_shape, strides, pads, None, auto_pad, ceil_mode=bool(ceil_mode),
                 count_include_pad=bool(count_include_pad))  # fmt: skip


def _pool(functions, x, size, strides, pads, dilations, auto_pad, **options):
    n = x.ndim - 2
    refuse(n > 2, "three spatial axes")
    refuse(x.dtype.kind != "f", "pooling of integers")
    strides = strides or [1] * n
    if dilations:
        options["dilation"] = tuple(dilations)
    reach = [(u - 1) * d + 1 for u, d in zip(size, dilations or [1] * n, strict=True)]
    padding = pads_of(x, reach, strides, pads, auto_pad)
    refuse(any(2 * max(p) > r for p, r in zip(padding, reach, strict=True)),
           "padding of more than half a window")  # fmt: skip
    return functions[n](x, tuple(size), tuple(strides), padding, **options)


def global_pool(f):
    return lambda x: f(x, tuple(range(2, x.ndim)), keepdims=True)


def rotary(x, cos, sin, positions=None, *, interleaved=0, rotary_embedding_dim=0, num_heads=0):
    refuse(interleaved, "interleaved rotary pairs")
    if positions is not None:
        cos, sin = cos[positions], sin[positions]  # (b, t, k/2)
    cos, sin = tg.expand_dims(cos, 1), tg.expand_dims(sin, 1)
    heads = _heads(x, num_heads) if x.ndim == 3 else x  # (b, h, t, k)
    width = rotary_embedding_dim or heads.shape[-1]
    y = F.rope(heads[..., :width], cos[..., : width // 2], sin[..., : width // 2])
    y = tg.concatenate([y, heads[..., width:]], -1)
    return _merged(y) if x.ndim == 3 else y


def _heads(x, h):
    """(b, t, h k) -> (b, h, t, k)"""
    return tg.swapaxes(tg.reshape(x, (*x.shape[:2], h, x.shape[2] // h)), 1, 2)


def _merged(x):
    x = tg.swapaxes(x, 1, 2)
    return tg.reshape(x, (*x.shape[:2], x.shape[2] * x.shape[3]))


def attention(q, k, v, mask=None, past_key=None, past_value=None, lengths=None, *, is_causal=0,
              scale=None, q_num_heads=None, kv_num_heads=None, softcap=0.0, left_window_size=-1,
              right_window_size=-1, qk_matmul_output_mode=0, softmax_precision=1):  # fmt: skip
    refuse(softcap, "a soft cap on the scores")
    flat = q.ndim == 3
    if flat:
        q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    if past:
        k, v = tg.concatenate([past_key, k], 2), tg.concatenate([past_value, v], 2)
    t, s = q.shape[2], k.shape[2]
    seen = np.ones((1, 1, t, s), bool)
    first = past  # the place of the first query among the keys
    if lengths is not None:
        lengths = np.asarray(lengths).reshape(-1, 1, 1, 1)
        seen = seen & (np.arange(s) < lengths)
        first = lengths - t
    distance = np.arange(s) - (np.arange(t)[:, None] + first)
    if is_causal:
        seen = seen & (distance <= 0)
    if left_window_size >= 0:
        seen = seen & (distance >= -left_window_size)
    if right_window_size >= 0:
        seen = seen & (distance <= right_window_size)
    if mask is not None:
        mask = tg.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, s - mask.shape[-1])])
        refuse(np.isnan(mask.data).any() or np.isposinf(mask.data).any(), "a mask with NaN or inf")
    if mask is None or mask.dtype == bool:
        seen = seen if mask is None else seen & np.asarray(mask.data)
    else:
        seen = tg.where(seen, mask, -math.inf)
    y = F.attention(q, k, v, seen, scale=scale)
    return _merged(y) if flat else y, k, v, None


def loss(f):
    def operator(x, targets, weight=None, *, reduction=b"mean", ignore_index=-100):
        classes_last = tg.moveaxis(x, 1, -1)
        y = f(classes_last, targets, weight=weight, ignore_index=ignore_index,
              reduction=reduction.decode())  # fmt: skip
        if f is F.nll_loss:
            return y
        return y, tg.moveaxis(tg.log_softmax(classes_last), -1, 1)

    return operator


def dropout(x, ratio=None, training=None, *, seed=None, **old):
    refuse(training is not None and bool(number(training)) and number(ratio) != 0,
           "random numbers of another generator")  # fmt: skip
    return F.dropout(x, 0.5), None


def gelu(x, *, approximate=b"none"):
    return F.gelu_tanh(x) if approximate == b"tanh" else F.gelu(x)


def selu(x, *, alpha=1.6732631921768188, gamma=1.0507010221481323):
    refuse(abs(alpha - 1.6732632) > 1e-6 or abs(gamma - 1.0507010) > 1e-6, "a selu of other slopes")
    return F.selu(x)


def swish(x, *, alpha=1.0):
    refuse(alpha != 1, "a swish of another steepness")
    return tg.silu(x)


def mod(a, b, *, fmod=0):
    refuse(fmod, "the remainder with the sign of the dividend")
    return tg.mod(a, b)


def is_inf(x, *, detect_negative=1, detect_positive=1):
    refuse(not (detect_negative and detect_positive), "infinities of one sign")
    return tg.isinf(x)


def div(a, b):
    refuse(a.dtype.kind == "i", "division of integers towards 0")
    return tg.floor_divide(a, b) if a.dtype.kind == "u" else a / b


def power(a, b):
    refuse(b.dtype != a.dtype, "powers of mixed types")
    return tg.pow(a, b)


def cast(x, *, to, saturate=1, round_mode=None):
    return tg.astype(x, dtype_of(to))


def eye_like(x, *, dtype=None, k=0):
    return tg.eye(*x.shape, k=k, dtype=x.dtype if dtype is None else dtype_of(dtype))


def constant_of_shape(shape, *, value=None):
    from onnx import numpy_helper

    array = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return tg.full(tuple(ints(shape)), array.item(), array.dtype)


def clip(x, low=None, high=None):
    return tg.clip(x, *(b if b is None else number(b) for b in (low, high)))


OURS = {
    # elementwise
    **{name: getattr(tg, ours or name.lower()) for name, ours in {
        **dict.fromkeys(("Abs", "Add", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "IsNaN", "Log",
                         "Mul", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin",
                         "Sinh", "Softplus", "Sqrt", "Sub", "Tan", "Tanh", "Mish", "Equal", "Less",
                         "Greater", "Where", "MatMul")),
        "Acos": "arccos", "Acosh": "arccosh", "Asin": "arcsin", "Asinh": "arcsinh",
        "Atan": "arctan", "Atanh": "arctanh", "And": "logical_and", "Or": "logical_or",
        "Xor": "logical_xor", "Not": "logical_not", "GreaterOrEqual": "greater_equal",
        "LessOrEqual": "less_equal", "Identity": "positive"}.items()},
    "Div": div, "Mod": mod, "Pow": power, "IsInf": is_inf, "Clip": clip, "Cast": cast,
    "CastLike": lambda x, like, *, saturate=1: tg.astype(x, like.dtype),
    "Max": several(tg.maximum), "Min": several(tg.minimum), "Sum": several(tg.add),
    "Mean": lambda *xs: tg.mean(tg.stack(xs), 0),
    "Gelu": gelu, "Selu": selu, "Swish": swish,
    "SwiGLU": lambda gate, up: F.swiglu(gate, up),
    "Elu": lambda x, *, alpha=1.0: F.elu(x, alpha),
    "LeakyRelu": lambda x, *, alpha=0.01: F.leaky_relu(x, alpha),
    "PRelu": lambda x, slope: F.leaky_relu(x, slope),
    "Dropout": dropout,
    "Softmax": lambda x, *, axis=-1: tg.softmax(x, axis=axis),
    "LogSoftmax": lambda x, *, axis=-1: tg.log_softmax(x, axis=axis),
    # reductions
    **{f"Reduce{name}": reduction(f) for name, f in {
        "Sum": tg.sum, "Mean": tg.mean, "Max": tg.max, "Min": tg.min, "Prod": tg.prod,
        "LogSumExp": tg.logsumexp,
        "L1": lambda x, axis, k: linalg.vector_norm(x, axis=axis, keepdims=k, ord=1),
        "L2": lambda x, axis, k: linalg.vector_norm(x, axis=axis, keepdims=k),
        "LogSum": lambda x, axis, k: tg.log(tg.sum(x, axis, k)),
        "SumSquare": lambda x, axis, k: tg.sum(tg.square(x), axis, k)}.items()},
    "ArgMax": extreme_place(tg.argmax), "ArgMin": extreme_place(tg.argmin),
    "CumSum": cumulative(tg.cumsum), "CumProd": cumulative(tg.cumprod),
    # shape
    "Reshape": reshape, "Expand": expand, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "Flatten": flatten, "Slice": sliced, "Split": split, "Pad": pad,
    "Transpose": lambda x, *, perm=None: tg.transpose(x, perm),
    "Concat": lambda *xs, axis: tg.concatenate(xs, axis),
    "Tile": lambda x, repeats: tg.tile(x, ints(repeats)),
    "Shape": lambda x, *, start=0, end=None: np.array(x.shape[start:end], np.int64),
    "Size": lambda x: np.array(x.size),
    "Range": range_, "EyeLike": eye_like, "ConstantOfShape": constant_of_shape,
    # picking and placing
    "Gather": gather, "GatherND": gather_nd,
    "GatherElements": lambda x, indices, *, axis=0: tg.gather(x, indices, axis),
    "ScatterElements": scatter_elements, "Scatter": scatter_elements, "ScatterND": scatter_nd,
    "Compress": compress, "OneHot": one_hot, "TopK": top_k, "Trilu": triangle,
    "NonZero": lambda x: np.stack(tg.nonzero(x)),
    # products
    "Einsum": lambda *xs, equation: tg.einsum(equation.decode(), *xs),
    "Det": linalg.det,
    # layers
    "LayerNormalization": layer_norm, "RMSNormalization": rms_norm,
    "GroupNormalization": group_norm, "InstanceNormalization": instance_norm,
    "LpNormalization": lp_norm, "Conv": conv, "MaxPool": max_pool, "AveragePool": average_pool,
    "GlobalAveragePool": global_pool(tg.mean), "GlobalMaxPool": global_pool(tg.max),
    "RotaryEmbedding": rotary, "Attention": attention,
    "SoftmaxCrossEntropyLoss": loss(F.cross_entropy),
    "NegativeLogLikelihoodLoss": loss(F.nll_loss),
}  # fmt: skip
