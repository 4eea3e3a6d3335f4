"""The loop that training from scratch and fine-tuning share, and the folder they write.

metrics.jsonl  loss.png     how it went
run.toml                    every setting
state/                      where it stands (checkpoint.py)
"""

import copy
import json
import math
import time
import warnings
from collections import deque
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np

from .. import optim
from ..autograd import detect_anomaly, no_grad
from ..backend import DeviceError, namespace
from ..io import replacing, sweep
from . import checkpoint
from .captured import Captured
from .ema import EMA
from .precision import LossScale


class Run:
    """What is trained, how far it is, and where that is kept. A kind of run says what it learns:

    draw() -> batch                       {name: array}, one row for each text; with "tokens"
    loss(batch) -> mean loss              of the weight(batch) losses in it
    validation() -> batches
    places(batch) -> text                 which texts of the data these are, for messages
    export(folder)                        the model, for everybody else

    It sets rng, then calls begin(). named: {name: Tensor} of what is trained, for `steps` steps.
    """

    inputs: tuple[str, ...] = ()  # what loss reads of a batch, if all batches have the same shapes

    def __init__(self, settings, folder, model, named, steps):
        s = self.settings = settings
        self.folder, self.model, self.named, self.steps = folder, model, named, steps
        self.optimizer = optim.AdamW(
            named.items(),
            lr=s.lr,
            betas=(s.beta1, s.beta2),
            weight_decay=s.weight_decay,
            schedule=s.rate(steps),
        )
        self.scale = LossScale(s.dtype)
        self.ema = EMA(named, s.ema) if s.ema else None
        self.captured = self._capture()
        self.step, self.val_loss = 0, math.nan

    # --- the work

    def train(self, bar=None):
        """Make all steps that are left, shown on a tqdm `bar`; returns the validation loss."""
        s, recent = self.settings, deque(maxlen=20)
        with self._events() as events:
            clock = _Clock()
            while self.step < self.steps:
                rate = self.optimizer.rates()[0]
                loss, norm, tokens = self.train_step()
                self.step += 1
                recent.append(loss)
                record = {"step": self.step, "loss": loss, "lr": rate, "grad_norm": norm}
                if self.step % s.eval_every == 0 or self.step == self.steps:
                    self.val_loss = record["val_loss"] = self.evaluate()
                record["tokens_per_second"] = clock.tick(tokens)
                self._note(record, events)
                if bar is not None:
                    self._show(bar, np.mean(recent), clock.rate)
                if self.step % s.save_every == 0 or self.step == self.steps:
                    self.save()
        return self.val_loss

    def train_step(self):
        """One update; returns the loss before it, the gradient's norm and the tokens seen.

        In float16 a step that overflows is tried again with a smaller scale of the loss.
        """
        batch = self.draw()
        before = copy.deepcopy(self.rng)
        loss, norm = self._launched(batch) or self._launches(batch, before)
        if not (math.isfinite(norm) and math.isfinite(loss)):
            self._stop(batch, loss, norm, before)
        self.scale.succeeded()
        if self.ema is not None:
            state = self.optimizer.state
            masters = {name: state[name].get("master") for name in self.named if name in state}
            self.ema.update(self.step + 1, masters)
        return loss, norm, batch["tokens"].size

    def _launches(self, batch, before):
        """(loss, norm) of an update, made by Python; before: the random numbers' state."""
        while True:
            with np.errstate(all="ignore"):  # what overflows is seen in the norm
                loss = self.gradients(batch)
                self.scale.undo(self.named.values())
            norm = optim.clip_grad_norm(self.named.values(), self.settings.clip)
            if math.isfinite(norm) and math.isfinite(loss):
                break
            if not (math.isfinite(loss) and self.scale.overflowed()):
                self._stop(batch, loss, norm, before)
            self.rng.bit_generator.state = before.bit_generator.state
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, norm

    def _launched(self, batch):
        """(loss, norm) of an update, made by a CUDA graph; None where there is none."""
        if self.captured is None:
            return None
        try:
            loss, norm = self.captured(*(batch[name] for name in self.inputs))
        except DeviceError as error:
            self.captured = kernel_by_kernel(error)
            return None
        return loss.item(), norm.item()

    def _capture(self):
        """The step as a CUDA graph, if it is for a GPU and can be one."""
        s = self.settings
        if s.device == "cpu" or not self.inputs:
            return None
        if self.scale.moves:
            return kernel_by_kernel("the scale of float16's loss depends on every norm")
        if s.accumulate > 1:
            return kernel_by_kernel("a batch in parts (--accumulate) is counted on the host")
        return Captured(self._step, self.optimizer)

    def _step(self, *arrays):
        """What the graph does: an update, and its loss and norm, at which nobody looks yet."""
        loss = self.loss(dict(zip(self.inputs, arrays, strict=True)))
        loss.backward()
        norm = optim.scale_gradients(self.named.values(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, norm

    def gradients(self, batch):
        """The batch's mean loss; its gradient times the loss scale is left on the parameters.

        L = sum_i (n_i / n) L_i over the parts of the batch, L_i the mean over the n_i losses that
        part i counts: the whole batch's mean and gradient, with one part's activations in memory.
        """
        parts = split_rows(batch, self.settings.accumulate)
        weights = [self.weight(part) for part in parts]
        total, mean = sum(weights), 0.0
        for part, weight in zip(parts, weights, strict=True):
            if not weight:
                continue
            loss = self.loss(part)
            share = weight / total
            loss.backward(namespace([loss.data]).asarray(self.scale.scale * share, loss.dtype))
            mean += share * loss.item()
        return mean

    def evaluate(self):
        """Mean loss over the validation batches, with the EMA's weights if there is one."""
        total, count = 0.0, 0
        place = self.ema.in_place() if self.ema else nullcontext()
        with no_grad(), place:
            for batch in self.validation():
                weight = self.weight(batch)
                total += self.loss(batch, evaluating=True).item() * weight
                count += weight
        return total / count

    def weight(self, batch):
        """How many losses are averaged in a batch."""
        return int((batch["targets"] != -100).sum())

    def model_options(self):
        """What every call of the model gets."""
        return {"recompute": True} if self.settings.recompute else {}

    def _stop(self, batch, loss, norm, rng):
        """FloatingPointError with the step, the texts, and what made the first NaN."""
        self.optimizer.zero_grad()
        self.rng.bit_generator.state = rng.bit_generator.state
        cause = "the gradient overflows"
        try:
            with detect_anomaly():
                self.gradients(batch)
        except FloatingPointError as error:
            cause = str(error)
        self.optimizer.zero_grad()
        state = self.folder / "state" / str(checkpoint.latest(self.folder))
        raise FloatingPointError(
            f"step {self.step + 1}: the loss is {loss}, the gradient's norm {norm}: {cause}. "
            f"The batch: {self.places(batch)}. The last good state is {state}; try a smaller --lr"
        )

    # --- the folder

    def begin(self, resume):
        """Go on from the last state, or make the folder as it is before the first step."""
        if resume:
            sweep(self.folder)
            state = checkpoint.load_state(self.folder, self.named, self.optimizer, self.ema)
            self.step = state["step"]
            self.rng.bit_generator.state = state["rng"]
            self.scale.load(state["scale"])
            self._take_up_metrics()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.forget(self.folder)
        with replacing(self.folder / "run.toml") as file:
            file.write(self.settings.to_toml().encode())
        self._metrics_file.write_bytes(b"")
        self.save()

    def save(self):
        """The model where everybody looks for it, and a state to go on from."""
        with self.ema.in_place() if self.ema else nullcontext():
            self.export(self.folder)
        more = {"rng": self.rng.bit_generator.state, "scale": self.scale.state()}
        checkpoint.save_state(self.folder, self.step, self.named, self.optimizer, self.ema, more)

    @property
    def _metrics_file(self):
        return self.folder / "metrics.jsonl"

    def _note(self, record, events):
        with self._metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if events is not None:
            for name in record.keys() - {"step"}:
                events.add_scalar(name, record[name], record["step"])

    def _show(self, bar, loss, rate):
        shown = {"loss": f"{loss:.3f}", "tok/s": f"{rate:,.0f}"}
        if not math.isnan(self.val_loss):
            shown["val"] = f"{self.val_loss:.3f}"
        bar.set_postfix(shown, refresh=False)
        bar.update()

    def _events(self):
        """A writer of TensorBoard's events, or None."""
        if not self.settings.tensorboard:
            return nullcontext()
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard needs tensorboardX: pip install 'tinygrad_ml[tensorboard]'"
            ) from error
        return closing(SummaryWriter(str(self.folder), purge_step=self.step + 1))

    def _take_up_metrics(self):
        """Forget the lines of steps that will be made again; the last validation is what it was."""
        kept = [x for x in read_metrics(self.folder) if x["step"] <= self.step]
        with replacing(self._metrics_file) as file:
            file.write("".join(json.dumps(x) + "\n" for x in kept).encode())
        self.val_loss = next((x["val_loss"] for x in reversed(kept) if "val_loss" in x), math.nan)

    def plot(self):
        """Draw loss.png; False where matplotlib is not installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        metrics = read_metrics(self.folder)
        axes.plot(*_curve(metrics, "loss"), linewidth=0.6, alpha=0.6, label="training")
        axes.plot(*_curve(metrics, "val_loss"), marker="o", markersize=3, label="validation")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.legend()
        figure.savefig(self.folder / "loss.png", dpi=120)
        return True


def kernel_by_kernel(reason):
    """None for the graph that there could be; the user is told why."""
    warnings.warn(f"steps are launched kernel by kernel: {reason}", stacklevel=2)


def split_rows(batch, parts):
    """The batch in so many parts of nearly as many rows each."""
    names = list(batch)
    columns = [np.array_split(batch[name], parts) for name in names]
    return [dict(zip(names, part, strict=True)) for part in zip(*columns, strict=True)]


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

    def __init__(self):
        self.rate, self.last = None, time.perf_counter()

    def tick(self, tokens):
        now = time.perf_counter()
        rate, self.last = tokens / (now - self.last), now
        self.rate = rate if self.rate is None else 0.95 * self.rate + 0.05 * rate
        return round(self.rate, 1)
