"""Model files in and out; which kind a path holds is told by its content."""

from pathlib import Path

from ...io import FormatError
from . import huggingface


def read(path):
    """(LlamaConfig, {name in the model: array}) of a folder or file."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"model: there is no {path}")
    for kind in (huggingface,):
        if kind.recognises(path):
            return kind.read(path)
    raise FormatError(
        f"{path}: not a model that can be read; expected a folder with config.json and "
        "model.safetensors (or model.safetensors.index.json)"
    )


def write(model, folder, dtype=None):
    """Save in Hugging Face's layout, the one that everything else reads."""
    huggingface.write(model, folder, dtype)
