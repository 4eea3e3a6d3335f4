"""Tensor: numpy's names on a differentiable value. No logic: each method names its function."""

import numpy as np

from . import backend, dtypes, functional, ops
from .arrays import array_of, index_of
from .autograd import Value

_getitem, _reshape, _transpose = (f.method() for f in (ops.getitem, ops.reshape, ops.transpose))


class Tensor(Value):
    """An n-dimensional array that remembers how it was computed. Made by `tg.tensor(data)`."""

    __slots__ = ()
    __array_priority__ = 1000  # numpy_array * tensor asks the tensor

    # --- what it is

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)
    nbytes = property(lambda self: self.data.nbytes)
    itemsize = property(lambda self: self.data.itemsize)
    device = property(lambda self: backend.device_of(self.data))
    T = property(ops.transpose.method())
    mT = property(lambda self: functional.swapaxes(self, -1, -2))

    def __repr__(self):
        numbers = np.array2string(self.numpy(), separator=", ", prefix="tensor(", threshold=1000)
        made_by = f", made_by={self.node.name}" if self.node else ""
        traced = ", requires_grad=True" if self.requires_grad and not self.node else made_by
        return f"tensor({numbers}, dtype={self.dtype}, device={self.device}{traced})"

    def __len__(self):
        if not self.shape:
            raise TypeError("len() of a tensor of shape ()")
        return self.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    __bool__ = lambda self: bool(self.data)
    __int__ = lambda self: int(self.item())
    __float__ = lambda self: float(self.item())
    __index__ = lambda self: self.data.__index__()
    __hash__ = object.__hash__

    def __format__(self, spec):
        return format(self.item(), spec) if spec else repr(self)

    def item(self):
        """The one number in it, as a Python number; ValueError if there is not just one."""
        if self.size != 1:
            raise ValueError(f"item: a tensor of shape {self.shape} is not one number")
        return self.data.item()

    def tolist(self):
        """Nested lists of Python numbers."""
        return self.data.tolist()

    def numpy(self):
        """The numbers as a numpy array on the host that cannot be written to."""
        array = backend.to_host(self.data).view()
        array.flags.writeable = False
        return array

    # --- where it is

    def detach(self):
        """The same numbers off the tape, in the same memory."""
        out = self.wrap(self.data)
        out.version = self.version
        return out

    def to(self, target):
        """In another dtype, or on another device: x.to("float64"), x.to("cuda")."""
        if isinstance(target, str) and target.partition(":")[0] in ("cpu", "cuda"):
            return ops.to_device(self, device=target, source=self.device)
        return self.astype(target)

    def astype(self, dtype):
        """In another dtype. As an integer or boolean it leaves the tape."""
        return functional.astype(self, dtype)

    # --- arithmetic

    __add__ = ops.add.method()
    __radd__ = lambda self, other: ops.add(other, self)
    __sub__ = ops.sub.method()
    __rsub__ = lambda self, other: ops.sub(other, self)
    __mul__ = ops.mul.method()
    __rmul__ = lambda self, other: ops.mul(other, self)
    __truediv__ = ops.div.method()
    __rtruediv__ = lambda self, other: ops.div(other, self)
    __floordiv__ = lambda self, other: functional.floor_divide(self, other)
    __rfloordiv__ = lambda self, other: functional.floor_divide(other, self)
    __mod__ = ops.mod.method()
    __rmod__ = lambda self, other: ops.mod(other, self)
    __pow__ = ops.pow.method()
    __rpow__ = lambda self, other: ops.pow(other, self)
    __matmul__ = ops.matmul.method()
    __rmatmul__ = lambda self, other: ops.matmul(other, self)
    __neg__ = ops.neg.method()
    __pos__ = lambda self: self
    __abs__ = ops.abs.method()

    # --- comparison: plain boolean arrays, off the tape

    def __eq__(self, other):
        return self.data == array_of(other)

    def __ne__(self, other):
        return self.data != array_of(other)

    __lt__ = lambda self, other: self.data < array_of(other)
    __le__ = lambda self, other: self.data <= array_of(other)
    __gt__ = lambda self, other: self.data > array_of(other)
    __ge__ = lambda self, other: self.data >= array_of(other)
    __invert__ = lambda self: ~self.data
    __and__ = __rand__ = lambda self, other: self.data & array_of(other)
    __or__ = __ror__ = lambda self, other: self.data | array_of(other)
    __xor__ = __rxor__ = lambda self, other: self.data ^ array_of(other)

    def argmax(self, axis=None, keepdims=False):
        """The place of the greatest entry, as a plain integer array."""
        return self.data.argmax(axis=axis, keepdims=keepdims)

    def argmin(self, axis=None, keepdims=False):
        """The place of the smallest entry, as a plain integer array."""
        return self.data.argmin(axis=axis, keepdims=keepdims)

    def argsort(self, axis=-1, descending=False):
        """The order that sorts it (stable), as a plain integer array."""
        return functional.argsort(self, axis, descending)

    def all(self, axis=None, keepdims=False):
        """Whether all entries are nonzero, as a plain boolean array."""
        return self.data.all(axis=axis, keepdims=keepdims)

    def any(self, axis=None, keepdims=False):
        """Whether any entry is nonzero, as a plain boolean array."""
        return self.data.any(axis=axis, keepdims=keepdims)

    # --- indexing

    def __getitem__(self, index):
        return _getitem(self, index=index if type(index) is int else index_of(index))

    def __setitem__(self, index, value):
        raise TypeError(
            "a tensor's entries cannot be assigned, since the tape may still need the old ones: "
            "use y = tg.index_update(x, index, value), or leaf.assign_(array) for all of a leaf"
        )

    # --- elementwise, reductions and shapes, under numpy's names

    exp = ops.exp.method()
    log = ops.log.method()
    sqrt = ops.sqrt.method()
    abs = ops.abs.method()
    sin = ops.sin.method()
    cos = ops.cos.method()
    tanh = ops.tanh.method()
    relu = ops.relu.method()
    sigmoid = ops.sigmoid.method()
    softmax = ops.softmax.method()
    log_softmax = ops.log_softmax.method()
    clip = lambda self, min=None, max=None: functional.clip(self, min, max)
    round = ops.round.method()
    square = lambda self: functional.square(self)
    sum = ops.sum.method()
    max = ops.max.method()
    min = ops.min.method()
    logsumexp = ops.logsumexp.method()

    def mean(self, axis=None, keepdims=False):
        return functional.mean(self, axis, keepdims)

    def var(self, axis=None, ddof=0, keepdims=False):
        return functional.var(self, axis, ddof, keepdims)

    def std(self, axis=None, ddof=0, keepdims=False):
        return functional.std(self, axis, ddof, keepdims)

    def prod(self, axis=None, keepdims=False):
        return functional.prod(self, axis, keepdims)

    def cumsum(self, axis=None):
        return functional.cumsum(self, axis)

    def cumprod(self, axis=None):
        return functional.cumprod(self, axis)

    def reshape(self, *shape):
        return _reshape(self, shape=shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes):
        if len(axes) == 1 and not isinstance(axes[0], int):
            axes = axes[0]
        return _transpose(self, axes=axes or None)

    def swapaxes(self, axis1, axis2):
        return functional.swapaxes(self, axis1, axis2)

    def ravel(self):
        return ops.reshape(self, shape=-1)

    flatten = ravel

    def squeeze(self, axis=None):
        return functional.squeeze(self, axis)

    def repeat(self, repeats, axis=None):
        return functional.repeat(self, repeats, axis)

    def take(self, indices, axis=None):
        return functional.take(self, indices, axis)

    def diagonal(self, offset=0, axis1=0, axis2=1):
        return functional.diagonal(self, offset, axis1, axis2)

    def trace(self, offset=0):
        return functional.trace(self, offset)

    def dot(self, other):
        return functional.dot(self, other)

    def sort(self, axis=-1, descending=False):
        return functional.sort(self, axis, descending)

    # --- other libraries

    def __array__(self, dtype=None, copy=None):
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        """numpy's functions on tensors: np.exp(x), numpy_array * x."""
        function = functional.UFUNCS.get(ufunc.__name__)
        if function is None or method != "__call__" or keywords:
            return NotImplemented
        return function(*inputs)

    def __dlpack__(self, **keywords):
        if self.dtype == dtypes.bfloat16 and self.device == "cpu":
            raise BufferError(
                "numpy's DLPack has no bfloat16; send x.data.view('uint16') and view it back, "
                "in torch by .view(torch.bfloat16)"
            )
        if self.requires_grad:
            raise BufferError("a tensor on the tape cannot be shared: use x.detach()")
        return self.data.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.data.__dlpack_device__()

    def __deepcopy__(self, memo):
        if self.node is not None:
            raise TypeError("deepcopy: only leaves can be copied; use x.detach()")
        return tensor(self, requires_grad=self.requires_grad)

    def __copy__(self):
        return self.__deepcopy__({})

    def __reduce__(self):
        if self.node is not None:
            raise TypeError("pickle: only leaves can be pickled; use x.detach()")
        return _unpickled, (backend.to_host(self.data), str(self.device), self.requires_grad)


