"""Modules: an object whose Tensors are its parameters, and the layers that models are made of.

A module is any object of a class derived from Module. What it holds, under a name that does not
start with an underscore, belongs to it: Tensors are its parameters, Modules its parts, and lists,
tuples and dicts of either are looked through. There is nothing to register.

    class Classifier(nn.Module):
        def __init__(self, width, classes, *, rng):
            self.hidden = nn.Linear(784, width, bias=True, rng=rng)
            self.scores = nn.Linear(width, classes, bias=True, rng=rng)

        def forward(self, x, *, rng=None):
            return self.scores(tg.relu(self.hidden(x)))

There is no training flag: randomness is handed in at the call, and rng=None is evaluation.
"""

from functools import partial
from operator import methodcaller

import numpy as np

from . import backend, dtypes, functional
from .autograd import GraphError
from .fused import rows_of
from .quant import Blocks, quantized_maps, quantized_matmul
from .tensor import Tensor, array_of

# ----------------------------------------------------------------------------------- modules


class Module:
    """A part of a model. Derive from it, assign Tensors and Modules to attributes, write forward.

    A Tensor's requires_grad says whether it is trained. Neither super().__init__() nor any
    registration is needed; part(x, *, rng=None) is the call that the layers below share.
    """

    def __call__(self, *args, **options):
        return self.forward(*args, **options)

    def forward(self, *args, **options):
        raise NotImplementedError(f"{type(self).__name__} has no forward(self, x, *, rng=None)")

    # --- what it holds

    def named_modules(self):
        """Pairs (dotted name, Module), this one first under the name ""; a shared one once."""
        return _once((name, x) for name, x in _walk(self) if isinstance(x, Module))

    def modules(self):
        """This Module and every one below it, a shared one once."""
        return (module for _, module in self.named_modules())

    def named_parameters(self):
        """Pairs (dotted name, Tensor); a tied Tensor once, under the first of its names."""
        return _once((name, x) for name, x in _walk(self) if isinstance(x, Tensor))

    def parameters(self):
        """Every Tensor in it, trained or frozen; a tied Tensor once."""
        return (tensor for _, tensor in self.named_parameters())

    def _names(self):
        """{dotted name: Tensor} with every name that a tied Tensor has."""
        names = {}
        for name, x in _walk(self):
            if isinstance(x, Tensor) and names.setdefault(name, x) is not x:
                raise ValueError(f"two tensors of {type(self).__name__} are both called {name!r}")
        return names

    # --- its numbers

    def state_dict(self, copy=True):
        """{dotted name: numpy array}, a tied Tensor once, under the first of its names.

        copy=False gives read-only views instead, where the numbers are on the host: they change
        with the next optimiser step, which is good enough for writing them to a file.
        """
        arrays = {name: tensor.numpy() for name, tensor in _once(self._names().items())}
        return {name: array.copy() for name, array in arrays.items()} if copy else arrays

    def load_state_dict(self, arrays, strict=True):
        """Assign {dotted name: array}; returns the lists of missing and of unexpected names.

        Each parameter keeps its dtype and device, and a float is rounded to it. A tied Tensor is
        found under any of its names. ValueError, before anything is changed, lists every array
        that does not fit: of another shape, of another kind (integers for floats), two different
        ones for one tied Tensor; and if strict every missing and every unexpected name.
        """
        names = self._names()
        chosen = {}  # id of a Tensor: (Tensor, name, array)
        problems = []
        for name in names.keys() & arrays.keys():
            problems += _misfit(name, arrays[name], names[name])
        for name, tensor in names.items():
            if name not in arrays:
                continue
            _, first, array = chosen.setdefault(id(tensor), (tensor, name, arrays[name]))
            if name != first and not np.array_equal(_host(array), _host(arrays[name])):
                problems.append(f"{first} and {name} are one tensor here, two in the file")
        missing = [name for name, x in self.named_parameters() if id(x) not in chosen]
        unexpected = [name for name in arrays if name not in names]
        if strict:
            problems += [f"{name} {names[name].shape} is missing" for name in missing]
            problems += [f"{name} is unexpected: the model has no such name" for name in unexpected]
        if problems:
            raise ValueError("load: " + "\n      ".join(sorted(problems)))
        for tensor, _, array in chosen.values():
            tensor.assign_(backend.to_device(_array(array), tensor.device))
        return missing, unexpected

    # --- changing all of it

    def to(self, target):
        """Move it to a device ("cpu", "cuda:1") or give its floats another dtype; returns itself.

        The Tensors stay the very objects that they were, so ties hold and so does what an
        optimiser points to (make it afterwards all the same: its own arrays are not moved).
        A device takes along the Tensors under names with an underscore; a dtype leaves them be.
        """
        if isinstance(target, str) and target.partition(":")[0] in ("cpu", "cuda"):
            device = backend.check_device(target)
            moved = [x for _, x in _walk(self, hidden=True) if isinstance(x, Tensor)]
            convert = partial(backend.to_device, device=device)
        else:
            dtype = dtypes.as_dtype(target)
            if not dtypes.is_float(dtype):
                raise TypeError(f"to: got {dtype}, expected a float dtype or a device")
            moved = [x for x in self.parameters() if dtypes.is_float(x.dtype)]
            convert = methodcaller("astype", dtype, copy=False)
        for tensor in moved:
            _check_leaf(tensor, "to")
        for tensor in moved:
            _rebind(tensor, convert)
        return self

    def requires_grad_(self, flag=True):
        """Train every parameter from now on, or freeze them all; returns itself.

        Integer and boolean Tensors have no gradient and stay as they are.
        """
        floats = [x for x in self.parameters() if dtypes.is_float(x.dtype)]
        for tensor in floats:
            _check_leaf(tensor, "requires_grad_")
        for tensor in floats:
            tensor.requires_grad = flag
        return self

    def zero_grad(self):
        """Forget every gradient."""
        for tensor in self.parameters():
            tensor.grad = None

    # --- looking at it

    def __repr__(self):
        return "\n".join(_tree(self))


