"""Model files in and out; which kind a path holds is told by its content."""

import math
from pathlib import Path

from ...io import FormatError
from . import gguf, huggingface, llama2c, meta


def read(path):
    """(LlamaConfig, {name in the model: array or Blocks}) of a folder or file."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"model: there is no {path}")
    for kind in (gguf, huggingface, meta, llama2c):
        if kind.recognises(path):
            config, arrays = kind.read(path)
            _check_size(path, config, arrays)
            return config, arrays
    raise FormatError(
        f"{path}: not a model that can be read; expected a folder with config.json and "
        "model.safetensors (or model.safetensors.index.json), one with params.json and "
        "consolidated.00.pth, a .gguf, or a .bin of llama2.c"
    )


def _check_size(path, config, arrays):
    """FormatError if the sizes in a header have nothing to do with the weights beside it.

    Lesser differences are left to load_state_dict, which lists them by name.
    """
    c, held = config, sum(math.prod(x.shape) for x in arrays.values())
    attention = 2 * c.dim * (c.n_heads + c.n_kv_heads) * c.head_dim
    promised = c.n_layers * (attention + 3 * c.dim * c.hidden_dim) + c.vocab_size * c.dim
    if promised > 16 * held:
        raise FormatError(f"{path}: its sizes promise {promised} numbers, it holds {held}")


def write(model, folder, dtype=None):
    """Save in Hugging Face's layout, the one that everything else reads."""
    huggingface.write(model, folder, dtype)
