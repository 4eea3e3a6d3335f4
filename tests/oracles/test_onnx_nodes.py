"""ONNX's test cases of single operators: the values that the standard prescribes, and ours."""

import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest

import tinygrad_ml as tg

onnx = pytest.importorskip("onnx")

from onnx import helper, numpy_helper  # noqa: E402
from onnx.backend.test.case.node import collect_testcases  # noqa: E402
from onnx_operators import OURS  # noqa: E402
from unsupported import Unsupported, call  # noqa: E402


def cases():
    """The cases of each operator that we have; those "expanded" are the same ones once more."""
    found = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in collect_testcases(None):
            nodes = case.model.graph.node
            if len(nodes) == 1 and nodes[0].op_type in OURS and not case.name.endswith("_expanded"):
                found[nodes[0].op_type].append(case)
    return found


CASES = cases()


def as_array(x):
    return numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x)


def argument(x):
    """Floats as Tensors, anything else as an array."""
    if x is None:
        return None
    array = as_array(x)
    if array.dtype.name not in NAMES:
        raise Unsupported(f"the dtype {array.dtype}")
    return tg.tensor(array) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array


NAMES = {"bool", "bfloat16", "float16", "float32", "float64",
         *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))}  # fmt: skip


def run(case, inputs):
    """Our outputs for one set of a case's inputs."""
    (node,) = case.model.graph.node
    given = iter(inputs)
    args = [argument(next(given)) if name else None for name in node.input]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Split" and len(args) == 1:
        attributes.setdefault("num_outputs", len(node.output))
    y = call(OURS[node.op_type], args, attributes)
    outputs = y if isinstance(y, tuple | list) else [y]
    return [y for y, name in zip(outputs, node.output, strict=False) if name]


# The references add up float32 numbers in another order; halves differ by a rounding or two.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}

FOUR_DIGITS = {"test_averagepool_2d_ceil_last_window_starts_on_pad"}  # of the expected values


def compare(case, inputs, outputs):
    ours = run(case, inputs)
    for y, expected in zip(ours, outputs, strict=False):
        if y is None:
            continue
        y, expected = np.asarray(getattr(y, "data", y)), as_array(expected)
        assert y.shape == expected.shape, f"shape {y.shape}, expected {expected.shape}"
        assert y.dtype == expected.dtype, f"dtype {y.dtype}, expected {expected.dtype}"
        bound = TOLERANCE.get(expected.dtype.name)
        bound = 1e-3 if case.name in FOUR_DIGITS else bound
        if bound is None:
            np.testing.assert_array_equal(y, expected)
            continue
        y, expected = y.astype(np.float64), expected.astype(np.float64)
        size = np.abs(expected[np.isfinite(expected)]).max(initial=0)
        np.testing.assert_allclose(y, expected, rtol=bound, atol=bound * size)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("operator", sorted(CASES))
def test_operator(operator, record_property):
    counts, failures = Counter(), []
    for case in CASES[operator]:
        try:
            with np.errstate(all="ignore"):
                for inputs, outputs in case.data_sets:
                    compare(case, inputs, outputs)
            counts["compared"] += 1
        except Unsupported as reason:
            counts[f"unsupported: {reason} ({operator})"] += 1
        except Exception as error:
            counts["failed"] += 1
            failures.append(f"{case.name}: {type(error).__name__}: {error}")
    record_property("oracle", ["ONNX", dict(counts)])
    assert not failures, "\n\n".join(failures)
