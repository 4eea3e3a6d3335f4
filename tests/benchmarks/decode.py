"""Tokens per second, one at a time: ours, beside what the memory allows and what others reach.

    python tests/benchmarks/decode.py [MODEL.gguf] [--tokens 48] [--rounds 3] [--json FILE]

MODEL.gguf   by default the one that `tinygrad-ml pull smollm2` brings
limit        the speed at which memory is read, measured here, over the bytes that a token needs:
             all weights, less an embedding that is not the head too
transformers the same file made dense in float32, where transformers and torch are installed
llama.cpp    the same file, where llama-cpp-python is installed

Contestants take turns, each round generates greedily from the same prompt, and the best round
counts. All use the same number of threads (OMP_NUM_THREADS, or all cores).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import tinygrad_ml as tg
from tinygrad_ml import kernels
from tinygrad_ml.cli import _keep_freed_memory
from tinygrad_ml.llama import Llama, formats, load_tokenizer
from tinygrad_ml.llama.pull import resolve

PROMPT = "The capital of France is"


def read_speed(size=1 << 28):
    """Bytes a second at which a large matrix is read by all threads, to be multiplied by a row."""
    row, matrix = np.ones((1, 4096), np.float32), np.ones((size // 16384, 4096), np.float32)
    best = np.inf
    for _ in range(7):
        start = time.perf_counter()
        tg.functional.linear(row, matrix)
        best = min(best, time.perf_counter() - start)
    return size / best


def bytes_of_a_token(path):
    _, arrays = formats.read(path)
    size = {name: x.data.nbytes for name, x in arrays.items()}
    return sum(size.values()) - (size["embedding.weight"] if "head.weight" in size else 0)


def ours(path, quantized):
    model = Llama.from_pretrained(path, quantized=quantized)
    ids = load_tokenizer(path).encode(PROMPT)

    def generate(n):
        start = time.perf_counter()
        out = model.generate([ids], 1)
        first = time.perf_counter()
        out = model.generate([ids], n + 1)
        return n / (time.perf_counter() - first - (first - start)), out[0, len(ids) :]

    return generate


def transformers(path):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(kernels.get_num_threads())
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    ids = torch.tensor([load_tokenizer(path).encode(PROMPT)])

    def run(n):
        model.generate(ids, min_new_tokens=n, max_new_tokens=n, do_sample=False)

    def generate(n):
        start = time.perf_counter()
        run(1)
        first = time.perf_counter()
        run(n + 1)
        return n / (time.perf_counter() - first - (first - start)), None

    return generate


def llama_cpp(path):
    from llama_cpp import Llama as Theirs

    threads = kernels.get_num_threads()
    model = Theirs(str(path), n_threads=threads, n_threads_batch=threads, verbose=False)
    ids = load_tokenizer(path).encode(PROMPT)

    def generate(n):
        model.reset()
        stream = model.generate(ids, temp=0.0)
        next(stream)
        start = time.perf_counter()
        found = [next(stream) for _ in range(n)]
        return n / (time.perf_counter() - start), found

    return generate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the figures to this file")
    asked = parser.parse_args()
    _keep_freed_memory()
    path = Path(resolve(asked.model))
    makers = {
        "ours, blocks": lambda: ours(path, "keep"),
        "ours, dense": lambda: ours(path, "dense"),
        "transformers, dense": lambda: transformers(path),
        "llama.cpp, blocks": lambda: llama_cpp(path),
    }
    sides = {}
    for name, make in makers.items():
        try:
            sides[name] = make()
        except ImportError as error:
            print(f"{name}: left out ({error})")
    speeds = dict.fromkeys(sides, 0.0)
    for _ in range(asked.rounds):
        for name, generate in sides.items():
            speeds[name] = max(speeds[name], generate(asked.tokens)[0])
    speed, size = read_speed(), bytes_of_a_token(path)
    print(f"{path.name}: {size / 1e6:.0f} MB a token, {kernels.get_num_threads()} threads, "
          f"level {kernels.level()}, memory read at {speed / 1e9:.1f} GB/s")  # fmt: skip
    print(f"  {'limit, blocks':22}{speed / size:8.1f} tokens/s")
    for name, found in speeds.items():
        print(f"  {name:22}{found:8.1f} tokens/s   {speeds['ours, blocks'] / found:5.2f} times as "
              "fast: ours with blocks")  # fmt: skip
    if asked.json:
        Path(asked.json).write_text(json.dumps({"limit": speed / size, **speeds}, indent=1))
    print("kernels:", ", ".join(tg.kernels_used()))


if __name__ == "__main__":
    main()
