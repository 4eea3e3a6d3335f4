"""Settings of a run: flags of the command line, lines of a TOML file, fields here."""

import json
import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .. import optim
from ..llama import LlamaConfig

DTYPES = ("float32", "bfloat16", "float16")
SCHEDULES = {
    "cosine": lambda warmup, steps, s: optim.warmup_cosine(warmup, steps, s.lr_floor),
    "linear": lambda warmup, steps, s: optim.warmup_linear(warmup, steps, s.lr_floor),
    "constant": lambda warmup, steps, s: optim.wsd(warmup, steps, 0),
    "wsd": lambda warmup, steps, s: optim.wsd(
        warmup, steps, min(round(s.decay * steps), steps - warmup), s.lr_floor
    ),
}


def setting(default, help):
    """A field with the text that its flag shows."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Loop:
    """What training from scratch and fine-tuning have in common."""

    batch_size: int = setting(8, "texts in a step")
    accumulate: int = setting(1, "parts in which a step's batch goes through the model")
    recompute: bool = setting(False, "keep each layer's input only: less memory, a third more work")
    dtype: str = setting("float32", "float32, bfloat16 or float16, of parameters and activations")
    schedule: str = setting("cosine", "of the learning rate: " + ", ".join(SCHEDULES))
    lr: float = setting(2e-3, "highest learning rate")
    lr_floor: float = setting(0.1, "last learning rate, as a share of the highest")
    warmup: int = setting(100, "steps until the highest learning rate")
    decay: float = setting(0.2, "share of the steps in which the schedule wsd comes down")
    weight_decay: float = setting(0.1, "AdamW's decay of the matrices")
    beta1: float = setting(0.9, "AdamW's decay of the mean gradient")
    beta2: float = setting(0.95, "AdamW's decay of the mean squared gradient")
    clip: float = setting(1.0, "largest norm of the gradient")
    ema: float = setting(0.0, "decay of the weights' moving average, such as 0.999 (0: none)")
    held_out: float = setting(0.05, "share of the data that is kept for validation")
    eval_every: int = setting(200, "steps between validations")
    eval_batches: int = setting(8, "batches of a validation")
    save_every: int = setting(500, "steps between checkpoints")
    tensorboard: bool = setting(False, "write events for TensorBoard too")
    seed: int = setting(0, "seed of the initial values, the batches and the samples")
    device: str = setting("cpu", "cpu or cuda")

    def __post_init__(self):
        for name in ("batch_size", "accumulate", "eval_every", "eval_batches", "save_every"):
            expect(self, name, getattr(self, name) >= 1, "1 or more")
        expect(self, "accumulate", self.accumulate <= self.batch_size, "at most batch_size")
        expect(self, "held_out", 0 < self.held_out < 1, "a share between 0 and 1")
        expect(self, "ema", 0 <= self.ema < 1, "0 <= ema < 1")
        expect(self, "decay", 0 <= self.decay <= 1, "a share")
        expect(self, "schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        expect(self, "dtype", self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")

    def rate(self, steps):
        """The schedule over so many steps: step -> factor on lr."""
        return SCHEDULES[self.schedule](min(self.warmup, steps), steps, self)

    def to_toml(self):
        """One line a setting; JSON's texts and numbers are TOML's."""
        return "".join(f"{name} = {json.dumps(x)}\n" for name, x in asdict(self).items())

    @classmethod
    def from_toml(cls, file, **given):
        """The settings in a file, or those given; ValueError names the unknown ones."""
        try:
            found = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{file}: no valid TOML: {error}") from error
        kinds = {f.name: f.type for f in fields(cls)}
        unknown = sorted(found.keys() - kinds)
        if unknown:
            raise ValueError(f"{file}: unknown settings {', '.join(unknown)}")
        for name, x in found.items():
            if kinds[name] is float and type(x) is int:
                found[name] = float(x)
            elif type(x) is not kinds[name]:
                kind = kinds[name].__name__
                raise ValueError(f"{file}: {name} is {x!r}, expected {kind}")
        return cls(**found | given)


@dataclass(frozen=True)
class Settings(Loop):
    """What a run depends on, and nothing else; every one is a flag of `tinygrad-ml train`."""

    data: str = setting("", "text file or prepared folder (default: Python's standard library)")
    tokenizer: str = setting("bytes", "bytes, or bpe: a byte-pair encoding learnt from the text")
    vocab_size: int = setting(2048, "number of tokens of --tokenizer bpe")
    dim: int = setting(128, "width of the model")
    layers: int = setting(4, "number of layers")
    heads: int = setting(4, "number of attention heads")
    kv_heads: int = setting(0, "heads of keys and values (0: as many as heads)")
    hidden_dim: int = setting(0, "width of the feed-forward (0: 8/3 dim, to a multiple of 32)")
    tie: bool = setting(False, "tie the head's weight to the embedding's")
    context: int = setting(128, "tokens that the model sees at once")
    steps: int = setting(1200, "number of steps")
    prompt: str = setting("", "what samples go on from (default: the validation text's start)")
    sample_tokens: int = setting(200, "tokens of a sample")
    documents: bool = setting(False, "attention stays within a document")

    def __post_init__(self):
        super().__post_init__()
        for name in ("context", "steps"):
            expect(self, name, getattr(self, name) >= 1, "1 or more")
        expect(self, "tokenizer", self.tokenizer in ("bytes", "bpe"), "'bytes' or 'bpe'")
        self.config(vocab_size=1)

    def config(self, vocab_size, eos=()):
        """The model's config."""
        return LlamaConfig(
            vocab_size=vocab_size,
            dim=self.dim,
            n_layers=self.layers,
            n_heads=self.heads,
            n_kv_heads=self.kv_heads or None,
            hidden_dim=self.hidden_dim or -(-self.dim * 8 // 96) * 32,
            max_length=self.context,
            tie_embeddings=self.tie,
            eos=eos,
        )


def expect(settings, name, holds, expected):
    """ValueError for a setting that makes no sense."""
    if not holds:
        raise ValueError(f"{name}: got {getattr(settings, name)!r}, expected {expected}")
