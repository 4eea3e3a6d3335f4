"""Tables told in sentences, by a frozen model and a few trained numbers: Li & Liang 2021, small.

    python examples/06_table_to_text.py [--model M --data E2E.txt --test E2E.txt --steps N]

A model that has only read sentences learns to tell records, `slot : value | slot : value`: by
training all of it, or by LoRA, a bottleneck adapter or a prefix, with everything else frozen.
Without --model it trains one here, on the sentences of made-up records. --data and --test take
files of E2E or WebNLG; --examples is how many are learnt from.
"""

import argparse
import json
import tempfile
import time
import tracemalloc
from itertools import zip_longest
from pathlib import Path

import numpy as np

from tinygrad_ml.train import Finetuner, FinetuneSettings, Settings, Trainer
from tinygrad_ml.train.tables import Table, read_tables

# the learning rate is each method's own: a few numbers must move further
METHODS = {"full": ("", 1e-3), "lora": ("rank=8 alpha=16", 5e-3), "adapter": ("", 5e-3),
           "prefix": ("length=16", 2e-2)}  # fmt: skip


def made_up(count, seed):
    rng, values = np.random.default_rng(seed), ("Alba Bibi Corvo", "fish rice soup", "hill river")
    for _ in range(count):
        name, food, area = (str(rng.choice(x.split())) for x in values)
        told = f"{name} by the {area} serves {food} ."
        yield Table(f"name : {name} | food : {food} | area : {area}", (told,))


def base_model(tables, folder):
    (folder / "sentences.txt").write_text("\n".join(t for table in tables for t in table.texts))
    text = str(folder / "sentences.txt")
    Trainer(Settings(data=text, dim=64, layers=2, steps=200, lr=5e-3), folder / "base").train()
    return folder / "base"


def tuned(method, model, lines, folder, steps):
    """The Finetuner after its steps, how long a step took, and its peak of memory in MB."""
    options, lr = METHODS[method]
    settings = FinetuneSettings(
        model=str(model), data=str(lines), method=method, method_options=options, lr=lr,
        context=128, epochs=max(1, steps * 8 // len(lines.read_text().splitlines())),
    )  # fmt: skip
    tuner = Finetuner(settings, folder / method)
    tracemalloc.start()
    tuner.gradients(tuner.draw())
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    tuner.optimizer.zero_grad()
    start, _ = time.perf_counter(), tuner.train()
    return tuner, (time.perf_counter() - start) / tuner.steps * 1e3, peak


def told(tuner, table):
    ids, end = tuner.tokenizer, tuner.tokenizer.eos[:1]
    prompt = [ids.bos] * (ids.bos is not None) + ids.encode(table.source + " => ")
    answer = tuner.model.generate([prompt], 80, eos=end)[0, len(prompt) :].tolist()
    return ids.decode([x for x in answer if x not in end]).strip()


def bleu(texts, tables):
    from sacrebleu import corpus_bleu  # pip install 'tinygrad_ml[eval]'

    columns = zip_longest(*(t.texts for t in tables))
    return corpus_bleu(texts, [list(column) for column in columns]).score


def main(model, data, test, steps, examples):
    known = read_tables(data) if data else list(made_up(300, seed=0))
    unknown = read_tables(test)[:40] if test else list(made_up(10, seed=1))
    with tempfile.TemporaryDirectory() as name:
        folder, samples = Path(name), {}
        rows = [{"prompt": t.source + " => ", "completion": x} for t in known for x in t.texts]
        order = np.random.default_rng(0).permutation(len(rows))[:examples]
        (folder / "lines").write_text("".join(json.dumps(rows[i]) + "\n" for i in order))
        model = model or base_model(known, folder)
        print("method       trained    loss  ms/step     MB   BLEU")
        for method in METHODS:
            tuner, took, peak = tuned(method, model, folder / "lines", folder, steps)
            samples[method] = [told(tuner, table) for table in unknown]
            count = sum(p.size for p in tuner.named.values())
            score = f"{bleu(samples[method], unknown):7.1f}" if test else ""
            print(f"{method:10}{count:10,}{tuner.val_loss:8.3f}{took:9.0f}{peak:7.1f}{score}")
        lines = [f"  {method:10}{texts[0]}" for method, texts in samples.items()]
        print("", unknown[0].source, *lines, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for flag, default in [("model", ""), ("data", ""), ("test", ""), ("steps", 150),
                          ("examples", 10**6)]:  # fmt: skip
        parser.add_argument("--" + flag, type=type(default), default=default)
    main(**vars(parser.parse_args()))
