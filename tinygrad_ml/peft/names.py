"""The methods by name, for settings, command lines and files."""

from .adapter import Adapter
from .bitfit import BitFit
from .compacter import Compacter
from .ia3 import IA3
from .llama_adapter import LlamaAdapter
from .lora import LoRA
from .method import made
from .p_tuning import PTuning
from .prefix import PrefixTuning
from .prompt import PromptTuning
from .whole import NormTuning

METHODS = {
    "prefix": PrefixTuning,
    "prompt": PromptTuning,
    "p-tuning": PTuning,
    "llama-adapter": LlamaAdapter,
    "adapter": Adapter,
    "compacter": Compacter,
    "lora": LoRA,
    "ia3": IA3,
    "bitfit": BitFit,
    "norms": NormTuning,
}


def config(method, **given):
    """The config of a method by its name, one of METHODS, with these fields."""
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(METHODS)}")
    return made(METHODS[method], given)
