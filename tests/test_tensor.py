"""Tensor: numpy's habits, other libraries, and what it says when something is wrong."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg

DTYPES = ["bool", "int8", "int32", "int64", "uint8", "float16", "bfloat16", "float32", "float64"]


# --- making one


def test_python_numbers_and_arrays():
    assert tg.tensor(1.5).dtype == "float32" and tg.tensor([1, 2]).dtype == "int64"
    assert tg.tensor([True]).dtype == "bool" and tg.tensor(np.float64(2)).dtype == "float64"
    assert tg.tensor(np.ones(2, "float16")).dtype == "float16"
    assert tg.tensor([[1.0, 2.0]], dtype="bfloat16").dtype == ml_dtypes.bfloat16
    assert tg.tensor([]).shape == (0,)


def test_tensor_copies():
    array = np.ones(2)
    x = tg.tensor(array)
    array[0] = 5
    assert x.tolist() == [1.0, 1.0]
    y = tg.tensor(x)
    x.assign_([7.0, 7.0])
    assert y.tolist() == [1.0, 1.0]


def test_numpy_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        tg.tensor([1.0]).numpy()[0] = 2


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([1j], TypeError, "dtype: got dtype\\('complex128'\\), expected one of"),
        (["a"], TypeError, "dtype: got"),
        ([tg.tensor(1.0)], TypeError, "tg.stack"),
    ],
)
def test_data_that_is_no_tensor(data, error, message):
    with pytest.raises(error, match=message):
        tg.tensor(data)


def test_bad_dtype_and_device():
    with pytest.raises(TypeError, match="dtype: got 'float33'"):
        tg.tensor(1.0, dtype="float33")
    with pytest.raises(ValueError, match="device: got 'tpu', expected 'cpu', 'cuda' or 'cuda:N'"):
        tg.tensor(1.0, device="tpu")


def test_cuda_without_cupy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(tg.DeviceError, match="not installed: pip install"):
        tg.tensor(1.0, device="cuda")


# --- dtypes


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_promotion_is_numpys(a, b):
    x, y = tg.tensor([1], dtype=a), tg.tensor([1], dtype=b)
    if {a, b} == {"float16", "bfloat16"}:
        expected = np.dtype("float32")
    elif "bfloat16" in (a, b):  # it stands where float16 stands
        expected = np.result_type(*(np.dtype(d.replace("bfloat16", "float16")) for d in (a, b)))
        expected = x.dtype if expected == "float16" and a == "bfloat16" else expected
        expected = y.dtype if expected == "float16" and b == "bfloat16" else expected
    else:
        expected = np.result_type(a, b)
    assert (x + y).dtype == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_python_scalars_are_weak(dtype):
    x = tg.tensor([1.0], dtype=dtype)
    for y in (x * 2.0, 2.0 * x, x + 1, 1 - x, x / 3, x**2, 2**x, x**0.5, x % 2):
        assert y.dtype == x.dtype
    assert tg.maximum(x, 0.0).dtype == tg.where([True], x, 0.0).dtype == x.dtype


def test_casting_to_integers_leaves_the_tape():
    x = tg.tensor([1.7], requires_grad=True)
    assert not x.astype("int64").requires_grad and x.astype("float64").requires_grad
    assert tg.grad(x.to("float64").sum(), x).dtype == "float32"


# --- numpy's habits


def test_arrays_meet_tensors():
    array, x = np.array([1.0, 2.0]), tg.tensor([3.0, 4.0], dtype="float64", requires_grad=True)
    for y in (array * x, x * array, np.multiply(array, x), np.float64(2) * x):
        assert isinstance(y, tg.Tensor) and y.requires_grad
    assert isinstance(array @ x, tg.Tensor) and (array @ x).item() == 11.0
    assert isinstance(np.exp(x), tg.Tensor)
    assert np.asarray(x).tolist() == [3.0, 4.0]
    assert (array < x).tolist() == [True, True] and isinstance(array < x, np.ndarray)


def test_comparisons_are_plain_arrays():
    x = tg.tensor([1.0, 2.0])
    for result in (x == x, x != 1, x < 2, x >= x, x.argmax(), x.argsort(), x.any()):
        assert not isinstance(result, tg.Tensor)
    assert {x: 1}[x] == 1  # still hashable, by identity


def test_sequence_protocol():
    x = tg.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(x) == 2 and [row.tolist() for row in x] == [[1.0, 2.0], [3.0, 4.0]]
    assert float(x[0, 0]) == 1.0 and int(x[1, 1]) == 4 and bool(x[0, 0])
    assert [10, 20, 30][tg.tensor(1)] == 20 and f"{x[0, 1]:.2f}" == "2.00"
    with pytest.raises(TypeError, match="shape \\(\\)"):
        len(tg.tensor(1.0))
    with pytest.raises(ValueError, match="not one number"):
        x.item()


def test_in_place_operators_rebind():
    x = tg.tensor([1.0])
    y = x
    y += 1
    assert x.item() == 1.0 and y.item() == 2.0
    with pytest.raises(TypeError, match="index_update"):
        x[0] = 2.0


index = st.one_of(
    st.integers(-3, 2),
    st.slices(3),
    st.none(),
    st.just(Ellipsis),
    st.lists(st.integers(-3, 2), min_size=1, max_size=4),
    st.lists(st.booleans(), min_size=3, max_size=3),
)


@given(index)
def test_indexing_and_its_gradient(i):
    array = np.arange(9.0).reshape(3, 3)
    x = tg.tensor(array, requires_grad=True)
    y = x[i]
    assert y.shape == array[i].shape and (y.data == array[i]).all()
    expected = np.zeros((3, 3))
    np.add.at(expected, i, 1.0)
    assert (tg.grad(y.sum(), x).data == expected).all() if y.requires_grad else True


def test_repr_tells_dtype_device_and_tape():
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    assert repr(x) == "tensor([1., 2.], dtype=float32, device=cpu, requires_grad=True)"
    assert repr(x * 2).endswith("made_by=mul)") and "grad" not in repr(x.detach())


def test_options_by_name_or_by_position():
    x = tg.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert (tg.softmax(x, 0).data == tg.softmax(x, axis=0).data).all()
    assert tg.sum(x, 0).tolist() == [4.0, 7.0] and tg.ops.sum(x, 1, True).shape == (2, 1)
    with pytest.raises(TypeError, match="softmax"):
        tg.softmax(x, 0, 1)
    with pytest.raises(TypeError, match="softmax"):
        tg.softmax(x, 0, axis=1)


# --- errors


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (lambda x: x + np.ones(4), ValueError, r"add: .*a \(2, 3\).*b \(4,\)"),
        (lambda x: x @ x, ValueError, r"matmul: .*a \(2, 3\).*b \(2, 3\)"),
        (lambda x: x.sum(axis=5), IndexError, r"sum: axis 5 is out of bounds.*\(2, 3\)"),
        (lambda x: x.reshape(4), ValueError, r"reshape: .*\(2, 3\)"),
        (lambda x: x[5], IndexError, r"getitem: index 5 is out of bounds.*\(2, 3\)"),
        (lambda x: tg.ops.concatenate(x, x[0]), ValueError, r"concatenate: .*\(2, 3\).*\(3,\)"),
        (lambda x: x.softmax(axis=2), IndexError, r"softmax: axis 2"),
    ],
)
def test_errors_name_the_op_and_the_shapes(f, error, message):
    with pytest.raises(error, match=message):
        f(tg.tensor(np.ones((2, 3)), requires_grad=True))


# --- other libraries


def test_dlpack_shares_memory():
    array = np.arange(3.0)
    x = tg.from_dlpack(array)
    assert np.shares_memory(x.data, array)
    assert np.shares_memory(np.from_dlpack(tg.tensor(array).detach()), array) is False
    y = tg.tensor(array)
    assert np.shares_memory(np.from_dlpack(y), y.data)
    with pytest.raises(BufferError, match="detach"):
        np.from_dlpack(tg.tensor(1.0, requires_grad=True))
    with pytest.raises(BufferError, match="uint16"):
        np.from_dlpack(tg.tensor(1.0, dtype="bfloat16"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_pickle_and_copy(dtype):
    x = tg.tensor([0, 1], dtype=dtype, requires_grad="float" in dtype)
    for y in (pickle.loads(pickle.dumps(x)), copy.copy(x), copy.deepcopy(x)):
        assert y.dtype == x.dtype and (y.data == x.data).all()
        assert y.requires_grad == x.requires_grad and not np.shares_memory(x.data, y.data)
    if x.requires_grad:
        with pytest.raises(TypeError, match="detach"):
            pickle.dumps(x * 2)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "bool"])
@pytest.mark.parametrize("traced", [False, True])
def test_methods_and_operators_are_the_functions(dtype, traced):
    x = tg.tensor(np.arange(6).reshape(2, 3) % 4, dtype=dtype)
    y = tg.tensor(np.arange(6).reshape(2, 3) % 3, dtype=dtype)
    if traced and x.dtype.kind not in "ib":
        x.requires_grad = True
    pairs = [
        (x * y, tg.ops.mul(x, y)),
        (x + 2, tg.ops.add(x, 2)),
        (x + 0.5, tg.ops.add(x, 0.5)),
        (x * y.data, tg.ops.mul(x, y.data)),
        (x @ y.T, tg.ops.matmul(x, tg.ops.transpose(y))),
        (x.exp(), tg.ops.exp(x)),
        (x.sum(), tg.ops.sum(x)),
        (x.sum(1, True), tg.ops.sum(x, axis=1, keepdims=True)),
        (x.max(axis=0), tg.ops.max(x, axis=0)),
        (x[1], tg.ops.getitem(x, index=1)),
        (x.reshape(-1), tg.ops.reshape(x, shape=-1)),
    ]
    for method, function in pairs:
        assert type(method) is type(function) is tg.Tensor
        assert method.dtype == function.dtype and method.shape == function.shape
        assert method.requires_grad == function.requires_grad
        assert method.data.tobytes() == function.data.tobytes()


def test_methods_refuse_what_functions_refuse():
    x = tg.tensor([[1.0, 2.0]])
    with pytest.raises(TypeError, match="sum"):
        x.sum(0, False, 3)
    with pytest.raises(TypeError, match="sum"):
        x.sum(0, axis=1)
    with pytest.raises(ValueError, match=r"add.*\(1, 2\).*\(3,\)"):
        x + tg.tensor([1.0, 2.0, 3.0])
    with pytest.raises(IndexError, match="getitem"):
        x[7]


def test_a_view_off_the_tape_still_shares_its_version():
    weight = tg.tensor([[1.0, 2.0]], requires_grad=True)
    with tg.no_grad():
        view = weight.reshape(2)
    y = tg.tensor([3.0, 4.0], requires_grad=True)
    product = view * y
    weight.assign_(np.ones((1, 2)))
    with pytest.raises(tg.GraphError, match="assign_"):
        product.sum().backward()
