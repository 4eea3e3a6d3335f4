"""Training: text, the loop, and run folders that can be taken up again."""

from .trainer import Settings, Trainer, read_metrics

__all__ = ["Settings", "Trainer", "read_metrics"]