def _parts(x, hidden=False):
    """Pairs (name, thing) of what a Module or a container holds directly."""
    if isinstance(x, Module):
        return [(name, y) for name, y in vars(x).items() if hidden or not name.startswith("_")]
    if isinstance(x, dict):
        return x.items()
    return enumerate(x) if isinstance(x, list | tuple) else ()


def _walk(x, name="", above=(), hidden=False):
    """Pairs (dotted name, Module or Tensor) from x down, under every name that a thing has."""
    if isinstance(x, Module):
        yield name, x
    if id(x) in above:  # a part that knows its owner
        return
    above, prefix = (*above, id(x)), name and name + "."
    for key, part in _parts(x, hidden):
        if isinstance(part, Tensor):
            yield f"{prefix}{key}", part
        elif isinstance(part, _HOLDERS):
            yield from _walk(part, f"{prefix}{key}", above, hidden)


_HOLDERS = (Module, dict, list, tuple)


def _once(pairs):
    """The pairs (name, thing) without those whose thing came before."""
    seen = set()
    for name, x in pairs:
        if id(x) not in seen:
            seen.add(id(x))
            yield name, x


def _tree(module, name="", above=()):
    """The lines of a module's picture: its own tensors, then its parts, indented."""
    sizes = [(x.size, x.requires_grad) for x in module.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, on in sizes if on)
    frozen = "" if trained == total else f", {trained:,} trained"
    lines = [f"{name}{type(module).__name__}: {total:,} parameters{frozen}"]
    for key, part in _held(module):
        if isinstance(part, Tensor):
            lines.append(f"  {key} {part.shape} {part.dtype}")
        elif not any(part is owner for owner in above):
            lines += [f"  {line}" for line in _tree(part, f"{key}: ", (*above, module))]
    return lines


def _held(x, name=""):
    """Pairs (name, Module or Tensor) held by x itself or by a container in it."""
    for key, part in _parts(x):
        path = f"{name}.{key}" if name else str(key)
        if isinstance(part, Module | Tensor):
            yield path, part
        elif isinstance(part, dict | list | tuple):
            yield from _held(part, path)


def _misfit(name, array, tensor):
    """What keeps this array from being loaded into this Tensor: a list of no or one line."""
    shape, dtype = tuple(np.shape(_array(array))), _array(array).dtype
    if shape != tensor.shape:
        cure = _cure(shape, tensor.shape)
        return [f"{name} is {shape} in the file, {tensor.shape} in the model; {cure}"]
    if dtypes.is_float(dtype) != dtypes.is_float(tensor.dtype):
        return [f"{name} is {dtype} in the file, {tensor.dtype} in the model"]
    return []


