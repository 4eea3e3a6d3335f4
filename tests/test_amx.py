"""Products of bfloat16 by AMX: half.c's tile code over a stand-in for the instructions, in plain C.

No machine that tests this need have AMX: `amx_standin.c` does what Intel's manual says of each
instruction, refuses what the CPU refuses, and half.c is compiled to call it, at the level in use.
"""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygrad_ml.kernels import native
from tinygrad_ml.kernels.product import LANES, PLAIN, TILES, half_product, product, steps

import tinygrad_ml as tg
from tinygrad_ml import kernels

pytestmark = pytest.mark.skipif(kernels.level() == "off", reason="no C kernels were built, or off")

SOURCES = Path(kernels.__file__).parent
BFLOAT16 = ml_dtypes.bfloat16
WIDTH = {  # as in setup.py: how wide the vectors are that pack for the tiles
    "base": [],
    "v3": ["-mavx2", "-mfma"],
    "v4": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"],
}
SANITIZE = os.environ.get("TINYGRAD_ML_SANITIZE")
CHECKED = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-g1", "-O1"] if SANITIZE else []


@pytest.fixture(scope="session")
def standin(tmp_path_factory):
    """A library of half_product_float over the stand-in, and of the stand-in's instructions."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("amx") / "standin.so"
    sources = [Path(__file__).parent / "amx_standin.c", SOURCES / "pool.c"]
    options = ["-O2", "-std=gnu11", "-fopenmp-simd", "-fvisibility=hidden", "-Wno-psabi",
               *WIDTH[kernels.level()], *CHECKED, f"-I{SOURCES}", "-Dreal=float",
               "-DREAL_IS_FLOAT=1", "-shared", "-fPIC", "-pthread"]  # fmt: skip
    command = [compiler[0], *options, *map(str, sources), "-lm", "-o", str(path)]
    subprocess.run(command, check=True)
    found = ctypes.CDLL(str(path))
    found.fault.restype = ctypes.c_char_p
    found.counted.restype = ctypes.c_long
    found.tile_load.argtypes = found.tile_store.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_int64]  # fmt: skip
    return found


@pytest.fixture
def trapped(standin):
    """The library may run AMX's instructions: where they stop the CPU the stand-in does them."""
    if kernels.level() != "v4" or not sys.platform.startswith("linux"):
        pytest.skip("AMX is for level v4, and asked for on Linux")
    native.tiles_allowed()  # where there is AMX it runs
    standin.trap(1)
    yield
    standin.trap(0)
    assert_clean(standin)


THREADS, LOADS, PRODUCTS, SHAPES = range(4)  # what the stand-in has counted


@pytest.fixture
def tiles(standin, monkeypatch):
    """Python's half of the kernels as it is where there is AMX, over the stand-in."""
    known = native._function

    def function(name, dtype, kinds):
        if name != "half_product":
            return known(name, dtype, kinds)
        found = standin.half_product_float
        found.argtypes = [ctypes.c_int64 if k is int else ctypes.c_void_p for k in kinds]
        found.restype = None
        return found

    monkeypatch.setattr(native, "_function", function)
    monkeypatch.setattr(native, "tiles_allowed", lambda: True)
    kernels.amx.cache_clear()
    standin.counted(PRODUCTS)
    yield standin
    kernels.amx.cache_clear()
    assert_clean(standin)


def assert_clean(standin):
    """Nothing was done that the CPU refuses, and no thread kept tiles."""
    assert standin.fault() is None
    assert standin.counted(THREADS) == 0


