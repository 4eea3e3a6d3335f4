"""Parameter-efficient fine-tuning: what it costs, before it is spent."""

from .memory import estimate_memory

__all__ = ["estimate_memory"]
