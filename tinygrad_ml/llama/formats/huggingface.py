"""Folders of Hugging Face's transformers: config.json and safetensors, one file or many.

The names of transformers 4 (rope_theta, rope_scaling, torch_dtype) and 5 (rope_parameters,
dtype) are both read; both are written, so that either reads what we write.
"""

import json
import re
from pathlib import Path

from ... import dtypes
from ...backend import to_host
from ...io import FormatError, load, replacing, save
from ...quantized import dense_arrays
from ..config import LlamaConfig

# our name <-> Hugging Face's; {} is the layer's number
NAMES = {
    "embedding": "model.embed_tokens",
    "layers.{}.attention_norm": "model.layers.{}.input_layernorm",
    "layers.{}.attention.wq": "model.layers.{}.self_attn.q_proj",
    "layers.{}.attention.wk": "model.layers.{}.self_attn.k_proj",
    "layers.{}.attention.wv": "model.layers.{}.self_attn.v_proj",
    "layers.{}.attention.wo": "model.layers.{}.self_attn.o_proj",
    "layers.{}.feed_forward_norm": "model.layers.{}.post_attention_layernorm",
    "layers.{}.feed_forward.gate": "model.layers.{}.mlp.gate_proj",
    "layers.{}.feed_forward.up": "model.layers.{}.mlp.up_proj",
    "layers.{}.feed_forward.down": "model.layers.{}.mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
_OURS = {theirs: ours for ours, theirs in NAMES.items()}
_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.)")


def their_name(name):
    """'layers.0.attention.wq' or 'layers.0.attention.wq.weight' as Hugging Face calls it."""
    return _translated(name, NAMES)


def our_name(name):
    """'model.layers.0.self_attn.q_proj.weight' as the model here calls it."""
    return _translated(name, _OURS)


def _translated(name, table):
    """The name by the table, with its last word (weight, bias) kept; unknown ones as they are."""
    number = _LAYER.search(name)
    pattern = _LAYER.sub("{}", name, count=1)
    stem, dot, last = pattern.rpartition(".")
    if pattern in table:
        found = table[pattern]
    elif stem in table:
        found = table[stem] + dot + last
    else:
        return name
    return found.format(number[0]) if number else found


# ----------------------------------------------------------------------------------- reading

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def recognises(path):
    return path.is_dir() and (path / "config.json").is_file()


def read(folder):
    """(LlamaConfig, {our name: array}); the arrays are mapped into memory, not yet read."""
    config = read_config(folder / "config.json")
    arrays = {
        our_name(name): array
        for name, array in _read_arrays(folder).items()
        if not name.endswith("rotary_emb.inv_freq")  # follows from the config
    }
    if config.tie_embeddings:
        arrays.pop("head.weight", None)  # some writers keep a copy, which is not looked at
    return config, arrays


def _read_arrays(folder):
    if (folder / SINGLE).is_file():
        return load(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise FormatError(f"{folder}: has config.json, but neither {SINGLE} nor {INDEX}")
    where = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(x, str) for x in where.values()):
        raise FormatError(f"{folder / INDEX}: weight_map is no table of file names")
    arrays = {}
    for shard in sorted(set(where.values())):
        if Path(shard).name != shard:
            raise FormatError(f"{folder / INDEX}: {shard!r} is not a file of this folder")
        if not (folder / shard).is_file():
            raise FormatError(f"{folder / INDEX}: names {shard}, which is not there")
        found = load(folder / shard)
        lost = sorted(name for name, file in where.items() if file == shard and name not in found)
        if lost:
            raise FormatError(f"{folder / shard}: lacks {', '.join(lost)}, which {INDEX} promises")
        arrays |= found
    return arrays


def read_config(file):
    """The LlamaConfig of a config.json; FormatError for what is no LLaMA."""
    raw = _read_json(file)
    kind = raw.get("model_type", "llama")
    if kind != "llama":
        raise FormatError(f"{file}: model_type is {kind!r}, expected 'llama'")
    if raw.get("hidden_act", "silu") != "silu":
        raise FormatError(f"{file}: hidden_act is {raw['hidden_act']!r}, expected 'silu'")
    missing = [name for name in _REQUIRED if not isinstance(raw.get(name), int)]
    if missing:
        raise FormatError(f"{file}: no whole number under {', '.join(missing)}")
    rope = raw.get("rope_parameters") or {}
    eos = raw.get("eos_token_id")
    try:
        return LlamaConfig(
            vocab_size=raw["vocab_size"],
            dim=raw["hidden_size"],
            n_layers=raw["num_hidden_layers"],
            n_heads=raw["num_attention_heads"],
            hidden_dim=raw["intermediate_size"],
            n_kv_heads=raw.get("num_key_value_heads"),
            head_dim=raw.get("head_dim"),
            max_length=raw.get("max_position_embeddings", 2048),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
            rope_scaling=_scaling(rope or raw.get("rope_scaling") or {}),
            tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            bos=raw.get("bos_token_id"),
            eos=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        )
    except (TypeError, ValueError) as error:
        raise FormatError(f"{file}: {error}") from error


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


def _scaling(rope):
    """rope_scaling in one form: None, or {"rope_type": ..., its numbers}."""
    kind = rope.get("rope_type", rope.get("type", "default"))  # "type": before transformers 4.43
    if kind == "default":
        return None
    return {"rope_type": kind} | {
        name: x for name, x in rope.items() if name not in ("rope_type", "type", "rope_theta")
    }


def _read_json(file):
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: no valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise FormatError(f"{file}: holds {type(found).__name__}, expected an object")
    return found


# ----------------------------------------------------------------------------------- writing


def write(model, folder, dtype=None):
    """config.json and model.safetensors; in another dtype than the model's, if one is given."""
    arrays = model.state_dict(copy=False) | dense_arrays(model)
    if model.config.tie_embeddings:
        arrays.pop("head.weight", None)
    foreign = sorted(name for name in arrays if their_name(name) == name)
    replaced = sorted(expected_names(model.config) - arrays.keys())
    if foreign or replaced:
        raise ValueError(
            f"save_pretrained: the model is adapted (it has {', '.join(foreign[:3])} ..., and not "
            f"{', '.join(replaced[:3])} ...): merge the adapter first, or save it by peft.save"
        )
    dtype = next(iter(arrays.values())).dtype if dtype is None else dtypes.as_dtype(dtype)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {their_name(n): to_host(a).astype(dtype, copy=False) for n, a in arrays.items()}
    save(folder / SINGLE, arrays, metadata={"format": "pt"})
    with replacing(folder / "config.json") as file:
        file.write((json.dumps(to_json(model.config, dtype), indent=2) + "\n").encode())


def expected_names(config):
    """The names of all parameters of a model that nobody has adapted."""
    names = set()
    for ours in NAMES:
        has_bias = (".attention." in ours and config.attention_bias) or (
            ".feed_forward." in ours and config.mlp_bias
        )
        for i in range(config.n_layers if "{}" in ours else 1):
            names.add(ours.format(i) + ".weight")
            if has_bias:
                names.add(ours.format(i) + ".bias")
    return names - {"head.weight"} if config.tie_embeddings else names


def to_json(config, dtype):
    """The content of config.json."""
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {
            "rope_theta": config.rope_theta,
            **(scaling or {"rope_type": "default"}),
        },
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "mlp_bias": config.mlp_bias,
        "bos_token_id": config.bos,
        "eos_token_id": list(config.eos) if len(config.eos) > 1 else next(iter(config.eos), None),
        "torch_dtype": str(dtype),
        "dtype": str(dtype),
    }
