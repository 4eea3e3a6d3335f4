"""Adapters in files: the folders of Hugging Face's peft.

adapter_config.json          which method, and its sizes
adapter_model.safetensors    base_model.model.<path>.lora_A.weight and so on; of a prefix
                             prompt_embeddings (p, 2 n g k), its encoder dropped
"""

import json
from pathlib import Path

import numpy as np

from .. import backend, io
from ..io import FormatError, replacing
from .adapted import Adapted, attach
from .lora import LoRA
from .places import at, bare
from .prefix import PrefixTuning

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ABOVE = "base_model.model."
_LORA = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_EMBEDDING = {"a": "lora_embedding_A", "b": "lora_embedding_B", "magnitude": _LORA["magnitude"]}

# our field: theirs
_LORA_FIELDS = {
    "rank": "r", "alpha": "lora_alpha", "targets": "target_modules", "dropout": "lora_dropout",
    "rslora": "use_rslora", "dora": "use_dora", "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern", "layers": "layers_to_transform",
    "excluded": "exclude_modules", "whole": "modules_to_save",
}  # fmt: skip


def save(adapted, folder, name="default"):
    """Write one adapter, in Hugging Face peft's form; each file whole or not at all.

    A prefix that a network computes is saved as what it computes.
    """
    adapted._check_name(name)
    config = adapted.configs[name]
    if isinstance(config, LoRA):
        fields = {theirs: _plain(getattr(config, ours)) for ours, theirs in _LORA_FIELDS.items()}
        described = {"peft_type": "LORA", "bias": "none", **fields}
        arrays = {
            _their_key(adapted, key): backend.to_host(x.data)
            for key, x in adapted.adapter_parameters(name).items()
        }
    elif isinstance(config, PrefixTuning):
        described = {"peft_type": "PREFIX_TUNING", **_prefix_sizes(adapted.config, config)}
        arrays = {"prompt_embeddings": backend.to_host(adapted.virtual[name].rows().data)}
    else:
        raise ValueError(f"save: peft has no form for a {type(config).__name__}")
    described |= {"task_type": "CAUSAL_LM", "inference_mode": True,
                  "base_model_name_or_path": None}  # fmt: skip
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
    config = _config(folder)
    arrays = io.load(folder / WEIGHTS)
    fresh = not isinstance(model, Adapted)
    adapted = attach(model, config, name, rng=None)
    try:
        _fill(adapted, name, arrays, folder)
    except ValueError:
        adapted.remove(name)
        if fresh:
            adapted.detach()
        raise
    return adapted


def _fill(adapted, name, arrays, folder):
    if name in adapted.virtual:
        wanted = {"prompt_embeddings": adapted.virtual[name].table}
    else:
        tensors = adapted.adapter_parameters(name)
        wanted = {_their_key(adapted, key): x for key, x in tensors.items()}
    problems = [f"{key} {tuple(x.shape)} is missing" for key, x in wanted.items()
                if key not in arrays]  # fmt: skip
    frozen = ".base_layer.weight"  # peft writes an adapted embedding's own weight along
    problems += [
        f"{key} is unexpected" for key in arrays if key not in wanted and not key.endswith(frozen)
    ]
    problems += [
        f"{key} is {arrays[key].shape} in the file, {x.shape} here; was it made for another base?"
        for key, x in wanted.items()
        if key in arrays and arrays[key].shape != x.shape
    ]
    if problems:
        raise ValueError(f"load: {folder}: " + "\n      ".join(problems))
    for key, x in wanted.items():
        x.assign_(backend.to_device(np.asarray(arrays[key]).astype(x.dtype), x.device))


def _their_key(adapted, key):
    """'model.layers.0.self_attn.q_proj.a' as it is called in the file."""
    from .places import our_path

    path, _, field = key.rpartition(".")
    if path.endswith(".part"):  # trained whole
        return f"{_ABOVE}{path.removesuffix('.part')}.{field}"
    part = bare(at(adapted.model, our_path(path)))
    names = _EMBEDDING if hasattr(part, "count") or "Embedding" in type(part).__name__ else _LORA
    return f"{_ABOVE}{path}.{names[field]}"


def _plain(value):
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return value
    return dict(value) if hasattr(value, "keys") else list(value)


def _prefix_sizes(config, method):
    return {
        "num_virtual_tokens": method.length,
        "token_dim": config.n_kv_heads * config.head_dim,
        "num_transformer_submodules": 1,
        "num_attention_heads": config.n_kv_heads,
        "num_layers": config.n_layers,
        "encoder_hidden_size": config.n_kv_heads * config.head_dim,
        "prefix_projection": False,
    }


def _config(folder):
    """The config that adapter_config.json describes."""
    file = folder / CONFIG
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        kind = raw["peft_type"]
    except FileNotFoundError:
        raise FileNotFoundError(f"load: there is no {file}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{file}: no config of an adapter: {error!r}") from None
    if kind == "LORA":
        if raw.get("bias", "none") != "none":
            raise FormatError(f"{file}: bias is {raw['bias']!r}, expected 'none'")
        given = {ours: raw[theirs] for ours, theirs in _LORA_FIELDS.items()
                 if raw.get(theirs) not in (None, [], {})}  # fmt: skip
        return LoRA(**given)
    if kind == "PREFIX_TUNING":
        if raw.get("prefix_projection"):
            raise FormatError(f"{file}: a prefix with its encoder; save it without one")
        return PrefixTuning(length=raw["num_virtual_tokens"])
    raise FormatError(f"{file}: peft_type is {kind!r}, expected LORA or PREFIX_TUNING")
