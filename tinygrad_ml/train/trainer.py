"""Training a LLaMA from scratch into a run folder, which is a model folder with a history.

config.json  model.safetensors  tokenizer.json     the model: generate and from_pretrained
and what every run has (run.py)
"""

from pathlib import Path

import numpy as np

from ..llama import BPETokenizer, ByteTokenizer, Llama, load_tokenizer
from . import data
from .run import Run, kernel_by_kernel


class Trainer(Run):
    """A run: made new, or taken up again where its last checkpoint left it.

    Everything that can be wrong with the settings or the text is found before a file is written.
    """

    inputs = ("tokens", "targets")

    def __init__(self, settings, run, *, resume=False):
        s, run = settings, Path(run)
        ids, self.tokenizer = _read(s, run if resume else None)
        self.train_ids, self.held_out_ids = data.split(ids, s.context, s.held_out)
        self.rng = np.random.default_rng(s.seed)
        config = s.config(self.tokenizer.vocab_size, self.tokenizer.eos)
        model = Llama(config, rng=self.rng, dtype=s.dtype, device=s.device)
        super().__init__(s, run, model, dict(model.named_parameters()), s.steps)
        self.begin(resume)

    def _capture(self):
        if self.settings.documents and self.settings.device != "cpu":
            return kernel_by_kernel("who sees whom within --documents is worked out on the host")
        return super()._capture()

    def draw(self):
        """Texts from random places."""
        s = self.settings
        starts = data.draw_starts(self.train_ids, s.batch_size, s.context, self.rng)
        tokens, targets = data.batch_at(self.train_ids, starts, s.context)
        return self._with_segments({"tokens": tokens, "targets": targets, "starts": starts})

    def validation(self):
        """The first batches of the held-out text."""
        s = self.settings
        batches = data.in_order(self.held_out_ids, s.batch_size, s.context, s.eval_batches)
        for tokens, targets in batches:
            yield self._with_segments({"tokens": tokens, "targets": targets})

    def _with_segments(self, batch):
        if self.settings.documents:
            batch["segments"] = data.segments(batch["tokens"], self.tokenizer.eos)
        return batch

    def loss(self, batch, evaluating=False):
        """-log p of a token, averaged."""
        return self.model.loss(
            batch["tokens"],
            batch["targets"],
            segments=batch.get("segments"),
            rng=None if evaluating else self.rng,
            **self.model_options(),
        )

    def places(self, batch):
        return f"texts that begin at tokens {batch['starts'].tolist()} of the training part"

    def export(self, folder):
        self.tokenizer.save(folder / "tokenizer.json")
        self.model.save_pretrained(folder)

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


def _read(settings, run):
    """(ids, tokenizer) of the data; of a run that goes on, its own tokenizer."""
    s = settings
    if s.data and Path(s.data).is_dir():
        tokenizer = load_tokenizer(s.data)
        return data.read_prepared(s.data, tokenizer.vocab_size), tokenizer
    documents = data.read_corpus(s.data)
    if run is not None:
        tokenizer = load_tokenizer(run)
    elif s.tokenizer == "bytes":
        tokenizer = ByteTokenizer()
    else:
        tokenizer = BPETokenizer.train(documents, s.vocab_size)
    return data.tokenize(documents, tokenizer), tokenizer
