"""States of a run: all that the next step depends on, so that a run can stop and go on.

state/step-N/weights.safetensors  optimizer.safetensors  ema.safetensors  state.json
state/latest                      "step-N", written last: what it names is whole
"""

import json
import shutil
from pathlib import Path

from ..backend import to_host
from ..io import FormatError, load, replacing, save


def save_state(run, step, named, optimizer, ema, more):
    """Write state/step-N, then state/latest; the states before the last two are removed.

    named: {name: Tensor} of what is trained; ema: an EMA or None; more: JSON's values
    """
    folder = Path(run) / "state" / f"step-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "weights.safetensors", {name: to_host(p.data) for name, p in named.items()})
    save(folder / "optimizer.safetensors", optimizer.state_dict())
    if ema is not None:
        save(folder / "ema.safetensors", ema.state_dict())
    _write(folder / "state.json", json.dumps({"step": step, **more}))
    before = latest(run)
    _write(folder.parent / "latest", folder.name)
    for old in folder.parent.glob("step-*"):
        if old.name not in (folder.name, before):
            shutil.rmtree(old)


def load_state(run, named, optimizer, ema):
    """Put them into the run's last whole state; returns its step and the rest, a dict.

    FormatError for a file that is damaged, before anything is changed.
    """
    name = latest(run)
    if name is None:
        raise FileNotFoundError(f"resume: {run} has no state/latest: no checkpoint was written")
    folder = Path(run) / "state" / name
    try:
        state = json.loads((folder / "state.json").read_text())
        weights, moments = (load(folder / f"{x}.safetensors") for x in ("weights", "optimizer"))
        moving = None if ema is None else load(folder / "ema.safetensors")
    except (OSError, json.JSONDecodeError) as error:
        raise FormatError(f"resume: {folder} is damaged: {error}") from error
    _check(folder, named, weights)
    optimizer.load_state_dict(moments)
    for name, p in named.items():
        p.assign_(weights[name])
    if ema is not None:
        ema.load_state_dict(moving)
    return state


def _check(folder, named, weights):
    shapes = {name: p.shape for name, p in named.items()}
    found = {name: x.shape for name, x in weights.items()}
    if shapes != found:
        wrong = sorted(n for n in shapes.keys() | found if shapes.get(n) != found.get(n))
        told = ", ".join(f"{n} is {found.get(n)}, expected {shapes.get(n)}" for n in wrong[:5])
        raise FormatError(f"resume: {folder}/weights.safetensors: {told}")


def latest(run):
    """The name of the last whole state, or None."""
    file = Path(run) / "state" / "latest"
    return file.read_text().strip() if file.is_file() else None


def forget(run):
    """Remove the states of a run that was here before."""
    folder = Path(run) / "state"
    (folder / "latest").unlink(missing_ok=True)  # first: without it none of them counts
    shutil.rmtree(folder, ignore_errors=True)


def _write(path, text):
    with replacing(path) as file:
        file.write(text.encode())
