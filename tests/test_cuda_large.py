"""The CUDA kernels at large and odd shapes, on a GPU; rehearsed at small ones on the simulator.

Against the definition in float64 on the same device, and against torch's, by way of DLPack, where
torch sees the GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import cuda_sim
import ml_dtypes
import numpy as np
import pytest
from test_cuda_kernels import TOLERANCE, numbers

import tinygrad_ml as tg
from tinygrad_ml import functional as F

TESTS = Path(__file__).parent
LARGE = {"rows": 4099, "d": 4093, "t": 1031, "k": 120, "v": 32003}
SMALL = {"rows": 5, "d": 37, "t": 19, "k": 24, "v": 33}


def causal(q, k, v):
    return F.attention(q, k, v, causal=True)


def loss(x, w):
    ids = np.arange(len(x)) * 31 % len(w)
    return F.linear_cross_entropy(x, w, tg.tensor(ids, device=x.device))


def cases(rows, d, t, k, v):
    return {
        "rms_norm": (F.rms_norm, (rows, d), (d,)),
        "add_rms_norm": (lambda *xs: F.add_rms_norm(*xs)[1], (rows, d), (rows, d), (d,)),
        "swiglu": (F.swiglu, (rows, d), (rows, d)),
        "rope": (F.rope, (2, 3, t, k), (t, k // 2), (t, k // 2)),
        "attention": (causal, (2, 6, t, k), (2, 3, t, k), (2, 3, t, k)),
        "linear_cross_entropy": (loss, (rows // 4, d), (v, d)),
    }


THEIRS = {
    "rms_norm": lambda T, x, w: T.rms_norm(x, w.shape, w, 1e-5),
    "swiglu": lambda T, a, b: T.silu(a) * b,
    "attention": lambda T, q, k, v: T.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    ),
}


def evaluated(f, arrays):
    """Value and gradients for a cotangent that is the same everywhere, as float64 on the host."""
    xs = [tg.tensor(a, device="cuda", requires_grad=True) for a in arrays]
    y = f(*xs)
    g = tg.tensor(np.cos(np.arange(y.size)).reshape(y.shape), dtype=y.dtype, device="cuda")
    return [a.numpy().astype("f8") for a in (y, *tg.grad(y, xs, cotangent=g))], xs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", cases(**SMALL))
def test_large_and_odd_shapes(cuda, request, case, dtype):
    simulated = "simulated" in request.node.callspec.id
    if simulated and dtype != "bfloat16":
        pytest.skip("the simulator's time is for one dtype: test_cuda_kernels.py has them all")
    f, *shapes = cases(**(SMALL if simulated else LARGE))[case]
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    arrays = [(numbers(*s, seed=i) * 0.5).astype(kind) for i, s in enumerate(shapes)]
    found, xs = evaluated(f, arrays)
    with tg.use_kernels(False):
        wanted, _ = evaluated(f, [a.astype("f8") for a in arrays])
    terms = max(max(s) for s in shapes)  # sums of n terms lose some sqrt(n) roundings of float32
    bound = max(TOLERANCE[dtype] * 3, 1.2e-7 * terms**0.5 * 4)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * np.abs(b).max())
    torch = None if simulated else pytest.importorskip("torch", reason="torch is not here")
    if torch is not None and torch.cuda.is_available() and case in THEIRS:
        theirs = THEIRS[case](torch.nn.functional, *(torch.from_dlpack(x.detach()) for x in xs))
        np.testing.assert_allclose(
            theirs.detach().double().cpu().numpy(), wanted[0], rtol=0,
            atol=2 * bound * np.abs(wanted[0]).max(),
        )  # fmt: skip


def test_a_session_on_a_gpu_is_rehearsed(tmp_path):
    """Every part runs, one after the other, and leaves its results: simulated, nothing is timed."""
    if os.environ.get("TINYGRAD_ML_PROFILE") == "quick":
        pytest.skip("half a minute, which the quick profile does not have")
    if cuda_sim.available() is not None:
        pytest.skip(cuda_sim.available())
    command = [str(TESTS / "gpu_session.sh"), "--rehearse", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    rows = {}
    for path in tmp_path.glob("*.json"):
        rows |= json.loads(path.read_text())["rows"]
    assert {"attention, both ways", "a step of 1B, captured", "an epoch of a map"} <= rows.keys()
    assert rows["a graph's launches equal the steps"] == {"equal": True}
    table = (tmp_path / "table.md").read_text()
    assert table.count("simulated") >= 18 and "compute-sanitizer is not here" in table


def test_a_part_that_fails_leaves_the_others(monkeypatch):
    sys.path.insert(0, str(TESTS / "benchmarks"))
    import gpu

    monkeypatch.setattr(gpu, "limits", lambda s: {"bytes": 1.0, "flops": 1.0, "flops32": 1.0})
    monkeypatch.setattr(gpu, "about", lambda stand_in: {})
    parts = {"one": lambda s, r: iter([gpu.guarded("a", lambda: 1 / 0)]),
             "two": lambda s, r: iter([gpu.guarded("b", lambda: {"ms": 1.0})])}  # fmt: skip
    monkeypatch.setattr(gpu, "PARTS", parts)
    rows = gpu.measured(["one", "two"], None, True)["rows"]
    assert "ZeroDivisionError" in rows["a"]["failed"] and rows["b"] == {"ms": 1.0}


def test_the_least_times_of_the_readme_are_those_of_the_benchmark():
    sys.path.insert(0, str(TESTS / "benchmarks"))
    import gpu

    readme = (TESTS.parent / "kernels" / "README.md").read_text()
    assert "\n".join(gpu.expected(gpu.SIZES["full"])) in readme
