"""A run that is killed, whenever that is, goes on to the same bits; a full disk loses nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml import io
from tinygrad_ml.train import read_metrics

CHECKOUT = str(Path(tg.__file__).parent.parent)
TINY = [
    *("--dim", "64", "--layers", "2", "--heads", "2", "--context", "32", "--batch-size", "4"),
    *("--steps", "60", "--warmup", "4", "--eval-every", "10", "--eval-batches", "1"),
    *("--save-every", "1", "--sample-tokens", "1", "--ema", "0.9"),
]  # a checkpoint after every step: about half of all moments are in the middle of one


def start(*arguments, folder, before=""):
    """The command line in a process of its own; before: Python that it runs first."""
    program = f"{before}\nfrom tinygrad_ml import cli\ncli.main()"
    environment = {**os.environ, "PYTHONPATH": CHECKOUT, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. the dog sat on the log. " * 60)
    return tmp_path


def begin(folder, name, **options):
    return start("train", "--data", "text.txt", "--out", name, *TINY, folder=folder, **options)


def everything(run):
    """All bits that matter at a run's end: the model, the last state, the losses."""
    state = run / "state" / (run / "state" / "latest").read_text()
    found = {
        f"{file.stem} {name}": x.copy()
        for file in [run / "model.safetensors", *state.glob("*.safetensors")]
        for name, x in io.load(file).items()
    }
    losses = [(x["step"], x["loss"], x.get("val_loss")) for x in read_metrics(run)]
    return found, (state / "state.json").read_text(), losses


def wait_for(step, run, process):
    """Until the run has a checkpoint of this step, or of a later one."""
    latest = run / "state" / "latest"
    while not latest.exists() or int(latest.read_text().removeprefix("step-")) < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is a signal of posix systems")
def test_killed_again_and_again_a_run_ends_in_the_same_bits(folder):
    assert finish(begin(folder, "whole"))[0] == 0
    process, rng = begin(folder, "killed"), random.Random(0)
    for step in range(0, 48, 8):
        wait_for(step, folder / "killed", process)
        time.sleep(rng.uniform(0, 0.03))  # somewhere in the next steps and checkpoints
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process = start("train", "--out", "killed", "--resume", folder=folder)
    code, errors = finish(process)
    assert code == 0, errors
    (expected, state, losses), (found, *rest) = map(
        everything, (folder / "whole", folder / "killed")
    )
    assert rest == [state, losses]
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)
    assert not list((folder / "killed").rglob(".*.tmp"))  # what was half written is gone


@pytest.mark.skipif(os.name != "posix", reason="resource limits are posix's")
def test_a_full_disk_is_an_error_and_loses_nothing(folder):
    full = (  # no file may grow beyond 700,000 bytes: the optimiser's state would
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))"
    )
    assert finish(begin(folder, "run"))[0] == 0
    before = everything(folder / "run")[0]
    process = start("train", "--out", "other", "--data", "text.txt", *TINY, "--dim", "96",
                    folder=folder, before=full)  # fmt: skip
    code, errors = finish(process)
    assert code == 1
    assert "File too large" in errors
    assert "Traceback" not in errors
    (folder / "run" / "run.toml").write_text(
        (folder / "run" / "run.toml").read_text().replace("steps = 60", "steps = 62")
    )
    tight = full.replace("700_000", "200_000")
    code, errors = finish(start("train", "--out", "run", "--resume", folder=folder, before=tight))
    assert (code, "File too large" in errors) == (1, True), errors
    after = everything(folder / "run")[0]
    assert after.keys() == before.keys()
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], x, err_msg=name)
    assert finish(start("train", "--out", "run", "--resume", folder=folder))[0] == 0
    assert read_metrics(folder / "run")[-1]["step"] == 62


def test_a_checkpoint_cut_short_is_named(folder):
    assert finish(begin(folder, "run"))[0] == 0
    state = folder / "run" / "state" / "step-60"
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        whole = (state / name).read_bytes()
        (state / name).write_bytes(whole[: len(whole) // 2])
        code, errors = finish(start("train", "--out", "run", "--resume", folder=folder))
        assert code == 1
        assert str(Path("state") / "step-60") in errors
        assert "Traceback" not in errors
        (state / name).write_bytes(whole)


def test_a_folder_that_cannot_be_written_is_an_error(folder):
    (folder / "file").write_text("in the way")
    code, errors = finish(begin(folder, "file/run"))
    assert code == 1
    assert "file/run" in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(folder):
    (folder / "locked").mkdir(mode=0o500)
    code, errors = finish(begin(folder, "locked/run"))
    assert code == 1
    assert "Permission denied" in errors
    assert "Traceback" not in errors
