"""Adapters in files: adapter_config.json and adapter_model.safetensors in a folder.

Hugging Face's peft reads what is saved here, and what it has saved is read, of every method that
it has; forms.py says how the two call things.
"""

import json
from pathlib import Path

import numpy as np

from .. import backend, io
from ..io import FormatError, replacing
from . import forms
from .adapted import Adapted, attach

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def save(adapted, folder, name="default"):
    """Write one adapter; each file whole or not at all.

    A prefix or prompt that a network computes is saved as what it computes.
    """
    adapted._check_name(name)
    described = forms.described(adapted.configs[name], adapted)
    arrays = {
        key: backend.to_host(x.data).reshape(shape)
        for key, (x, shape) in forms.tensors(adapted, name).items()
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    io.save(folder / WEIGHTS, arrays)
    with replacing(folder / CONFIG) as file:
        file.write(json.dumps(described, indent=2).encode())


def load(model, folder, name="default"):
    """The model with the adapter in this folder attached, in training, the base frozen.

    model: a Llama, or an adapted one. FormatError for files that are damaged or of another method;
    ValueError, before anything is changed, lists every missing, unexpected and misshapen tensor.
    """
    folder = Path(folder)
    config = forms.read(_described(folder / CONFIG), folder / CONFIG)
    arrays = io.load(folder / WEIGHTS)
    fresh = not isinstance(model, Adapted)
    adapted = attach(model, config, name, rng=None)
    try:
        _fill(forms.tensors(adapted, name), arrays, folder)
    except ValueError:
        adapted.remove(name)
        if fresh:
            adapted.detach()
        raise
    return adapted


def _described(file):
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and {"peft_type", "method"} & raw.keys():
            return raw
    except FileNotFoundError:
        raise FileNotFoundError(f"load: there is no {file}") from None
    except ValueError as error:
        raise FormatError(f"{file}: no config of an adapter: {error}") from None
    raise FormatError(f"{file}: no config of an adapter: it has no peft_type")


def _fill(wanted, arrays, folder):
    problems = [f"{key} {shape} is missing" for key, (_, shape) in wanted.items()
                if key not in arrays]  # fmt: skip
    frozen = ".base_layer.weight"  # peft writes an adapted embedding's own weight along
    problems += [
        f"{key} is unexpected" for key in arrays if key not in wanted and not key.endswith(frozen)
    ]
    problems += [
        f"{key} is {arrays[key].shape} in the file, {shape} here; was it made for another base?"
        for key, (_, shape) in wanted.items()
        if key in arrays and arrays[key].shape != shape
    ]
    if problems:
        raise ValueError(f"load: {folder}: " + "\n      ".join(problems))
    for key, (x, _) in wanted.items():
        array = np.asarray(arrays[key]).astype(x.dtype).reshape(x.shape)
        x.assign_(backend.to_device(array, x.device))
