"""The engine's own tests with every array on the device "cuda", which is a stand-in (simulated)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = [
    *("tensor", "functional", "nn", "autograd", "transforms", "linalg", "optim", "gradients"),
    *("io", "quantized", "llama", "som", "logistic"),
    *("train", "finetune", "formats", "peft", "precision", "evaluate"),
]


def run(files, **environment):
    """The tests that passed, and pytest's last lines."""
    paths = [str(TESTS / f"test_{name}.py") for name in files]
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-rs", "-p", "no:cacheprovider", *paths]
    given = {"TINYGRAD_ML_TEST_DEVICE": "cuda", "TINYGRAD_ML_PROFILE": "quick", **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | given)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1]), done.stdout


def test_a_sample_of_the_suite():
    """Every 60th test (quick: every 150th); with the thorough profile, all of them."""
    every = 150 if os.environ.get("TINYGRAD_ML_PROFILE") == "quick" else 60
    passed, _ = run(FILES, TINYGRAD_ML_TEST_SAMPLE=str(every))
    assert passed > 10


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("files", [FILES[:8], FILES[8:13], FILES[13:]])
def test_the_whole_suite(files):
    passed, said = run(files)
    print(said)  # with what is left out, and why
    assert passed > 200


@pytest.mark.thorough
@pytest.mark.timeout(3600)
def test_the_models_with_the_kernels_on_the_simulator():
    run(["nn", "llama"], TINYGRAD_ML_TEST_SAMPLE="4", TINYGRAD_ML_TEST_SIMULATE="1")
