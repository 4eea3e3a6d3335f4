"""States of a run: all that the next step depends on, so that a run can stop and go on.

state/step-N/model.safetensors  optimizer.safetensors  state.json
state/latest                    "step-N", written last: what it names is whole
"""

import json
import shutil
from pathlib import Path

from ..io import FormatError, load, replacing, save


def save_state(run, step, model, optimizer, rng):
    """Write state/step-N, then state/latest; the states before the last two are removed."""
    folder = Path(run) / "state" / f"step-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "model.safetensors", model.state_dict(copy=False))
    save(folder / "optimizer.safetensors", optimizer.state_dict())
    _write(folder / "state.json", json.dumps({"step": step, "rng": rng.bit_generator.state}))
    before = latest(run)
    _write(folder.parent / "latest", folder.name)
    for old in folder.parent.glob("step-*"):
        if old.name not in (folder.name, before):
            shutil.rmtree(old)


def load_state(run, model, optimizer, rng):
    """Put the three into the run's last whole state; returns the number of steps it has made."""
    name = latest(run)
    if name is None:
        raise FileNotFoundError(f"resume: {run} has no state/latest: no checkpoint was written")
    folder = Path(run) / "state" / name
    try:
        state = json.loads((folder / "state.json").read_text())
        arrays, moments = (load(folder / f"{x}.safetensors") for x in ("model", "optimizer"))
    except (OSError, json.JSONDecodeError) as error:
        raise FormatError(f"resume: {folder} is damaged: {error}") from error
    model.load_state_dict(arrays)
    optimizer.load_state_dict(moments)
    rng.bit_generator.state = state["rng"]
    return state["step"]


def latest(run):
    """The name of the last whole state, or None."""
    file = Path(run) / "state" / "latest"
    return file.read_text().strip() if file.is_file() else None


def _write(path, text):
    with replacing(path) as file:
        file.write(text.encode())
