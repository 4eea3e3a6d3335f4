"""Fine-tuning a model on examples (supervised) or on preferences (DPO), whole or by an adapter.

--method full     the run folder is a model folder
--method lora...  the run folder is an adapter's, as Hugging Face's peft has it
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import peft
from ..autograd import no_grad
from ..llama import Llama, load_tokenizer
from ..llama.pull import resolve
from ..quant import QUANTIZE
from ..quantized import quantize
from . import examples
from .preference import answer_log_probabilities, preference_loss
from .run import Run
from .settings import Loop, expect, setting


@dataclass(frozen=True)
class FinetuneSettings(Loop):
    """What fine-tuning depends on; every one is a flag of `tinygrad-ml finetune`."""

    model: str = setting("", "model to begin with: a folder, a file, or a pulled name")
    tokenizer: str = setting("", "its file (default: in or beside the model)")
    data: str = setting("", "lines of JSON: prompt and completion, or messages, or preferences")
    objective: str = setting("sft", "sft: learn the answers; dpo: chosen against rejected ones")
    method: str = setting("full", "full, or " + ", ".join(peft.METHODS))
    method_options: str = setting("", 'of the adapter, such as "rank=16 alpha=32" (default: none)')
    quantize: str = setting("", "nf4 or q8_0: hold the frozen weights so (default: as they come)")
    packed: bool = setting(False, "short examples share a row")
    context: int = setting(256, "longest example; what is longer is cut")
    epochs: int = setting(3, "times that every example is seen")
    beta: float = setting(0.1, "DPO: how far the model may go from where it began")
    nll: float = setting(0.2, "DPO: weight of the chosen answer's own loss")
    lr: float = setting(1e-4, "highest learning rate")
    warmup: int = setting(10, "steps until the highest learning rate")
    weight_decay: float = setting(0.0, "AdamW's decay of the matrices")
    beta2: float = setting(0.999, "AdamW's decay of the mean squared gradient")

    def __post_init__(self):
        super().__post_init__()
        for name in ("context", "epochs"):
            expect(self, name, getattr(self, name) >= 1, "1 or more")
        for name in ("model", "data"):
            expect(self, name, getattr(self, name), f"--{name}, which has no default")
        expect(self, "objective", self.objective in ("sft", "dpo"), "'sft' or 'dpo'")
        known = ("full", *peft.METHODS)
        expect(self, "method", self.method in known, f"one of {', '.join(known)}")
        expect(self, "packed", not (self.packed and self.objective == "dpo"), "False for dpo")
        formats = ("", *map(str.lower, QUANTIZE))
        expect(self, "quantize", self.quantize in formats, "'nf4' or 'q8_0'")
        if self.method != "full":
            self.adapter()
        else:
            expect(self, "quantize", not self.quantize, "none with --method full, which trains all")

    def adapter(self):
        """The config of the adapter."""
        given = dict(pair.partition("=")[::2] for pair in self.method_options.split())
        return peft.config(self.method, **{name: _value(x) for name, x in given.items()})


def _value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


class Finetuner(Run):
    """A run of fine-tuning. The examples' order is the seed's and the epoch's alone, so that the
    step says where in the data a run is.
    """

    def __init__(self, settings, run, *, resume=False):
        s = settings
        path = resolve(s.model)
        self.tokenizer = load_tokenizer(s.tokenizer or path)
        self.rng = np.random.default_rng(s.seed)
        writer = examples.Writer(path, self.tokenizer)
        kind = writer.preference if s.objective == "dpo" else writer.supervised
        found = examples.read_lines(s.data, kind)
        kept = "dense" if s.method == "full" else "keep"
        model = Llama.from_pretrained(path, dtype=s.dtype, device=s.device, quantized=kept)
        if s.quantize:
            quantize(model, s.quantize.upper())
        expect(s, "context", s.context <= model.config.max_length,
               f"at most the model's {model.config.max_length}")  # fmt: skip
        if s.objective == "dpo":
            found = self._with_references(s, model, found)
        order = np.random.default_rng(s.seed).permutation(len(found))
        held_out = max(1, round(s.held_out * len(found)))
        self.rows = self._rows(s, [found[i] for i in order[held_out:]])
        self.held_out = self._rows(s, [found[i] for i in order[:held_out]])
        if s.method == "full":
            named = dict(model.named_parameters())
        else:
            model = peft.attach(model, s.adapter(), rng=self.rng)
            named = dict(model.trained())
        steps = s.epochs * -(-len(self.rows) // s.batch_size)
        super().__init__(s, Path(run), model, named, steps)
        self.begin(resume)

    @staticmethod
    def _rows(s, found):
        """What a batch takes so many of: examples, or packed rows."""
        if not s.packed:
            return found
        packed = examples.pack(found, s.context)
        return [{name: x[i] for name, x in packed.items()} for i in range(len(packed["tokens"]))]

    @staticmethod
    def _with_references(s, model, pairs):
        """Triples (chosen, rejected, log p (2,) of both) by the model before it is changed."""
        found = []
        with no_grad():
            for pair in pairs:
                each = [
                    answer_log_probabilities(model, examples.padded([x], s.context))[0].item()
                    for x in pair
                ]
                found.append((*pair, np.array(each)))
        return found

    # --- what Run asks

    def draw(self):
        """The step's share of the epoch's order."""
        s, each = self.settings, -(-len(self.rows) // self.settings.batch_size)
        epoch, i = divmod(self.step, each)
        order = np.random.default_rng([s.seed, epoch]).permutation(len(self.rows))
        chosen = order[i * s.batch_size : (i + 1) * s.batch_size]
        return self._batch([self.rows[j] for j in chosen]) | {"rows": chosen}

    def validation(self):
        """The first batches of the examples that were held out."""
        s = self.settings
        for i in range(0, min(len(self.held_out), s.eval_batches * s.batch_size), s.batch_size):
            yield self._batch(self.held_out[i : i + s.batch_size])

    def _batch(self, rows):
        """tokens, targets and mask or segments, (b, t) each; of preferences those of the chosen
        answers, under rejected_... those of the others, and references (b, 2).
        """
        s = self.settings
        if s.packed:
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if s.objective == "sft":
            return examples.padded(rows, s.context)
        sides = examples.padded([row[i] for i in (0, 1) for row in rows], s.context)
        half = len(rows)
        batch = {f"rejected_{name}": x[half:] for name, x in sides.items()}
        references = np.stack([row[2] for row in rows])
        return batch | {name: x[:half] for name, x in sides.items()} | {"references": references}

    def weight(self, batch):
        """A preference counts as one, of other examples each token that is learnt."""
        if self.settings.objective == "dpo":
            return len(batch["tokens"])
        return super().weight(batch)

    def loss(self, batch, evaluating=False):
        """-log p of a learnt token, averaged; of preferences preference_loss."""
        s = self.settings
        options = self.model_options() | {"rng": None if evaluating else self.rng}
        if s.objective == "dpo":
            sides = [{name: batch[side + name] for name in ("tokens", "targets", "mask")}
                     for side in ("", "rejected_")]  # fmt: skip
            return preference_loss(
                self.model, *sides, batch["references"], beta=s.beta, nll=s.nll, **options
            )
        options |= {name: batch[name] for name in ("mask", "segments") if name in batch}
        return self.model.loss(batch["tokens"], batch["targets"], **options)

    def places(self, batch):
        return f"rows {batch['rows'].tolist()} of the training part"

    def export(self, folder):
        self.tokenizer.save(folder / "tokenizer.json")
        if self.settings.method == "full":
            self.model.save_pretrained(folder)
        else:
            peft.save(self.model, folder)
