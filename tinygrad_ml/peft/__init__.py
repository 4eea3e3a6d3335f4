"""Parameter-efficient fine-tuning: small adapters on a frozen model, one file for each method.

    adapted = peft.attach(model, peft.LoRA(rank=8), rng=np.random.default_rng(0))
    optimizer = optim.AdamW(adapted.trained(), lr=1e-3)
    adapted.loss(tokens, targets).backward()
    ...
    peft.save(adapted, folder)
    adapted = peft.load(model, folder)

A folder is that of Hugging Face's peft.
"""

from .adapted import Adapted, attach
from .hub import load, save
from .lora import LoRA, lora_plus
from .memory import estimate_memory
from .method import Method, made
from .prefix import PrefixTuning

METHODS = {
    "prefix": PrefixTuning,
    "lora": LoRA,
}


def config(method, **given):
    """The config of a method by its name, one of METHODS, with these fields."""
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    return made(METHODS[method], given)


__all__ = [
    "METHODS",
    "Adapted",
    "LoRA",
    "Method",
    "PrefixTuning",
    "attach",
    "config",
    "estimate_memory",
    "load",
    "lora_plus",
    "save",
]