def _cure(found, expected):
    if found == expected[::-1]:
        return "is it transposed?"
    return "was it saved with another width, another n_heads or another vocabulary?"


def _array(x):
    """The array of a Tensor, an array as it is, a number or a list as an array."""
    x = x.data if isinstance(x, Tensor) else x
    return x if backend.is_array(x) else np.asarray(x)


def _host(x):
    return backend.to_host(_array(x))


def _check_leaf(tensor, doing):
    if tensor.node is not None:
        raise GraphError(
            f"{doing}: a parameter of shape {tensor.shape} is a computed value; keep its leaf in "
            "the module and compute in forward, or give the attribute a name with an underscore"
        )


def _rebind(tensor, convert):
    """Give a leaf another array; a tape that still needs the old one will refuse to run."""
    array = convert(tensor.data)
    if array is not tensor.data:
        tensor.data = array
        if tensor.version is not None:
            tensor.version[0] += 1
    if tensor.grad is not None:
        tensor.grad = Tensor.wrap(convert(tensor.grad.data))


# --------------------------------------------------------------------------- initial values
#
# init(rng, shape) -> float64 numpy array, drawn on the host: both devices and every dtype start
# from the same numbers.


def normal(std):
    """init: N(0, std^2)"""
    return lambda rng, shape: std * rng.standard_normal(shape)


def unit_normal(rng, shape):
    """init: N(0, 1)      PyTorch's for embeddings"""
    return rng.standard_normal(shape)


def fan_in(rng, shape):
    """init: U(-b, b) with b = 1 / sqrt(inputs of one output)     LeCun et al. 1998, PyTorch's"""
    bound = int(np.prod(shape[1:])) ** -0.5 if np.prod(shape[1:]) else 0.0
    return rng.uniform(-bound, bound, shape)


def zeros(rng, shape):
    """init: 0"""
    return np.zeros(shape)


def ones(rng, shape):
    """init: 1"""
    return np.ones(shape)


def parameter(shape, *, rng, init, dtype="float32", device=None):
    """A trained leaf Tensor with initial values init(rng, shape).

    rng=None gives zeros at no cost, for a model whose weights are about to be loaded.
    """
    dtype = dtypes.as_dtype(dtype)
    if not dtypes.is_float(dtype):
        raise TypeError(f"dtype: got {dtype}, expected a float type, for parameters are trained")
    if any(not isinstance(n, int | np.integer) or n < 0 for n in shape):
        raise ValueError(f"parameter: got shape {tuple(shape)}, expected whole numbers >= 0")
    random = init not in (zeros, ones)
    if random and rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng: got {type(rng).__name__}, expected numpy.random.default_rng(seed)")
    if rng is None and random:
        array = np.zeros(shape, dtype)
    else:
        array = init(rng, shape).astype(dtype, copy=False)
    array = backend.to_device(array, backend.check_device(device))
    return Tensor.leaf(array, requires_grad=True)


# ------------------------------------------------------------------------------------ layers


class Linear(Module):
    """y = x weight^T + bias      x: (..., inputs)  weight: (outputs, inputs)  bias: (outputs,)"""

    def __init__(
        self, inputs, outputs, bias=False, *, rng, init=fan_in, dtype="float32", device=None
    ):
        place = {"dtype": dtype, "device": device}
        self.weight = parameter((outputs, inputs), rng=rng, init=init, **place)
        # PyTorch draws the bias from the weight's interval; 0 is Glorot & Bengio's (2010)
        self.bias = parameter((outputs,), rng=rng, init=zeros, **place) if bias else None

    def forward(self, x, *, rng=None):
        return functional.linear(x, self.weight, self.bias)


