"""tg.nn: what a module finds in itself, loading that changes all or nothing, and the layers."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinygrad_ml as tg
from tinygrad_ml import io, nn
from tinygrad_ml.autograd import GraphError


def rng():
    return np.random.default_rng(0)


def leaf(*shape, dtype="float32"):
    return tg.tensor(np.arange(np.prod(shape), dtype=dtype).reshape(shape), requires_grad=True)


class Scale(nn.Module):
    """y = x gain, and nothing but the attribute says that gain is a parameter."""

    def __init__(self, width=2):
        self.gain = leaf(width)
        self.label = "no parameter"
        self._table = leaf(3)

    def forward(self, x, *, rng=None):
        return x * self.gain


class Model(nn.Module):
    def __init__(self):
        self.first = Scale()
        self.layers = [Scale(), Scale(3)]
        self.heads = {"left": Scale(), "right": leaf(2, 2)}
        self.pair = (leaf(1), {"inner": [leaf(4)]})
        self.tied = self.layers[0].gain
        self._hidden = Scale()


NAMES = [
    "first.gain",
    "layers.0.gain",
    "layers.1.gain",
    "heads.left.gain",
    "heads.right",
    "pair.0",
    "pair.1.inner.0",
]


# --- what a module finds in itself


def test_tensors_are_found_through_modules_lists_tuples_and_dicts_and_tied_ones_once():
    model = Model()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert list(model.parameters())[1] is model.tied
    assert list(model.state_dict()) == NAMES


def test_modules_are_found_once_with_their_first_name():
    model = Model()
    model.again = model.first
    names = ["", "first", "layers.0", "layers.1", "heads.left"]
    assert [name for name, _ in model.named_modules()] == names
    assert list(model.modules())[:2] == [model, model.first]


def test_a_part_may_know_its_owner():
    model = Model()
    model.first.owner = model
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert "first: Scale" in repr(model)
    assert model.load_state_dict(model.state_dict()) == ([], [])


def test_a_part_can_be_replaced_by_one_that_wraps_it():
    class Twice(nn.Module):
        def __init__(self, inner):
            self.inner = inner

        def forward(self, x, *, rng=None):
            return self.inner(self.inner(x, rng=rng), rng=rng)

    model = nn.Sequential(Scale())
    x = np.array([3.0, 5.0], np.float32)
    model.parts[0] = Twice(model.parts[0])
    assert model(x).tolist() == [0.0, 5.0]
    assert [name for name, _ in model.named_parameters()] == ["parts.0.inner.gain"]


def test_two_tensors_of_one_name_are_refused():
    model = Model()
    model.heads["left.gain"] = leaf(2)
    with pytest.raises(ValueError, match=r"both called 'heads\.left\.gain'"):
        model.state_dict()


def test_freezing_and_training_again():
    model = Model()
    model.heads["counts"] = tg.tensor([1, 2])
    model.first.requires_grad_(False)
    (model.first(np.ones(2)) + model.layers[0](np.ones(2))).sum().backward()
    assert model.first.gain.grad is None
    assert model.tied.grad.tolist() == [1, 1]
    model.requires_grad_()
    assert model.first.gain.requires_grad
    assert not model.heads["counts"].requires_grad
    model.zero_grad()
    assert model.tied.grad is None


def test_a_computed_parameter_cannot_be_frozen_and_nothing_else_is():
    model = Model()
    model.pair = model.tied * 2
    with pytest.raises(GraphError, match=r"shape \(2,\) is a computed value"):
        model.requires_grad_(False)
    assert model.first.gain.requires_grad


def test_the_picture_shows_shapes_and_counts():
    model = Model()
    model.first.requires_grad_(False)
    picture = repr(model).splitlines()
    assert picture[0] == "Model: 18 parameters, 16 trained"
    assert picture[1:3] == ["  first: Scale: 2 parameters, 0 trained", "    gain (2,) float32"]
    assert "  layers.1: Scale: 3 parameters" in picture


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Model has no forward"):
        Model()(np.ones(2))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_independent_and_keep_their_ties(clone):
    model = Model()
    twin = clone(model)
    model.tied.assign_(np.full(2, 9.0))
    assert twin.tied.tolist() == [0.0, 1.0]
    assert [name for name, _ in twin.named_parameters()] == NAMES


# --- its numbers


def random_model(seed, dtype="float32"):
    model, draw = Model(), np.random.default_rng(seed)
    for p in model.parameters():
        p.assign_(draw.standard_normal(p.shape))
    return model.to(dtype)


@given(st.integers(0, 2**32), st.sampled_from(["float16", "bfloat16", "float32", "float64"]))
def test_a_state_goes_through_a_file_and_back(tmp_path_factory, seed, dtype):
    path = tmp_path_factory.getbasetemp() / "model"
    model, other = random_model(seed, dtype), random_model(seed + 1, dtype)
    io.save(path, model.state_dict(copy=False))
    assert other.load_state_dict(io.load(path)) == ([], [])
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert a.dtype == b.dtype
        assert (a.data == b.data).all()


def test_a_state_dict_is_a_copy_or_on_demand_a_read_only_view():
    model = Model()
    kept, seen = model.state_dict(), model.state_dict(copy=False)
    model.tied.assign_(np.full(2, 9.0))
    assert kept["layers.0.gain"].tolist() == [0, 1]
    assert seen["layers.0.gain"].tolist() == [9, 9]
    assert not seen["layers.0.gain"].flags.writeable


def test_loading_rounds_to_the_parameters_dtype_and_takes_tensors_and_lists():
    model = nn.Sequential(Scale())
    for array in (np.array([0.1, 0.2]), tg.tensor([0.1, 0.2]), [0.1, 0.2]):
        model.load_state_dict({"parts.0.gain": array})
        assert (model.parts[0].gain.data == np.array([0.1, 0.2], np.float32)).all()


def test_every_misfit_is_reported_at_once_and_nothing_is_changed():
    model = Model()
    before, arrays = model.state_dict(), random_model(1).state_dict()
    arrays["heads.right"] = np.ones((3, 3))
    arrays["pair.0"] = np.ones(1, int)
    arrays["stranger"] = np.ones(1)
    del arrays["first.gain"]
    with pytest.raises(ValueError) as error:
        model.load_state_dict(arrays)
    for line in (
        "first.gain (2,) is missing",
        "heads.right is (3, 3) in the file, (2, 2) in the model",
        "pair.0 is int64 in the file, float32 in the model",
        "stranger is unexpected",
    ):
        assert line in str(error.value)
    assert all((before[name] == x).all() for name, x in model.state_dict().items())


def test_the_message_names_both_shapes_and_a_likely_cause():
    model = nn.Sequential(nn.Linear(128, 128, rng=rng()))
    with pytest.raises(ValueError) as error:
        model.load_state_dict({"parts.0.weight": np.ones((64, 64))})
    assert str(error.value) == (
        "load: parts.0.weight is (64, 64) in the file, (128, 128) in the model; "
        "was it saved with another width, another n_heads or another vocabulary?"
    )
    with pytest.raises(ValueError, match="transposed"):
        nn.Linear(2, 3, rng=rng()).load_state_dict({"weight": np.ones((2, 3))})


def test_loading_a_part_of_it_tells_what_is_missing_and_unexpected():
    model, arrays = Model(), {"first.gain": np.full(2, 7.0), "stranger": np.ones(1)}
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    assert missing == NAMES[1:]
    assert unexpected == ["stranger"]
    assert model.first.gain.tolist() == [7, 7]
    with pytest.raises(ValueError, match=r"\(5,\) in the file"):
        model.load_state_dict({"first.gain": np.ones(5)}, strict=False)


def test_a_tied_tensor_is_loaded_under_any_of_its_names():
    arrays = Model().state_dict()
    arrays["tied"] = arrays.pop("layers.0.gain") + 5
    model = Model()
    model.load_state_dict(arrays)
    assert model.layers[0].gain.tolist() == [5, 6]
    arrays["layers.0.gain"] = arrays["tied"]
    model.load_state_dict(arrays)
    arrays["layers.0.gain"] = arrays["tied"] + 1
    with pytest.raises(ValueError, match=r"layers\.0\.gain and tied are one tensor"):
        model.load_state_dict(arrays)


def test_a_tape_from_before_loading_refuses_to_run():
    model = Scale()
    y = (model(np.ones(2)) * model.gain).sum()
    model.load_state_dict(model.state_dict())
    with pytest.raises(GraphError, match="changed by assign_"):
        y.backward()


# --- changing all of it


def test_another_dtype_keeps_the_tensors_their_ties_and_what_is_hidden():
    model = Model()
    model.heads["counts"] = tg.tensor([1, 2])
    before = list(model.parameters())
    (model.tied * model.tied).sum().backward()
    stale = (model.tied * model.tied).sum()
    assert model.to("float64") is model
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert model.tied.dtype == model.tied.grad.dtype == np.float64
    assert model.heads["counts"].dtype == np.int64
    assert model._hidden.gain.dtype == model.first._table.dtype == np.float32
    with pytest.raises(GraphError):
        stale.backward()


def test_nothing_happens_where_nothing_is_to_do():
    model = Model()
    memory = [p.data for p in model.parameters()]
    model.to("float32").to("cpu")
    assert all(p.data is a for p, a in zip(model.parameters(), memory, strict=True))
    assert model.tied.version == [0]


@pytest.mark.parametrize(
    ("target", "error"), [("int64", TypeError), ("float31", TypeError), ("cpu:1", ValueError)]
)
def test_a_target_that_is_none_is_refused(target, error):
    with pytest.raises(error):
        Model().to(target)


# --- layers

SHAPES = [(3,), (2, 3), (2, 5, 3), (0, 3)]


def numbers(shape, dtype="float64"):
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_linear(shape, bias):
    layer = nn.Linear(3, 4, bias, rng=rng(), dtype="float64")
    if bias:
        layer.bias.assign_(np.arange(4.0))
    x = numbers(shape)
    expected = x @ layer.weight.numpy().T + (np.arange(4) if bias else 0)
    np.testing.assert_allclose(layer(tg.tensor(x)).data, expected, rtol=1e-14)
    assert len(list(layer.parameters())) == 1 + bias


def test_embedding():
    layer = nn.Embedding(10, 4, rng=rng())
    ids = np.array([[1, 2], [9, 1]])
    y = layer(ids)
    assert y.shape == (2, 2, 4)
    assert (y.data == layer.weight.data[ids]).all()
    y.sum().backward()
    assert layer.weight.grad.data[:, 0].tolist() == [0, 2, 1, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(shape):
    layer = nn.RMSNorm(3, eps=1e-3, dtype="float64")
    layer.weight.assign_(np.arange(3.0))
    x = numbers(shape)
    expected = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * np.arange(3)
    np.testing.assert_allclose(layer(tg.tensor(x)).data, expected, rtol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(shape, bias):
    layer = nn.LayerNorm(3, eps=1e-3, bias=bias, dtype="float64")
    layer.weight.assign_(np.arange(3.0))
    if bias:
        layer.bias.assign_(np.ones(3))
    x = numbers(shape)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
    expected = normal * np.arange(3) + bias
    np.testing.assert_allclose(layer(tg.tensor(x)).data, expected, rtol=1e-13, atol=1e-15)


def test_convolutions_slide_their_weight_over_the_places():
    one = nn.Conv1d(2, 3, 3, padding=1, rng=rng(), dtype="float64")
    x = numbers((4, 2, 5))
    w, padded = one.weight.numpy(), np.pad(x, ((0, 0), (0, 0), (1, 1)))
    by_hand = np.stack(
        [np.tensordot(padded[:, :, i : i + 3], w, ((1, 2), (1, 2))) for i in range(5)]
    )
    np.testing.assert_allclose(one(tg.tensor(x)).data, by_hand.transpose(1, 2, 0), rtol=1e-12)

    two = nn.Conv2d(2, 6, (1, 3), stride=2, groups=2, rng=rng(), dtype="float64")
    two.bias.assign_(np.arange(6.0))
    y = two(tg.tensor(x.reshape(2, 2, 2, 5)))
    assert y.shape == (2, 6, 1, 2)
    first = x.reshape(2, 2, 2, 5)[:, 0, 0, :3] @ two.weight.numpy()[:3, 0, 0].T + np.arange(3)
    np.testing.assert_allclose(y.data[:, :3, 0, 0], first, rtol=1e-12)


def test_group_norm():
    layer = nn.GroupNorm(2, 4, dtype="float64")
    layer.bias.assign_(np.arange(4.0))
    x = numbers((3, 4, 5))
    y = layer(tg.tensor(x)).data - np.arange(4.0)[:, None]
    groups = y.reshape(3, 2, 10)
    np.testing.assert_allclose(groups.mean(-1), 0, atol=1e-14)
    np.testing.assert_allclose(groups.var(-1), 1, rtol=1e-3)  # eps = 1e-5 beside the variance


def test_dropout_is_evaluation_without_rng_and_keeps_the_mean_with_one():
    layer, x = nn.Dropout(0.25), tg.tensor(np.ones(10_000))
    assert (layer(x).data == 1).all()
    y = layer(x, rng=rng()).data
    assert set(np.unique(y)) == {0, 1 / 0.75}
    assert abs(y.mean() - 1) < 5 * (0.25 / 0.75 / 10_000) ** 0.5  # five standard deviations
    assert (y == layer(x, rng=rng()).data).all()


def test_a_sequence_hands_rng_to_its_modules_and_takes_plain_functions():
    model = nn.Sequential(nn.Linear(3, 4, rng=rng()), tg.relu, nn.Dropout(0.5))
    x = tg.tensor(numbers((8, 3), "float32"))
    plain = model(x)
    assert (plain.data == tg.relu(model.parts[0](x)).data).all()
    assert (model(x, rng=rng()).data != plain.data).any()
    assert [name for name, _ in model.named_parameters()] == ["parts.0.weight"]


# --- initial values


def test_initial_values_depend_on_rng_alone_and_are_the_same_in_every_dtype():
    a, b = nn.Linear(30, 20, rng=rng()), nn.Linear(30, 20, rng=rng(), dtype="float64")
    assert a.weight.requires_grad
    assert a.weight.shape == (20, 30)
    assert (a.weight.data == b.weight.data.astype(np.float32)).all()
    assert abs(b.weight.data).max() <= 30**-0.5
    assert b.weight.data.std() == pytest.approx((3 * 30) ** -0.5, rel=0.1)  # of U(-b, b)


def test_initial_values_can_be_chosen():
    weight = nn.Embedding(100, 50, rng=rng(), init=nn.normal(0.02)).weight.data
    assert weight.std() == pytest.approx(0.02, rel=0.05)  # 5000 numbers: 1 % each way
    assert (nn.Linear(3, 4, rng=None).weight.data == 0).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Linear(3, 4), TypeError, "rng"),
        (lambda: nn.Linear(3, 4, rng=0), TypeError, "rng: got int, expected numpy.random"),
        (lambda: nn.Linear(3, -4, rng=rng()), ValueError, r"\(-4, 3\)"),
        (lambda: nn.Linear(3.0, 4, rng=rng()), ValueError, r"\(4, 3.0\)"),
        (lambda: nn.Linear(3, 4, rng=rng(), dtype="int64"), TypeError, "dtype: got int64"),
        (lambda: nn.Linear(3, 4, rng=rng(), device="tpu"), ValueError, "device: got 'tpu'"),
        (lambda: nn.Dropout(1.5), ValueError, "p: got 1.5"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3), rng=rng()), ValueError, r"size: got \(3, 3, 3\)"),
        (lambda: nn.Conv1d(3, 4, 3, groups=2, rng=rng()), ValueError, "groups: 2 do not divide 3"),
        (lambda: nn.GroupNorm(3, 4), ValueError, "groups: 3 do not divide 4"),
    ],
)
def test_nonsense_is_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()