def _unpickled(array, device, requires_grad):
    return Tensor.leaf(backend.to_device(array, device), requires_grad)


def tensor(data, dtype=None, device=None, requires_grad=False):
    """A new Tensor with a copy of `data`: a number, nested lists, an array or a Tensor.

    An array keeps its dtype; Python floats become float32, ints int64. TypeError for a dtype
    that is none of ours (complex, object, strings) or an integer that is to require a gradient;
    DeviceError for a device that is not there.
    """
    data = array_of(data)
    if not backend.is_array(data):
        if isinstance(data, list | tuple) and any(isinstance(x, Value) for x in data):
            raise TypeError(
                "data: got a list of Tensors; join them with tg.stack, which keeps the tape"
            )
        data = np.asarray(data)
        if data.dtype == np.float64:
            data = data.astype(np.float32)
    dtype = dtypes.as_dtype(data.dtype if dtype is None else dtype)
    if device is not None:
        data = backend.to_device(data, backend.check_device(device))
    xp = backend.namespace([data])
    return Tensor.leaf(xp.array(data, dtype=dtype, copy=True), requires_grad)


def borrow(data, requires_grad=False):
    """A Tensor on an array's own memory, without a copy, that never writes to it.

    What is done to the array afterwards shows in the Tensor and goes unnoticed by the tape.
    """
    view = data.view()
    if hasattr(view.flags, "writeable"):
        view.flags.writeable = False
    dtypes.as_dtype(view.dtype)
    return Tensor.leaf(view, requires_grad)


def from_dlpack(x):
    """A Tensor on the memory of another library's array (torch, cupy, jax), without a copy."""
    array = backend.from_dlpack(x)
    return borrow(array) if backend.namespace([array]) is np else Tensor.leaf(array)
