"""Training: text, the loop, and run folders that can be taken up again."""

from .captured import Captured
from .finetune import Finetuner, FinetuneSettings
from .run import read_metrics
from .settings import Settings
from .trainer import Trainer

__all__ = ["Captured", "FinetuneSettings", "Finetuner", "Settings", "Trainer", "read_metrics"]
