"""The CUDA kernels through NVIDIA's compilers, and the stand-in beside the real cupy."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
from cuda_sim import resources, signatures

from tinygrad_ml import kernels

TABLE = json.loads(resources.FILE.read_text())
STEMS = sorted(resources.expressions())
needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="needs nvcc, of CUDA's toolkit"
)
needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None,
    reason="needs cupy (no driver): pip install cupy-cuda13x",
)
ENTRY = r"__global__ void\s+(?:__launch_bounds__\(\d+\)\s+)?(\w+)\("
REGENERATE = "the kernels have changed: python tests/cuda_sim/resources.py, where nvcc is"


def test_the_table_is_that_of_these_sources():
    assert TABLE["sources"] == resources.digest(), REGENERATE


def test_every_kernel_is_in_the_table():
    written = {
        name
        for path in kernels.cuda.FOLDER.glob("*.cu")
        for name in re.findall(
            r"__global__ void\s+(?:__launch_bounds__\(\d+\)\s+)?(\w+)\(", path.read_text()
        )
    }
    for architecture, rows in TABLE["kernels"].items():
        assert {name.partition("<")[0] for name in rows} == written, architecture
        assert len(rows) == sum(map(len, resources.expressions().values()))


def test_no_kernel_spills_much_or_asks_for_what_no_block_has():
    for rows in TABLE["kernels"].values():
        for name, (registers, spilled, shared) in rows.items():
            assert registers <= 255 and spilled <= 64 and shared <= 48 * 1024, name


@needs_nvcc
@pytest.mark.thorough
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
@pytest.mark.parametrize("stem", STEMS)
def test_nvcc_finds_the_registers_of_the_table(stem, architecture):
    found = resources.by_nvcc(stem, resources.expressions()[stem], architecture)
    kept = TABLE["kernels"][architecture]
    assert found == {name: kept[name] for name in found}, REGENERATE


@needs_nvcc
def test_nvcc_compiles_a_kernel():
    """One of them; all with the thorough profile."""
    found = resources.by_nvcc("rope", resources.expressions()["rope"], "sm_80")
    assert {name.replace(" ", "") for name in found} == set(resources.expressions()["rope"])


@needs_cupy
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("stem", STEMS)
def test_nvrtc_compiles_every_kernel(stem, architecture):
    """As cupy does on a GPU: the backend's options, and CUDA's headers from a wheel."""
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs nvidia-cuda-nvrtc")
    folders = importlib.util.find_spec("nvidia").submodule_search_locations
    include = next(p.parent for f in folders for p in Path(f).glob("*/include/cuda_fp16.h"))
    names = resources.expressions()[stem]
    assert resources.by_nvrtc(stem, names, architecture, kernels.cuda.OPTIONS, include) > 0


@needs_cupy
def test_the_stand_in_has_the_names_and_parameters_of_cupy():
    try:
        found = signatures.signatures()
    except ImportError as error:
        pytest.skip(f"needs nvidia-cublas: {error}")
    assert json.loads(signatures.FILE.read_text()) == found