def by_tiles(standin, a, b, c, add=False):
    standin.half_product_float(
        ctypes.c_void_p(a.ctypes.data), *map(ctypes.c_int64, steps(a)),
        ctypes.c_void_p(b.ctypes.data), *map(ctypes.c_int64, steps(b)),
        ctypes.c_void_p(c.ctypes.data), *map(ctypes.c_int64, (
            c.strides[0] // 4, *c.shape, a.shape[1], add, TILES)))  # fmt: skip
    assert_clean(standin)
    return c


def halves(shape, layout="C", seed=0):
    """Normal numbers with NaNs all around: in rows (C), in columns (F), or apart (S): every other
    row, every third column, backwards.
    """
    (m, n), rng = shape, np.random.default_rng(seed)
    order = "F" if layout == "F" else "C"
    room = np.full((2 * m + 2, 3 * n + 2), np.nan, BFLOAT16, order=order)
    x = room[1:, 1:-1][:: 2 if layout == "S" else 1, :: -3 if layout == "S" else 1][:m, :n]
    x[...] = rng.standard_normal(shape, np.float32)
    return x


def exact(a, b):
    """The product, and what rounding is relative to."""
    a, b = a.astype(float), b.astype(float)
    return a @ b, abs(a) @ abs(b)


LAYOUTS = [a + b for a in "CFS" for b in "CFS"]
SIZES = st.integers(1, 70) | st.sampled_from([15, 16, 17, 31, 32, 33, 63, 64, 65])  # edges of tiles


@pytest.mark.parametrize("layouts", LAYOUTS)
@given(st.lists(SIZES, min_size=3, max_size=3), st.booleans())
def test_products_by_tiles(standin, layouts, sizes, add):
    """Ragged in every direction; nothing is read beside the operands, or written beside C."""
    m, n, k = sizes
    a, b = halves((m, k), layouts[0]), halves((k, n), layouts[1], 1)
    room = np.ones((m + 1, n + 3), np.float32)
    by_tiles(standin, a, b, room[:m, :n], add)
    expected, size = exact(a, b)
    assert (abs(room[:m, :n] - add - expected) <= 1e-6 * size + 1e-6).all()  # 8 ulp of float32
    assert (room[m:] == 1).all() and (room[:, n:] == 1).all()


@pytest.mark.parametrize("layouts", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (47, 31, 32), (33, 800, 545), (300, 45, 64)], ids=str)
def test_products_larger_than_a_block_have_the_same_bits_with_any_number_of_threads(
    standin, layouts, shape
):
    """k and n beyond the blocks of 512 and 768, more rows than a piece has; the operands fill what
    is allocated, so that a sanitizer sees a read beyond.
    """
    m, n, k = shape
    a, b = (
        halves(s, layout).copy("K") for s, layout in zip(((m, k), (k, n)), layouts, strict=True)
    )
    found = []
    try:
        for threads in (1, 2, 3):
            standin.set_threads(threads)
            found.append(by_tiles(standin, a, b, np.empty((m, n), np.float32)))
    finally:
        standin.set_threads(1)
    expected, size = exact(a, b)
    assert (abs(found[0] - expected) <= 1e-6 * size + 1e-6).all()
    assert {c.tobytes() for c in found} == {found[0].tobytes()}


def test_infinities_and_nans_spread_over_their_row_or_column_alone(standin):
    """Also to k's last, odd entry, which has a zero beside it that must not meet an infinity."""
    a, b = halves((35, 37)), halves((37, 40), "F", 1)
    a[3, 36], a[34, 0], b[36, 20] = np.inf, np.nan, -np.inf
    found = by_tiles(standin, a, b, np.empty((35, 40), np.float32))
    with np.errstate(invalid="ignore"):
        expected = a.astype(np.float32) @ b.astype(np.float32)
    finite = np.isfinite(expected)
    assert (np.isfinite(found) == finite).all() and (~finite).sum() == 2 * 40 + 35 - 2
    np.testing.assert_array_equal(found[~finite], expected[~finite])


def test_subnormals_count_as_zeros(standin):
    """Of A and B, of a result, and of a C that is added to; half of the smallest normal is one."""
    tiny, one = 2.0**-126, np.ones((1, 1), BFLOAT16)
    for a, b, c, expected in [
        (tiny / 2, 1, 0, 0),
        (1, -tiny / 2, 0, 0),
        (tiny, 0.5, 0, 0),
        (tiny, 1, 0, tiny),
        (tiny, 1, -tiny / 2, tiny),
    ]:
        out = np.full((1, 1), c, np.float32)
        by_tiles(standin, (one * a).astype(BFLOAT16), (one * b).astype(BFLOAT16), out, True)
        assert out[0, 0] == expected


def test_a_load_serves_two_products(standin):
    """Which is what four sums at once are for; and tiles are configured once for a piece."""
    a, b, out = halves((128, 96)), halves((96, 64)), np.empty((128, 64), np.float32)
    for what in (LOADS, PRODUCTS, SHAPES):
        standin.counted(what)
    by_tiles(standin, a, b, out)
    assert standin.counted(PRODUCTS) == 8 * 4 * 3  # of 16 by 16, 32 deep
    assert standin.counted(LOADS) == 8 * 4 * 3
    assert standin.counted(SHAPES) == 4  # pieces, of 32 rows


# ----------------------------------------------------------------------------------- in Python


def test_layers_of_bfloat16_go_by_tiles(tiles):
    x, w, v, g = (halves(s, seed=i) for i, s in enumerate([(70, 50), (33, 50), (18, 50), (70, 33)]))
    x, w, v = (tg.tensor(t, requires_grad=True) for t in (x, w, v))
    y, _ = tg.functional.linear_maps(x, w, v)
    y.backward(g)
    assert tiles.counted(PRODUCTS) > 0
    for found, (p, q) in {y: (x, w.T), x.grad: (g, w), w.grad: (g.T, x)}.items():
        p, q = (t.numpy() if isinstance(t, tg.Tensor) else t for t in (p, q))
        expected, size = exact(p, q)
        found = found.numpy().astype(float)
        assert (abs(found - expected) <= 2.0**-8 * abs(expected) + 1e-6 * size).all()  # narrowed


@pytest.mark.skipif(kernels.level() == "base", reason="numpy's products are the faster ones there")
def test_float32_in_parts_goes_by_tiles(tiles):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((70, 80), np.float32), rng.standard_normal((80, 60), np.float32)
    with tg.matmul_precision("high"):
        found = product(a, b)
    assert tiles.counted(PRODUCTS) > 0
    expected, size = exact(a, b)
    assert (abs(found - expected) <= 2.0**-15 * size).all()  # what a2 b2 and the parts leave out


def test_amx_is_used_after_a_trial(tiles):
    assert kernels.amx() and tiles.counted(PRODUCTS) > 0


@pytest.mark.parametrize("wrong", [1.001, np.nan])
def test_amx_that_multiplies_wrongly_is_not_used(tiles, monkeypatch, wrong):
    def broken(a, b, out, add, by):
        half_product(a, b, out, add, by)[3, 4] *= wrong if by == TILES else 1
        return out

    monkeypatch.setattr(kernels.product, "half_product", broken)
    with pytest.warns(UserWarning, match="AMX multiplies bfloat16 matrices wrongly"):
        assert not kernels.amx()


def test_a_ceiling_excludes_amx():
    code = """if True:
        from tinygrad_ml import kernels
        from tinygrad_ml.kernels import native
        if (library := native.library()) is not None:
            library.tiles_allowed = lambda: 1
        print(kernels.amx())"""
    env = {**os.environ, "TINYGRAD_ML_KERNELS": "v4"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_amx_is_not_used_where_the_cpu_has_none():
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "amx_bf16" in flags.read_text():
        pytest.skip("this CPU has AMX, or says nothing")
    assert not kernels.amx()


# ------------------------------------------------------------------------------- instructions


def test_the_library_has_the_instructions_that_it_means():
    """Written by their bytes, read back by name: each with its tiles, its address and stride."""
    built = list(SOURCES.glob("_cpu_v4*.so"))
    if not built or shutil.which("objdump") is None:
        pytest.skip("no library of level v4, or no objdump")
    code = subprocess.run(
        ["objdump", "-d", built[0]], capture_output=True, text=True, check=True
    ).stdout
    found = set(re.findall(r"\t(\w*tile\w+|tdp\w+)\b *(.*)", code))
    if not found:
        pytest.skip("an objdump without AMX")
    places = range(8)
    assert found == {
        ("ldtilecfg", "(%rax)"),
        ("tilerelease", ""),
        *{("tileloadd", f"(%rax,%rcx,1),%tmm{t}") for t in places},
        *{("tilestored", f"%tmm{t},(%rax,%rcx,1)") for t in places[:4]},
        *{("tilezero", f"%tmm{t}") for t in places[:4]},
        *{("tdpbf16ps", f"%tmm{6 + t % 2},%tmm{4 + t // 2},%tmm{t}") for t in places[:4]},
    }


@pytest.mark.parametrize("layouts", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (45, 51, 77), (70, 90, 40), (33, 800, 545)], ids=str)
def test_the_library_gives_the_bits_of_the_stand_in(trapped, standin, shape, layouts):
    """Its instructions are read from their bytes."""
    m, n, k = shape
    a, b = halves((m, k), layouts[0]), halves((k, n), layouts[1], 1)
    for add in (False, True):
        expected, found = np.ones((2, m, n), np.float32)
        standin.counted(PRODUCTS)
        by_tiles(standin, a, b, expected, add)
        calls = standin.counted(PRODUCTS)
        half_product(a, b, found, add, TILES)
        if native.tiles_allowed():  # a CPU has the last word on how it rounds
            assert (abs(found - expected) <= 1e-6 * exact(a, b)[1] + 1e-6).all()
        else:
            assert standin.counted(PRODUCTS) == calls > 0
            assert found.tobytes() == expected.tobytes()


def configuration(shapes, palette=1):
    """The 64 bytes that LDTILECFG reads, of {tile: (rows, bytes of a row)}."""
    at = np.zeros(64, np.uint8)
    at[0] = palette
    for tile, (rows, width) in shapes.items():
        at[16 + 2 * tile : 18 + 2 * tile] = np.array([width], "<u2").view(np.uint8)
        at[48 + tile] = rows
    return at


def configured(standin, *args):
    standin.tiles_configure(ctypes.c_void_p(configuration(*args).ctypes.data))
    return standin


def test_the_stand_in_multiplies_as_the_manual_says(standin):
    """TDPBF16PS: the even and the odd of pairs summed apart, rounded at each step; both; then C."""
    m, k, n, rng = 5, 7, 9, np.random.default_rng(0)
    pairs = rng.integers(-255, 256, (2, 16, 32)) * 2.0 ** rng.integers(-9, 9, (2, 16, 32))
    a, b = pairs.astype(BFLOAT16)
    before = rng.standard_normal((16, 16), np.float32)
    sums = np.zeros((m, n, 2), np.float32)
    for i in range(k):  # float64 holds such a sum of 24 and 16 bits: rounded once
        left, right = a[:m, None, 2 * i : 2 * i + 2], b[i, : 2 * n].reshape(n, 2)
        sums = (sums + left.astype(float) * right.astype(float)).astype(np.float32)
    expected = before[:m, :n] + (sums[..., 0] + sums[..., 1])
    configured(standin, {2: (m, 4 * n), 5: (m, 4 * k), 3: (k, 4 * n)})
    for tile, array in {2: before, 5: a, 3: b}.items():
        standin.tile_load(tile, array.ctypes.data, 64)
    standin.tile_multiply(2, 5, 3)
    found = before.copy()
    standin.tile_store(2, found.ctypes.data, 64)
    standin.tiles_release()
    assert found[:m, :n].tobytes() == expected.tobytes()
    assert (found[m:] == before[m:]).all() and (found[:, n:] == before[:, n:]).all()
    assert_clean(standin)


REFUSED = {
    "more than 16 rows": ({0: (17, 64)},),
    "more than 64 bytes": ({0: (16, 68)},),
    "rows without bytes": ({0: (16, 0)},),
    "bytes without rows": ({0: (0, 64)},),
    "no such palette": ({0: (1, 4)}, 2),
    "above the seventh": ({8: (1, 4)},),
}


@pytest.mark.parametrize("message", REFUSED)
def test_shapes_that_the_stand_in_refuses(standin, message):
    configured(standin, *REFUSED[message])
    assert message in standin.fault().decode()
    standin.tile_zero(0)
    assert "no tiles are configured" in standin.fault().decode()


MISMATCHED = {
    "rows of C and A": {0: (5, 64), 1: (6, 64), 2: (16, 64)},
    "columns of C and B": {0: (5, 60), 1: (5, 64), 2: (16, 64)},
    "columns of A and rows of B": {0: (5, 64), 1: (5, 64), 2: (15, 64)},
    "without a shape": {0: (5, 64), 1: (5, 64)},
    "whole number of words": {0: (5, 64), 1: (5, 63), 2: (16, 64)},
    "no tiles are configured": {},
}


@pytest.mark.parametrize("message", MISMATCHED)
def test_products_that_the_stand_in_refuses(standin, message):
    configured(standin, MISMATCHED[message], 1 if MISMATCHED[message] else 0)
    standin.tile_multiply(0, 1, 2)
    assert message in standin.fault().decode()
    standin.tile_multiply(0, 1, 1)
    assert "one tile twice" in standin.fault().decode()
    standin.tiles_release()


@pytest.mark.parametrize("by", [PLAIN, LANES], ids=["plain", "avx512_bf16"])
def test_the_ways_differ_by_rounding(standin, by):
    a, b = halves((45, 77)), halves((77, 51), "F", 1)
    found = by_tiles(standin, a, b, np.empty((45, 51), np.float32))
    other = half_product(a, b, np.empty((45, 51), np.float32), False, by)
    assert (abs(found - other) <= 1e-6 * exact(a, b)[1]).all()
