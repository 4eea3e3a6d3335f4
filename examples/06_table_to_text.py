"""Tables told in sentences, by a frozen model and a few trained numbers: Li & Liang 2021, small.

    python examples/06_table_to_text.py [--model M --data FILE --test FILE --steps N]

A model that has only read sentences learns to tell records, `slot : value | slot : value`: by
training all of it, or by LoRA, an adapter or a prefix, with everything else frozen. Without --model
it trains one here, on made-up sentences. --data and --test take files of E2E or WebNLG, whose
unseen categories are scored apart; --examples are learnt from, --lr-scale times the rates.
"""

import argparse
import json
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from tinygrad_ml.train import Finetuner, FinetuneSettings, Settings, Trainer
from tinygrad_ml.train.tables import Table, bleu, read_tables

METHODS = {"full": ("", 1e-3), "lora": ("rank=8 alpha=16", 5e-3), "adapter": ("", 5e-3),
           "prefix": ("length=16", 2e-2)}  # a few numbers must move further    # fmt: skip


def made_up(count, seed):
    rng, values = np.random.default_rng(seed), ("Alba Bibi Corvo", "fish rice soup", "hill river")
    for _ in range(count):
        n, f, a = (str(rng.choice(x.split())) for x in values)
        yield Table(f"name : {n} | food : {f} | area : {a}", (f"{n} by the {a} serves {f} .",))


def base_model(tables, run):
    text = run.with_suffix(".txt")
    text.write_text("\n".join(t for table in tables for t in table.texts))
    Trainer(Settings(data=str(text), dim=64, layers=2, context=384, batch_size=4, steps=150,
                     lr=5e-3), run).train()  # fmt: skip
    return run


def tuned(method, model, lines, folder, steps, lr_scale):
    """The Finetuner after its steps, how long a step took, and its peak of memory in MB."""
    options, lr = METHODS[method]
    epochs = max(1, steps * 8 // len(lines.read_text().splitlines()))
    tuner = Finetuner(FinetuneSettings(
        model=str(model), data=str(lines), method=method, method_options=options,
        lr=lr * lr_scale, context=384, epochs=epochs), folder / method)  # fmt: skip
    tracemalloc.start()
    tuner.gradients(tuner.draw())
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    tuner.optimizer.zero_grad()
    start, _ = time.perf_counter(), tuner.train()
    return tuner, (time.perf_counter() - start) / tuner.steps * 1e3, peak


def told(tuner, tables):
    """What the model says of each table, all of them in one batch."""
    ids, end = tuner.tokenizer, tuner.tokenizer.eos[:1]
    begin = [ids.bos] * (ids.bos is not None)
    prompts = [begin + ids.encode(table.source + " => ") for table in tables]
    answers = tuner.model.generate(prompts, 80, eos=end)[:, max(map(len, prompts)) :]
    return [ids.decode([x for x in row if x not in end]).strip() for row in answers.tolist()]


def read(path, count):
    """The file's tables, but those too long for a small context; made-up ones if there is none."""
    tables = read_tables(path) if path else made_up(count, seed=count)
    return [table for table in tables if len(table.source) < 400]


def main(model, data, test, steps, examples, lr_scale):
    known, asked = read(data, 300), {}
    seen = {table.category for table in known}
    for table in read(test, 10):
        asked.setdefault("BLEU" if table.category in seen else "unseen", []).append(table)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows = [{"prompt": t.source + " => ", "completion": x} for t in known for x in t.texts]
        rows = np.random.default_rng(0).permutation(rows)[:examples]
        (folder / "lines").write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = model or base_model(known, folder / "base")
        for method in METHODS:
            tuner, took, peak = tuned(method, model, folder / "lines", folder, steps, lr_scale)
            count = sum(p.size for p in tuner.named.values())
            print(f"{method:8}{count:11,}{tuner.val_loss:9.3f}{took:9.0f} ms{peak:9.1f} MB")
            for part, tables in asked.items():
                tables = tables[:: max(1, len(tables) // 40)][:40]  # evenly from all
                texts = told(tuner, tables)
                score = f"{part} {bleu(texts, tables):.1f}" if test else ""
                print(f"{score:>20}   {tables[0].source} => {texts[0]}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for flag, default in [("model", ""), ("data", ""), ("test", ""), ("steps", 150),
                          ("examples", 10**6), ("lr-scale", 1.0)]:  # fmt: skip
        parser.add_argument("--" + flag, type=type(default), default=default)
    main(**vars(parser.parse_args()))
