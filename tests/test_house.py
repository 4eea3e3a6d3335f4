"""The house rules: imports go down only, cupy has one door, importing leaves no trace."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinygrad_ml as tg

PACKAGE = Path(tg.__file__).parent
CHECKOUT = Path(__file__).parent.parent

FLOORS = [
    {"backend", "dtypes", "kernels"},
    {"autograd"},
    {"ops", "linalg", "fused", "quant"},
    {"arrays", "functional", "tensor", "creation", "transforms", "graph"},
    {"nn", "optim", "io", "quantized"},
    {"estimators", "llama"},
    {"peft", "train", "testing"},
    {"cli", "__main__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imports(path):
    """Dotted names of everything a source imports, at its top or within a function."""
    package = ("tinygrad_ml", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room(dotted):
    """'ops' for tinygrad_ml.ops.add; None for what is not ours."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "tinygrad_ml" and len(parts) > 1 else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in FLOOR, f"{own} has no floor yet: add it to FLOORS"
    above = [name for name in imports(path) if FLOOR.get(room(name), 0) > FLOOR[own]]
    assert above == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_backend_imports_cupy(path):
    found = {name.partition(".")[0] for name in imports(path)} & {"cupy", "cupyx", "cupy_backends"}
    assert not found or path.name == "backend.py"


def test_ops_does_not_import_numpy():
    assert not [n for n in imports(PACKAGE / "ops.py") if n.partition(".")[0] == "numpy"]


def run_python(code, **environment):
    """What a fresh interpreter prints."""
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_heavy_library():
    loaded = run_python("import tinygrad_ml, sys; print(*sys.modules)").split()
    heavy = {"cupy", "matplotlib", "torch", "scipy", "sklearn", "transformers", "tokenizers"}
    assert not heavy & set(loaded)


def test_import_leaves_the_environment_as_it_was():
    code = (
        "import os; before = dict(os.environ); import tinygrad_ml as tg; "
        "tg.rms_norm(tg.tensor([1.0]), tg.tensor([1.0])); print(before == dict(os.environ))"
    )
    assert run_python(code) == "True\n"


CONTRACT = """
    tensor Tensor no_grad grad value_and_grad vjp jvp jacobian hessian hvp checkpoint
    op fused accelerated use_kernels kernels_used set_num_threads detect_anomaly from_dlpack
    GraphError DeviceError FormatError ops functional linalg nn optim io
"""


@pytest.mark.parametrize("name", CONTRACT.split())
def test_top_level_name(name):
    assert hasattr(tg, name)


TOP = """
    tinygrad_ml kernels tests examples docs setup.py README.md pyproject.toml .ci LICENSE
    CONTRIBUTING.md CHANGELOG.md .gitignore
"""


def tracked_files():
    if shutil.which("git") is None or not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


def test_top_level_of_the_checkout():
    assert {name.partition("/")[0] for name in tracked_files()} <= set(TOP.split())


def test_ci_runs_the_commands_of_the_readme():
    script = (CHECKOUT / ".ci" / "run").read_text()
    commands = re.findall(r"^ {4}(pip install -e .*)$", (CHECKOUT / "README.md").read_text(), re.M)
    assert len(commands) == 2
    for command in commands:
        assert all(part in script for part in command.split(" && "))
