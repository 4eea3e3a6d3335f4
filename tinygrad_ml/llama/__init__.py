"""LLaMA: the model, its files, its tokenizers, and generation."""

from .config import LlamaConfig
from .model import Llama
from .tokenizer import BPETokenizer, ByteTokenizer, StreamDecoder
from .vocabularies import load_tokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "Llama",
    "LlamaConfig",
    "StreamDecoder",
    "load_tokenizer",
]
