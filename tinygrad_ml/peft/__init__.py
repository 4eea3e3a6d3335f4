"""Parameter-efficient fine-tuning: small adapters on a frozen model, one file for each method.

    adapted = peft.attach(model, peft.LoRA(rank=8), rng=np.random.default_rng(0))
    optimizer = optim.AdamW(adapted.trained(), lr=1e-3)
    adapted.loss(tokens, targets).backward()
    ...
    peft.save(adapted, folder)
    adapted = peft.load(model, folder)

A folder is that of Hugging Face's peft, where it has the method. docs/peft.md describes them all.
"""

from .adapted import Adapted, attach
from .adapter import Adapter
from .bitfit import BitFit
from .compacter import Compacter
from .delta import compress
from .hub import load, save
from .ia3 import IA3
from .llama_adapter import LlamaAdapter
from .lora import LoRA, lora_plus
from .memory import estimate_memory
from .method import Method
from .names import METHODS, config
from .p_tuning import PTuning
from .prefix import PrefixTuning
from .prompt import PromptTuning
from .whole import NormTuning

__all__ = [
    "IA3",
    "METHODS",
    "Adapted",
    "Adapter",
    "BitFit",
    "Compacter",
    "LlamaAdapter",
    "LoRA",
    "Method",
    "NormTuning",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "attach",
    "compress",
    "config",
    "estimate_memory",
    "load",
    "lora_plus",
    "save",
]
