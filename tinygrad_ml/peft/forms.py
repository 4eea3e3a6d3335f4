"""What an adapter is called in files: Hugging Face peft's words for it, or ours.

adapter_config.json of peft says peft_type and its fields; of ours, for methods that peft does not
have, method (a name of peft.METHODS) and the fields of its config as they are.

adapter_model.safetensors of peft:
    LORA             base_model.model.<path>.lora_A.weight  lora_B.weight  lora_magnitude_vector
                     (of an embedding lora_embedding_A  lora_embedding_B)
    IA3              base_model.model.<path>.ia3_l      (outputs, 1) or (1, inputs)
    LN_TUNING        base_model.model.<path>.ln_tuning_layers.weight
    ADAPTION_PROMPT  base_model.model.<path>.adaption_prompt  adaption_gate
    *_TUNING         prompt_embeddings      (p, width): what stands there once encoders are dropped
and of ours: <path>.<tensor>, the path Hugging Face's, the tensor as the method's file calls it.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import NamedTuple

from ..io import FormatError
from .ia3 import IA3
from .llama_adapter import LlamaAdapter
from .lora import LoRA
from .method import Method, is_embedding, made
from .names import METHODS
from .p_tuning import PTuning
from .places import at, bare, matches, our_path
from .prefix import PrefixTuning
from .prompt import PromptTuning
from .whole import NormTuning

_ABOVE = "base_model.model."


class Form(NamedTuple):
    """How peft writes one method.

    fields   {our field: its name there}
    tensors  {our tensor: its name there}
    fixed    what else stands in adapter_config.json
    needed   what a file must say, because nothing can be taken for granted
    plain    the fields of a config that is read, whatever the file says
    """

    method: type[Method]
    fields: Mapping[str, str]
    needed: tuple[str, ...]
    tensors: Mapping[str, str] = {}
    fixed: Mapping[str, object] = {}
    plain: Mapping[str, object] = {}


_WHERE = {"targets": "target_modules", "layers": "layers_to_transform",
          "excluded": "exclude_modules", "whole": "modules_to_save"}  # fmt: skip
_EMBEDDING = {"a": "lora_embedding_A", "b": "lora_embedding_B"}
_PROMPT, _LENGTH = {"length": "num_virtual_tokens"}, ("num_virtual_tokens",)
FORMS = {
    "LORA": Form(
        LoRA,
        {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora",
         "dora": "use_dora", "rank_pattern": "rank_pattern", "alpha_pattern": "alpha_pattern",
         **_WHERE},
        ("r", "lora_alpha", "target_modules"),
        {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"},
        {"bias": "none"},
    ),
    "IA3": Form(
        IA3,
        {"inputs": "feedforward_modules", "targets": "target_modules",
         "excluded": "exclude_modules", "whole": "modules_to_save"},
        ("target_modules",),
        {"scale": "ia3_l"},
    ),
    "LN_TUNING": Form(NormTuning, {"targets": "target_modules"}, ("target_modules",)),
    "ADAPTION_PROMPT": Form(
        LlamaAdapter,
        {"length": "adapter_len", "layers": "adapter_layers"},
        ("adapter_len", "adapter_layers"),
        {"prompt": "adaption_prompt", "gate": "adaption_gate"},
        {"target_modules": "self_attn"},
    ),
    "PREFIX_TUNING": Form(PrefixTuning, _PROMPT, _LENGTH, fixed={"prefix_projection": False}),
    "PROMPT_TUNING": Form(PromptTuning, _PROMPT, _LENGTH, fixed={"prompt_tuning_init": "RANDOM"}),
    "P_TUNING": Form(PTuning, _PROMPT, _LENGTH, plain={"hidden": None}),
}  # fmt: skip


def form_of(config):
    """(peft_type, Form) of a config; (None, None) where peft has none."""
    for kind, form in FORMS.items():
        if type(config) is form.method and not _beyond(config, kind):
            return kind, form
    return None, None


def _beyond(config, kind):
    """Whether the config asks for what peft has no field for."""
    return kind in ("IA3", "LN_TUNING") and config.layers is not None


# ------------------------------------------------------------------------ adapter_config.json


def described(config, model):
    """adapter_config.json of this config, as a dict"""
    kind, form = form_of(config)
    if form is None:
        name = next(name for name, method in METHODS.items() if type(config) is method)
        return {"method": name, **{f.name: _plain(getattr(config, f.name)) for f in fields(config)}}
    given = {theirs: _plain(getattr(config, ours)) for ours, theirs in form.fields.items()}
    if kind == "ADAPTION_PROMPT" and config.layers is None:
        given["adapter_layers"] = model.config.n_layers
    if form.fields is _PROMPT:
        given |= _prompt_sizes(model.config, kind)
    return {"peft_type": kind, "task_type": "CAUSAL_LM", "inference_mode": True,
            "base_model_name_or_path": None, **form.fixed, **given}  # fmt: skip


def _prompt_sizes(c, kind):
    """Of a prefix keys and values have these widths, of a prompt embeddings."""
    heads, width = (c.n_heads, c.dim)
    if kind == "PREFIX_TUNING":
        heads, width = c.n_kv_heads, c.n_kv_heads * c.head_dim
    return {"token_dim": width, "num_attention_heads": heads, "num_layers": c.n_layers,
            "num_transformer_submodules": 1, "encoder_hidden_size": width}  # fmt: skip


def read(raw, file):
    """The config that adapter_config.json describes; FormatError for what is not read."""
    if "method" in raw and "peft_type" not in raw:
        given = {name: x for name, x in raw.items() if name != "method"}
        try:
            return made(METHODS[raw["method"]], given)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{file}: no config of an adapter: {error}") from None
    kind = raw["peft_type"]
    if kind not in FORMS:
        raise FormatError(f"{file}: peft_type is {kind!r}, expected one of {', '.join(FORMS)}")
    form = FORMS[kind]
    _check_read(raw, form, file)
    given = {ours: raw[theirs] for ours, theirs in form.fields.items()
             if raw.get(theirs) not in (None, [], {})}  # fmt: skip
    if isinstance(given.get("layers"), int) and kind == "LORA":
        given["layers"] = (given["layers"],)
    if kind == "IA3":  # that no input is scaled is not what we take for granted
        given["inputs"] = raw.get("feedforward_modules") or ()
    try:
        return made(form.method, {**given, **form.plain})
    except (TypeError, ValueError) as error:
        raise FormatError(f"{file}: {error}") from None


def _check_read(raw, form, file):
    """FormatError for what is missing, and for what would be another function than ours."""
    lost = [name for name in form.needed if raw.get(name) in (None, [])]
    if lost:
        raise FormatError(f"{file}: lacks {', '.join(lost)}")
    for name in OTHERWISE:
        if raw.get(name) not in (None, False, [], {}, "none"):
            raise FormatError(f"{file}: {name} is {raw[name]!r:.60}, which is not read here")
    start = raw.get("init_lora_weights", True)
    if isinstance(start, str) and start not in BASE_UNCHANGED:
        raise FormatError(
            f"{file}: init_lora_weights is {start!r}: its base is not the model as published; peft "
            "saves it for that one with path_initial_model_for_weight_conversion"
        )


# fields of LORA that make it another function
OTHERWISE = (
    "bias", "fan_in_fan_out", "lora_bias", "layer_replication", "target_parameters", "use_qalora",
    "trainable_token_indices", "alora_invocation_tokens", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
BASE_UNCHANGED = ("gaussian", "eva", "orthogonal")  # where A and B start, and no more


def _plain(value):
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return value
    return dict(value) if hasattr(value, "keys") else list(value)


# ------------------------------------------------------------------ adapter_model.safetensors


def tensors(adapted, name):
    """{name in the file: (Tensor, its shape there)} of one adapter, a prompt as its table"""
    config = adapted.configs[name]
    _, form = form_of(config)
    if name in adapted.virtual:
        rows = adapted.virtual[name].rows()
        return {"prompt_embeddings": (rows, rows.shape)}
    found = adapted.adapter_parameters(name)
    if form is None:
        once = {id(x): (key, x) for key, x in reversed(found.items())}  # what is shared
        return {key: (x, x.shape) for key, x in reversed(once.values())}
    return {_their_key(adapted, key, form): (x, _their_shape(config, key, x))
            for key, x in found.items()}  # fmt: skip


def _their_key(adapted, key, form):
    """'model.layers.0.self_attn.q_proj.a' as it is called in the file."""
    path, _, field = key.rpartition(".")
    if path.endswith(".part"):  # trained whole
        path = path.removesuffix(".part")
        field = f"ln_tuning_layers.{field}" if form.method is NormTuning else field
        return f"{_ABOVE}{path}.{field}"
    embedding = form.method is LoRA and is_embedding(bare(at(adapted.model, our_path(path))))
    words = {**form.tensors, **_EMBEDDING} if embedding else form.tensors
    return f"{_ABOVE}{path}.{words[field]}"


def _their_shape(config, key, x):
    path, _, field = key.rpartition(".")
    if type(config) is not IA3 or field != "scale":
        return x.shape
    return (1, x.size) if matches(path, config.inputs) else (x.size, 1)