def linear_maps(x, *layers, rng=None):
    """What each layer makes of the same x; plain Linears, which nobody has wrapped, in one go.

    So with QuantizedLinears of one format.
    """
    kinds = {type(layer) for layer in layers}
    if kinds == {Linear} and all(layer.bias is None for layer in layers):
        return functional.linear_maps(x, *(layer.weight for layer in layers))
    if kinds == {QuantizedLinear} and _go_together(x, layers):
        blocks = tuple(_beside(layer._blocks, x.data) for layer in layers)
        return quantized_maps(x, blocks=blocks, format=layers[0]._blocks.format)
    return tuple(layer(x, rng=rng) for layer in layers)


def _go_together(x, layers):
    """Whether quantised layers are of one format, fit x, and have no bias."""
    first, width = layers[0]._blocks.format, x.shape[-1]
    return all(
        layer.bias is None and layer._blocks.format == first and layer.shape[1] == width
        for layer in layers
    )


class _Convolution(Module):
    """What the two convolutions share: weight (outputs, inputs / groups, *size), bias, options."""

    def __init__(self, axes, inputs, outputs, size, bias, options, rng, init, dtype, device):
        size = (size,) * axes if isinstance(size, int) else tuple(size)
        groups = options["groups"]
        if len(size) != axes:
            raise ValueError(f"size: got {size}, expected a number or {axes} of them")
        if groups < 1 or inputs % groups or outputs % groups:
            raise ValueError(f"groups: {groups} do not divide {inputs} inputs, {outputs} outputs")
        place = {"dtype": dtype, "device": device}
        shape = (outputs, inputs // groups, *size)
        self.weight = parameter(shape, rng=rng, init=init, **place)
        self.bias = parameter((outputs,), rng=rng, init=zeros, **place) if bias else None
        self.options = options


class Conv1d(_Convolution):
    """y[b, o, i] = sum_(c, u) weight[o, c, u] x[b, c, i stride + u dilation] + bias[o]

    x: (b, inputs, t) -> (b, outputs, t')      size: the number of taps u
    """

    def __init__(
        self,
        inputs,
        outputs,
        size,
        bias=True,
        *,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        rng,
        init=fan_in,
        dtype="float32",
        device=None,
    ):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        super().__init__(1, inputs, outputs, size, bias, options, rng, init, dtype, device)

    def forward(self, x, *, rng=None):
        return functional.conv1d(x, self.weight, self.bias, **self.options)


class Conv2d(_Convolution):
    """The same over two axes      x: (b, inputs, y, x) -> (b, outputs, y', x')

    size, stride, padding, dilation: a number, or one for each of the two axes
    """

    def __init__(
        self,
        inputs,
        outputs,
        size,
        bias=True,
        *,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        rng,
        init=fan_in,
        dtype="float32",
        device=None,
    ):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        super().__init__(2, inputs, outputs, size, bias, options, rng, init, dtype, device)

    def forward(self, x, *, rng=None):
        return functional.conv2d(x, self.weight, self.bias, **self.options)


class Embedding(Module):
    """y_i = weight[ids_i]      ids: (...) integers  weight: (count, width)  y: (..., width)"""

    def __init__(self, count, width, *, rng, init=unit_normal, dtype="float32", device=None):
        self.weight = parameter((count, width), rng=rng, init=init, dtype=dtype, device=device)

    def forward(self, ids, *, rng=None):
        if isinstance(ids, np.ndarray):  # a text is made on the host
            ids = backend.to_device(ids, self.weight.device)
        return functional.embedding(self.weight, ids)


class RMSNorm(Module):
    """y = x / sqrt(mean(x^2) + eps) * weight      x: (..., width)      Zhang & Sennrich 2019"""

    def __init__(self, width, eps=1e-5, *, dtype="float32", device=None):
        self.eps = eps
        self.weight = parameter((width,), rng=None, init=ones, dtype=dtype, device=device)

    def forward(self, x, *, rng=None):
        return functional.rms_norm(x, self.weight, eps=self.eps)


def add_norm(x, residual, norm, *, rng=None):
    """(h, norm(h)) with h = x + residual; in one go if the norm is a plain RMSNorm."""
    if type(norm) is RMSNorm and x.shape == residual.shape:
        return functional.add_rms_norm(x, residual, norm.weight, eps=norm.eps)
    h = x + residual
    return h, norm(h, rng=rng)


class LayerNorm(Module):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias      x: (..., width)

    Ba, Kiros & Hinton 2016.
    """

    def __init__(self, width, eps=1e-5, bias=True, *, dtype="float32", device=None):
        self.eps = eps
        place = {"dtype": dtype, "device": device}
        self.weight = parameter((width,), rng=None, init=ones, **place)
        self.bias = parameter((width,), rng=None, init=zeros, **place) if bias else None

    def forward(self, x, *, rng=None):
        return functional.layer_norm(x, self.weight, self.bias, eps=self.eps)


class GroupNorm(Module):
    """LayerNorm over the channels of each group and all places      x: (b, channels, ...)

    weight, bias: (channels,)      Wu & He 2018
    """

    def __init__(self, groups, channels, eps=1e-5, *, dtype="float32", device=None):
        if groups < 1 or channels % groups:
            raise ValueError(f"groups: {groups} do not divide {channels} channels")
        self.groups, self.eps = groups, eps
        place = {"dtype": dtype, "device": device}
        self.weight = parameter((channels,), rng=None, init=ones, **place)
        self.bias = parameter((channels,), rng=None, init=zeros, **place)

    def forward(self, x, *, rng=None):
        return functional.group_norm(x, self.groups, self.weight, self.bias, eps=self.eps)


class Dropout(Module):
    """Each entry is 0 with probability p, else x / (1 - p); x itself when rng is None.

    Srivastava et al. 2014.
    """

    def __init__(self, p):
        if not 0 <= p <= 1:
            raise ValueError(f"p: got {p}, expected a probability from 0 to 1")
        self.p = p

    def forward(self, x, *, rng=None):
        return functional.dropout(x, self.p, rng)


class Sequential(Module):
    """One part after the other: modules, or plain functions of one Tensor such as tg.relu."""

    def __init__(self, *parts):
        self.parts = list(parts)

    def forward(self, x, *, rng=None):
        for part in self.parts:
            x = part(x, rng=rng) if isinstance(part, Module) else part(x)
        return x


# ------------------------------------------------------------------------ quantised weights
#
# They take the place of Linear and Embedding. A quantised weight is no parameter: gradients go
# through it to x, and it can be made dense.


class QuantizedLinear(Module):
    """y = x W^T + bias, W in blocks      x: (..., inputs)  W: (outputs, inputs)

    blocks: quant.Blocks of shape (outputs, inputs).
    """

    def __init__(self, blocks, bias=None):
        self._blocks, self.bias = _matrix(blocks), bias

    shape = property(lambda self: self._blocks.shape)

    def forward(self, x, *, rng=None):
        if x.shape[-1:] != self.shape[1:]:
            raise ValueError(f"linear: x is {x.shape}, weight {self.shape}; expected (o, x's last)")
        y = quantized_matmul(x, blocks=_beside(self._blocks, x.data), format=self._blocks.format)
        return y if self.bias is None else y + self.bias

    def dense(self, dtype="float32"):
        """W as an array."""
        return self._blocks.dense(dtype)


class QuantizedEmbedding(Module):
    """y_i = W[ids_i], W in blocks      ids: (...) integers  W: (count, width)  y: (..., width)

    dtype: of y, for the ids have none that would fit.
    """

    def __init__(self, blocks, dtype="float32"):
        self._blocks, self._dtype = _matrix(blocks), dtype

    shape = property(lambda self: self._blocks.shape)

    def forward(self, ids, *, rng=None):
        ids, count = array_of(ids), self.shape[0]
        if ids.size and not (ids.min() >= 0 and ids.max() < count):
            raise IndexError(f"ids: got {ids.min()} to {ids.max()}, expected 0 to {count - 1}")
        rows = rows_of(_beside(self._blocks, ids), ids)  # their blocks alone are looked at
        return Tensor.wrap(Blocks(rows, self._blocks.format).dense(self._dtype))

    def dense(self, dtype="float32"):
        """W as an array."""
        return self._blocks.dense(dtype)


def _beside(blocks, x):
    """The bytes of blocks, on x's device from now on: they are moved once, not every time."""
    blocks.data = backend.to_device(blocks.data, backend.device_of(x))
    return blocks.data


def _matrix(blocks):
    if not isinstance(blocks, Blocks) or len(blocks.shape) != 2:
        raise TypeError(f"blocks: got {blocks!r:.80}, expected quant.Blocks of a matrix")
    return blocks
