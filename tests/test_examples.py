"""Every example runs, as its reader would run it, and is short enough to be read."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
DRAWS = importlib.util.find_spec("matplotlib") is not None


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_prints_what_was_learned(example, tmp_path):
    lines = example.read_text().splitlines()
    assert len(lines) <= 100
    takes_folder = any("[folder" in line for line in lines[:8])
    arguments = [str(tmp_path / "pictures")] if takes_folder and DRAWS else []
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(example), *arguments],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3
    if arguments:
        assert all(p.stat().st_size > 5000 for p in (tmp_path / "pictures").iterdir())
