"""Training a LLaMA from scratch into a run folder, which is a model folder with a history.

config.json  model.safetensors  tokenizer.json     the model: generate and from_pretrained
run.toml                                           every setting
metrics.jsonl  loss.png                            how it went
state/                                             where it stands (checkpoint.py)
"""

import json
import math
import time
import tomllib
from collections import deque
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from .. import optim
from ..autograd import no_grad
from ..io import replacing
from ..llama import BPETokenizer, ByteTokenizer, Llama, LlamaConfig, load_tokenizer
from . import checkpoint, data


def _setting(default, help):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """What a run depends on, and nothing else; every one is a flag of `tinygrad-ml train`."""

    data: str = _setting("", "UTF-8 text file to learn from (default: Python's standard library)")
    tokenizer: str = _setting("bytes", "bytes, or bpe: a byte-pair encoding learnt from the text")
    vocab_size: int = _setting(2048, "number of tokens of --tokenizer bpe")
    dim: int = _setting(128, "width of the model")
    layers: int = _setting(4, "number of layers")
    heads: int = _setting(4, "number of attention heads")
    kv_heads: int = _setting(0, "heads of keys and values (0: as many as heads)")
    hidden_dim: int = _setting(0, "width of the feed-forward (0: 8/3 dim, to a multiple of 32)")
    tie: bool = _setting(False, "tie the head's weight to the embedding's")
    context: int = _setting(128, "tokens that the model sees at once")
    batch_size: int = _setting(8, "texts in a step")
    steps: int = _setting(1200, "number of steps")
    lr: float = _setting(2e-3, "highest learning rate")
    lr_floor: float = _setting(0.1, "last learning rate, as a share of the highest")
    warmup: int = _setting(100, "steps until the highest learning rate")
    weight_decay: float = _setting(0.1, "AdamW's decay of the matrices")
    beta1: float = _setting(0.9, "AdamW's decay of the mean gradient")
    beta2: float = _setting(0.95, "AdamW's decay of the mean squared gradient")
    clip: float = _setting(1.0, "largest norm of the gradient")
    held_out: float = _setting(0.05, "share of the text that is kept for validation")
    eval_every: int = _setting(200, "steps between validations")
    eval_batches: int = _setting(8, "batches of a validation")
    save_every: int = _setting(500, "steps between checkpoints")
    prompt: str = _setting("", "what samples go on from (default: the validation text's start)")
    sample_tokens: int = _setting(200, "tokens of a sample")
    seed: int = _setting(0, "seed of the initial values, the batches and the samples")
    device: str = _setting("cpu", "cpu or cuda")

    def __post_init__(self):
        for name in ("context", "batch_size", "steps", "eval_every", "eval_batches", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: got {self.held_out}, expected a share between 0 and 1")
        if self.tokenizer not in ("bytes", "bpe"):
            raise ValueError(f"tokenizer: got {self.tokenizer!r}, expected 'bytes' or 'bpe'")
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

    def to_toml(self):
        """One line a setting; JSON's texts and numbers are TOML's."""
        return "".join(f"{name} = {json.dumps(x)}\n" for name, x in asdict(self).items())

    @classmethod
    def from_toml(cls, file):
        """The settings in a file; ValueError names the unknown ones."""
        try:
            found = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{file}: no valid TOML: {error}") from error
        unknown = sorted(found.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"{file}: unknown settings {', '.join(unknown)}")
        return cls(**found)


class Trainer:
    """A run: made new, or taken up again where its last checkpoint left it.

    Everything that can be wrong with the settings or the text is found before a file is written.
    """

    def __init__(self, settings, run, *, resume=False, log=print):
        self.settings, self.run, self.log = settings, Path(run), log
        s = settings
        documents = data.read_corpus(s.data)
        self.tokenizer = self._tokenizer(documents, resume)
        ids = data.tokenize(documents, self.tokenizer)
        self.train_ids, self.held_out_ids = data.split(ids, s.context, s.held_out)
        self.rng = np.random.default_rng(s.seed)
        config = s.config(self.tokenizer.vocab_size, self.tokenizer.eos)
        self.model = Llama(config, rng=self.rng, device=s.device)
        self.optimizer = optim.AdamW(
            self.model.named_parameters(),
            lr=s.lr,
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
            schedule=optim.warmup_cosine(min(s.warmup, s.steps), s.steps, s.lr_floor),
        )
        self.step, self.val_loss = 0, math.nan
        if resume:
            self.step = checkpoint.load_state(run, self.model, self.optimizer, self.rng)
            self._cut_metrics()
        else:
            self._begin()

    def _tokenizer(self, documents, resume):
        if resume:
            return load_tokenizer(self.run)
        if self.settings.tokenizer == "bytes":
            return ByteTokenizer()
        return BPETokenizer.train(documents, self.settings.vocab_size)

    def _begin(self):
        """The folder as it is before the first step."""
        self.run.mkdir(parents=True, exist_ok=True)
        with replacing(self.run / "run.toml") as file:
            file.write(self.settings.to_toml().encode())
        self.tokenizer.save(self.run / "tokenizer.json")
        self._metrics_file.write_bytes(b"")
        self.save()

    # --- the work

    def train(self, bar=None):
        """Make all steps that are left, shown on a tqdm `bar`; returns the validation loss."""
        s = self.settings
        clock = _Clock(s.batch_size * s.context)
        recent = deque(maxlen=20)
        while self.step < s.steps:
            rate = self.optimizer.rates()[0]
            loss, norm = self.train_step()
            self.step += 1
            recent.append(loss)
            record = {"step": self.step, "loss": loss, "lr": rate, "grad_norm": norm}
            if self.step % s.eval_every == 0 or self.step == s.steps:
                self.val_loss = record["val_loss"] = self.evaluate()
            record["tokens_per_second"] = clock.tick()
            self._note(record)
            if bar is not None:
                shown = {"loss": f"{np.mean(recent):.3f}", "tok/s": f"{clock.rate:,.0f}"}
                if not math.isnan(self.val_loss):
                    shown["val"] = f"{self.val_loss:.3f}"
                bar.set_postfix(shown, refresh=False)
                bar.update()
            if self.step % s.save_every == 0 or self.step == s.steps:
                self.save()
        return self.val_loss

    def train_step(self):
        """One update; returns the loss before it and the gradient's norm."""
        s = self.settings
        tokens, targets = data.draw_batch(self.train_ids, s.batch_size, s.context, self.rng)
        loss = self.model.loss(tokens, targets, rng=self.rng)
        loss.backward()
        norm = optim.clip_grad_norm(self.model.parameters(), s.clip)
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"step {self.step + 1}: the loss is {loss.item()}, the gradient's norm {norm}; "
                f"the last good state is {self.run / 'state' / str(checkpoint.latest(self.run))}; "
                "try a smaller --lr"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item(), norm

    def evaluate(self):
        """Mean loss of a target over the first batches of the held-out text."""
        s, total, count = self.settings, 0.0, 0
        with no_grad():
            for tokens, targets in data.in_order(
                self.held_out_ids, s.batch_size, s.context, s.eval_batches
            ):
                total += self.model.loss(tokens, targets, reduction="sum").item()
                count += targets.size
        return total / count

    def sample(self):
        """(prompt, what the model makes of it); the same random numbers every time."""
        s = self.settings
        if s.prompt:
            prompt = self.tokenizer.encode(s.prompt)
        else:
            prompt = self.held_out_ids[: min(32, s.context // 2)].tolist()
        rng = np.random.default_rng(s.seed)
        ids = self.model.generate(
            [prompt],
            s.sample_tokens,
            temperature=0.8,
            top_p=0.95,
            rng=rng,
            eos=(),
            window=s.context,
        )
        return self.tokenizer.decode(prompt), self.tokenizer.decode(ids[0, len(prompt) :])

    # --- the folder

    def save(self):
        """The model where everybody looks for it, and a state to go on from."""
        self.model.save_pretrained(self.run)
        checkpoint.save_state(self.run, self.step, self.model, self.optimizer, self.rng)

    @property
    def _metrics_file(self):
        return self.run / "metrics.jsonl"

    def _note(self, record):
        with self._metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _cut_metrics(self):
        """Forget the lines of steps that will be made again."""
        kept = [json.dumps(x) + "\n" for x in read_metrics(self.run) if x["step"] <= self.step]
        with replacing(self._metrics_file) as file:
            file.write("".join(kept).encode())

    def plot(self):
        """Draw loss.png; False where matplotlib is not installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        metrics = read_metrics(self.run)
        axes.plot(*_curve(metrics, "loss"), linewidth=0.6, alpha=0.6, label="training")
        axes.plot(*_curve(metrics, "val_loss"), marker="o", markersize=3, label="validation")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.legend()
        figure.savefig(self.run / "loss.png", dpi=120)
        return True


def read_metrics(run):
    """The lines of metrics.jsonl, a dict each; a last line that was cut short is left out."""
    found = []
    for line in (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _curve(metrics, name):
    points = [(x["step"], x[name]) for x in metrics if name in x]
    return [step for step, _ in points], [y for _, y in points]


class _Clock:
    """Tokens per second, smoothed over some twenty steps."""

    def __init__(self, tokens_per_step):
        self.tokens, self.seconds, self.last = tokens_per_step, None, time.perf_counter()

    def tick(self):
        now = time.perf_counter()
        taken, self.last = now - self.last, now
        self.seconds = taken if self.seconds is None else 0.95 * self.seconds + 0.05 * taken
        return round(self.rate, 1)

    rate = property(lambda self: self.tokens / self.seconds)
