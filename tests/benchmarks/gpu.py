"""The CUDA kernels and what is built of them, on the GPU that is here, beside its limits and torch.

    python tests/benchmarks/gpu.py PART ... [--json FILE] [--size full|tiny]
    python tests/benchmarks/gpu.py table FILE ...      the rows for kernels/README.md
    python tests/benchmarks/gpu.py expected            what an H100 allows, by bytes and operations

PART    kernels, graph, train-15M, train-125M, train-1B, decode, som
time    the median of device events, warm, inputs in rotation so that none is in the cache
limit   bytes at the speed of a copy and operations at the rate of a bfloat16 product, both measured
        in the same run; the greater of the two times, over the time
torch   the same in torch on the same GPU (eager, compiled, its flash attention), where it is

--stand-in rehearses it without a GPU, over the simulator: that it runs, not how fast.
"""

import argparse
import datetime
import functools
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

TESTS = Path(__file__).parents[1]
H100 = {"bytes": 3.35e12, "flops": 989e12, "flops32": 67e12}  # a second; SXM, dense
SIZES = {
    "full": SimpleNamespace(rows=16384, d=4096, v=32000, b=4, h=32, g=8, t=4096, k=128,
                            n=125_000_000, samples=1_000_000, features=64, side=100,
                            copy=1 << 30, repeats=30),
    "tiny": SimpleNamespace(rows=4, d=16, v=24, b=1, h=2, g=1, t=8, k=16,
                            n=300, samples=40, features=3, side=3, copy=1 << 12, repeats=2),
}  # fmt: skip


# ------------------------------------------------------------------------------------- the cases


class Case(NamedTuple):
    """One thing to be timed: run(*arrays) of these shapes, and what it cannot do without."""

    name: str
    run: Any
    shapes: list
    bytes: float
    flops: float = 0.0
    torch: Any = None
    flops32: float = 0.0
    dtype: str = "bfloat16"


def cases(s):
    """The kernels at one size; s: the lengths, as in SIZES."""
    import tinygrad_ml as tg
    from tinygrad_ml import functional as F

    x, table, heads, keys = (s.rows, s.d), (s.v, s.d), (s.b, s.h, s.t, s.k), (s.b, s.g, s.t, s.k)
    n, logits = s.rows * s.d, 2.0 * s.rows * s.d * s.v
    seen = 2.0 * s.b * s.h * s.t**2 * s.k  # both products, of the half that is seen
    moved = 2 * s.b * s.t * s.k * (2 * s.h + 2 * s.g)  # q, k, v and y, in bytes
    turn = (s.t, s.k // 2)
    T = SimpleNamespace(**{name: _in_torch(name) for name in TORCH})
    norm = lambda x, w: F.rms_norm(x, w)
    causal = lambda q, k, v: F.attention(q, k, v, causal=True)
    drop = lambda x: F.dropout(x, 0.1, np.random.default_rng(0))
    ids = lambda w: F.embedding(w, tg.tensor(np.arange(s.rows) * 7919 % s.v, device=w.device))
    loss = lambda x, w: F.linear_cross_entropy(
        x, w, tg.tensor(np.arange(s.rows) * 31 % s.v, device=x.device)
    )
    return [
        Case("RMSNorm", norm, [x, (s.d,)], 4 * n, torch=T.rms_norm),
        Case("RMSNorm, both ways", both(norm), [x, (s.d,)], 10 * n, torch=T.rms_norm_both),
        Case("residual + RMSNorm", F.add_rms_norm, [x, x, (s.d,)], 8 * n),
        Case("SwiGLU", F.swiglu, [x, x], 6 * n, torch=T.swiglu),
        Case("SwiGLU, both ways", both(F.swiglu), [x, x], 16 * n, torch=T.swiglu_both),
        Case("RoPE", F.rope, [heads, turn, turn], 4 * math.prod(heads)),
        Case("dropout", drop, [x], 4 * n, torch=T.dropout),
        Case("embedding, both ways", both(ids), [table], 6 * n + 2 * s.v * s.d),
        Case("linear + cross-entropy, both ways", both(loss), [x, table], 0, 3 * logits,
             torch=T.cross_entropy_both),
        Case("attention", causal, [heads, keys, keys], moved, seen, torch=T.attention),
        Case("attention, both ways", both(causal), [heads, keys, keys], 4 * moved, 3.5 * seen,
             torch=T.attention_both),
        Case("AdamW", adamw(s), [], 28.0 * s.n, dtype="float32"),
        Case("one row times Q8_0", quantised(s), [(1, 32 * s.d)], 34.0 * s.d * s.d,
             dtype="float32"),
        Case("best-matching units", matching, [(s.samples, s.features), (s.side**2, s.features)],
             4.0 * s.samples * s.features, flops32=4.0 * s.samples * s.side**2 * s.features,
             dtype="float32"),
    ]  # fmt: skip


def both(f):
    """f and its gradients, for a cotangent of ones."""
    import tinygrad_ml as tg

    def run(*xs):
        y = f(*xs)
        return tg.grad(y, list(xs), cotangent=tg.ones(y.shape, dtype=y.dtype, device=y.device))

    return run


def adamw(s):
    def make(device):
        import tinygrad_ml as tg
        from tinygrad_ml import optim

        weights = [tg.zeros((s.n // 3,), device=device, requires_grad=True) for _ in range(3)]
        for w in weights:
            w.grad = tg.ones(w.shape, device=device)
        return optim.AdamW(weights).step

    make.of_device = True
    return make


def quantised(s):
    def make(device):
        import tinygrad_ml as tg
        from tinygrad_ml import quant

        blocks = np.zeros((s.d, s.d, 34), np.uint8)
        blocks[..., 2:] = np.arange(32)
        blocks[..., 1] = 60  # a scale of 1
        there = tg.tensor(blocks.reshape(s.d, -1), device=device).data
        return lambda x: quant.quantized_matmul(x, blocks=there, format="Q8_0")

    make.of_device = True
    return make


def matching(X, codebook):
    from tinygrad_ml.estimators.som_training import best_matching_units

    return best_matching_units(X.data, codebook.data)


# ------------------------------------------------------------------------------------ in torch


def _norm(F, x, w):
    return F.rms_norm(x, w.shape, w, 1e-5)


def _attention(F, q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def _cross_entropy(F, x, w):
    import torch

    targets = torch.arange(len(x), device=x.device) * 31 % len(w)
    return F.cross_entropy((x @ w.T).float(), targets)


TORCH = {
    "rms_norm": _norm,
    "rms_norm_both": _norm,
    "swiglu": lambda F, a, b: F.silu(a) * b,
    "swiglu_both": lambda F, a, b: F.silu(a) * b,
    "dropout": lambda F, x: F.dropout(x, 0.1),
    "attention": _attention,
    "attention_both": _attention,
    "cross_entropy_both": _cross_entropy,
}


def _in_torch(name):
    """(compile or not) -> the function of torch's tensors, with its gradients if so named."""

    def make(compiled):
        import torch
        import torch.nn.functional as F

        forward = lambda *xs: TORCH[name](F, *xs)
        forward = torch.compile(forward) if compiled else forward
        if not name.endswith("_both"):
            return forward

        def run(*xs):
            y = forward(*xs)
            return torch.autograd.grad(y, xs, torch.ones_like(y))

        return run

    return make


def torch_with_cuda():
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


# ------------------------------------------------------------------------------------- the clock


def median(run, inputs, repeats, flush=None):
    """Seconds on the device of run(*inputs[i]), the inputs in rotation.

    Everything is queued before anything is waited for, and a write to `flush` goes ahead of each:
    the host is then never behind the device, and nothing is left in the cache.
    """
    import cupy

    for i in range(3):
        run(*inputs[i % len(inputs)])
    events = [[cupy.cuda.Event() for _ in range(2)] for _ in range(repeats)]
    for i, (begin, end) in enumerate(events):
        if flush is not None:
            flush.fill(0)
        begin.record()
        run(*inputs[i % len(inputs)])
        end.record()
    end.synchronize()
    return statistics.median(cupy.cuda.get_elapsed_time(*pair) for pair in events) / 1e3


def throughput(run, repeats):
    """Seconds of a run() in a row of them, by the host's clock: what a training loop waits for."""
    import cupy

    wait = cupy.cuda.Device().synchronize
    for _ in range(3):
        run()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    wait()
    return (time.perf_counter() - start) / repeats


def rotation(case, s):
    """Sets of inputs, enough of them to fill 256 MB, which no cache holds."""
    import tinygrad_ml as tg

    bytes_of_one = sum(math.prod(shape) for shape in case.shapes) * 2 or 1
    sets = 2 if s.copy < 1 << 20 else max(2, min(8, (1 << 28) // bytes_of_one))
    make = lambda shape: tg.tensor(
        noise(shape), dtype=case.dtype, device="cuda", requires_grad=True
    )
    return [[make(shape) for shape in case.shapes] for _ in range(sets)]


@functools.cache
def _numbers():
    return np.random.default_rng(0).standard_normal(1_000_003, "f4")  # a prime: no row is another


def noise(shape):
    """Normal numbers, soon made however many they are."""
    return np.resize(_numbers(), shape)


def limits(s):
    """Bytes a second of a copy, operations a second of a product: {"bytes", "flops", "flops32"}"""
    import tinygrad_ml as tg

    pairs = [[tg.zeros((s.copy // 4,), device="cuda").data for _ in range(2)] for _ in range(2)]
    copied = median(lambda a, b: b.__setitem__(..., a), pairs, s.repeats)
    m = min(8192, s.d * 2)
    found = {"bytes": 2 * s.copy / copied}
    for name, dtype in (("flops", "bfloat16"), ("flops32", "float32")):
        a, b = (tg.tensor(noise((m, m)), dtype=dtype, device="cuda") for _ in range(2))
        found[name] = 2.0 * m**3 / median(lambda a, b: a @ b, [[a, b]], s.repeats)
    return found


# ------------------------------------------------------------------------------------- the parts


def kernels(s, reached):
    for case in cases(s):
        yield guarded(case.name, lambda case=case: one_kernel(case, s, reached))


def one_kernel(case, s, reached):
    import tinygrad_ml as tg

    run = case.run("cuda") if hasattr(case.run, "of_device") else case.run
    inputs = rotation(case, s)
    flush = tg.zeros((s.copy // 4,), device="cuda").data
    took = median(run, inputs, s.repeats, flush)
    row = {"ms": 1e3 * took, "of_limit": least(case, reached) / took}
    torch = torch_with_cuda()
    if torch is not None and case.torch is not None:
        given = [[torch.from_dlpack(x.detach()).requires_grad_() for x in xs] for xs in inputs]
        for kind in s.torch:
            try:
                theirs = median(case.torch(kind == "compiled"), given, s.repeats, flush)
            except Exception as error:
                row[f"torch_{kind}_failed"] = f"{type(error).__name__}: {error}"[:200]
            else:
                row[f"of_torch_{kind}"] = theirs / took
    return row


def least(case, rates):
    """Seconds below which nothing can do it."""
    return max(case.bytes / rates["bytes"], case.flops / rates["flops"],
               case.flops32 / rates["flops32"])  # fmt: skip


MODELS = {  # the model, batch, context
    "15M": (dict(vocab_size=32000, dim=288, n_layers=6, n_heads=6, hidden_dim=768), 64, 256),
    "125M": (dict(vocab_size=32000, dim=768, n_layers=12, n_heads=12, hidden_dim=2048), 16, 1024),
    "1B": (dict(vocab_size=32000, dim=2048, n_layers=16, n_heads=32, n_kv_heads=8,
                hidden_dim=8192), 4, 2048),
}  # fmt: skip
TINY = (dict(vocab_size=20, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=24), 1, 4)


def model_of(name, s):
    """(its LlamaConfig, batch, context)"""
    from tinygrad_ml.llama import LlamaConfig

    settings, b, t = TINY if s.copy < 1 << 20 else MODELS[name]
    return LlamaConfig(**settings), b, t


def weights(config):
    """{name: array} of a model, of the size that a fresh one's are."""
    from tinygrad_ml.llama import Llama

    model = Llama(config, rng=None)
    return {
        name: noise(p.shape) * np.float32(0.02) if p.ndim == 2 else np.ones(p.shape, "f4")
        for name, p in model.named_parameters()
    }


def torch_training(name, s, compiled):
    """A step of the same model in torch: float32 weights, products of bfloat16 by autocast."""
    from train_step import torch_step

    config, b, t = model_of(name, s)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (b, t + 1))
    given = (weights(config), ids[:, :-1].copy(), ids[:, 1:].copy())
    return torch_step(config, *given, compiled=compiled, device="cuda")


def training(name, s):
    """(a step in bfloat16, its arguments, the optimiser, operations of a step, tokens)"""
    import tinygrad_ml as tg
    from tinygrad_ml import optim
    from tinygrad_ml.llama import Llama

    config, b, t = model_of(name, s)
    model = Llama(config, rng=None, dtype="bfloat16", device="cuda")
    model.load_state_dict(weights(config))
    optimizer = optim.AdamW(model.named_parameters(), lr=1e-3)

    def step(tokens, targets):
        loss = model.loss(tokens, targets)
        loss.backward()
        optim.scale_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    ids = np.random.default_rng(1).integers(0, config.vocab_size, (b, t + 1))
    arrays = [tg.tensor(a, device="cuda") for a in (ids[:, :-1], ids[:, 1:])]
    count = sum(p.size for p in model.parameters()) - config.vocab_size * config.dim
    flops = 6.0 * b * t * count + 6.0 * b * t * t * config.dim * config.n_layers
    return step, arrays, optimizer, flops, b * t


def train(name):
    def part(s, reached):
        def row(captured):
            from tinygrad_ml.train import Captured

            step, arrays, optimizer, flops, tokens = training(name, s)
            step = Captured(step, optimizer) if captured else step
            took = throughput(lambda: step(*arrays), s.repeats // 3 or 1)
            start = time.perf_counter()
            step(*arrays)
            host = time.perf_counter() - start
            return {"ms": 1e3 * took, "of_limit": flops / reached["flops"] / took,
                    "tokens_per_second": tokens / took, "host_ms": 1e3 * host}  # fmt: skip

        theirs = {}
        for kind in s.torch if torch_with_cuda() else ():
            step = guarded(kind, lambda kind=kind: torch_training(name, s, kind == "compiled"))[1]
            if callable(step):
                theirs[f"of_torch_{kind}"] = 1e3 * throughput(step, s.repeats // 3 or 1)
        for label, captured in (
            (f"a step of {name}", False),
            (f"a step of {name}, captured", True),
        ):
            found = guarded(label, lambda captured=captured: row(captured))[1]
            ratios = {k: ms / found["ms"] for k, ms in theirs.items() if "ms" in found}
            yield label, found | ratios

    return part


def graph(s, reached):
    """Whether launches of a graph are the steps, to the bit."""

    def equal():
        from tinygrad_ml.train import Captured

        (eager, arrays, *_), (again, _, optimizer, *_) = training("15M", s), training("15M", s)
        captured = Captured(again, optimizer)
        losses = [(eager(*arrays).item(), captured(*arrays).item()) for _ in range(3)]
        return {"equal": all(a == b for a, b in losses)}

    yield guarded("a graph's launches equal the steps", equal)


def decode(s, reached):
    def tokens():
        from tinygrad_ml.llama import Llama

        config, *_ = model_of("1B", s)
        model = Llama(config, rng=None, dtype="bfloat16", device="cuda")
        model.load_state_dict(weights(config))
        count, seconds = 64 if s.copy >= 1 << 20 else 2, []
        for n in (1, 1, count + 1):
            start = time.perf_counter()
            model.generate([[1, 2, 3]], n, eos=())
            seconds.append(time.perf_counter() - start)
        each = max(seconds[2] - seconds[1], 1e-9) / count
        size = sum(p.nbytes for p in model.parameters())
        return {"ms": 1e3 * each, "of_limit": size / reached["bytes"] / each,
                "tokens_per_second": 1 / each}  # fmt: skip

    yield guarded("decoding 1B, one row", tokens)


def som(s, reached):
    def epoch():
        import cupy

        from tinygrad_ml.estimators import SOM

        X = cupy.asarray(np.random.default_rng(0).standard_normal((s.samples, s.features), "f4"))
        seconds = []
        for epochs in (1, 2, 4):
            start = time.perf_counter()
            SOM((s.side, s.side), max_iter=epochs, init="samples", random_state=0).fit(X)
            seconds.append(time.perf_counter() - start)
        each = max(seconds[2] - seconds[1], 1e-9) / 2
        flops = 4.0 * s.samples * s.side**2 * s.features
        return {"ms": 1e3 * each, "of_limit": flops / reached["flops32"] / each}

    yield guarded("an epoch of a map", epoch)


def guarded(name, measure):
    """(name, its row), or what went wrong: the next one is measured all the same."""
    try:
        return name, measure()
    except Exception as error:
        return name, {"failed": f"{type(error).__name__}: {error}"[:300]}


PARTS = {
    "kernels": kernels,
    "graph": graph,
    "train-15M": train("15M"),
    "train-125M": train("125M"),
    "decode": decode,
    "som": som,
    "train-1B": train("1B"),
}


# ---------------------------------------------------------------------------------- the results


def about(stand_in):
    """Where and of what these numbers are."""
    import cupy

    commit = subprocess.run(["git", "-C", str(TESTS), "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True).stdout.strip()  # fmt: skip
    when = datetime.datetime.now(datetime.UTC).date().isoformat()
    if stand_in:
        return {"device": "simulated", "driver": "none", "date": when, "commit": commit}
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return {"device": properties["name"].decode(), "driver": cupy.cuda.runtime.driverGetVersion(),
            "date": when, "commit": commit}  # fmt: skip


def table(paths):
    """Rows for kernels/README.md, from files of results."""
    yield "| | ms | of the limit | torch eager | torch compiled | device, driver, date, commit |"
    yield "|---|---|---|---|---|---|"
    for path in paths:
        found = json.loads(Path(path).read_text())
        place = ", ".join(str(found["about"][k]) for k in ("device", "driver", "date", "commit"))
        for name, row in found["rows"].items():
            if "ms" not in row:
                said = row.get("failed", row.get("equal", row.get("note")))
                yield f"| {name} | {said} | | | | {place} |"
                continue
            ratios = [f"{row[k]:.2f}" if k in row else ""
                      for k in ("of_limit", "of_torch_eager", "of_torch_compiled")]  # fmt: skip
            yield f"| {name} | {row['ms']:.3g} | {' | '.join(ratios)} | {place} |"


def expected(s):
    """The least times of an H100 at its data sheet's rates."""
    yield "| kernel | arrays | bytes | operations | least time, us |"
    yield "|---|---|---|---|---|"
    for case in cases(s):
        shapes = ", ".join("x".join(map(str, shape)) for shape in case.shapes) or f"{s.n:,} numbers"
        flops = case.flops or case.flops32
        yield (f"| {case.name} | {shapes} | {case.bytes:.2g} | {flops:.2g} | "
               f"{1e6 * least(case, H100):.0f} |")  # fmt: skip


def measured(parts, s, stand_in):
    reached = limits(s)
    copy, *rates = (x / 1e12 for x in (reached["bytes"], reached["flops"], reached["flops32"]))
    print(f"a copy {copy:.3g} TB/s, products of bfloat16 and float32 {rates} TFLOP/s")
    rows = {}
    for part in parts:
        for name, row in PARTS[part](s, reached):
            rows[name] = row
            print(name, *(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
                          for k, v in row.items()), flush=True)  # fmt: skip
    return {"about": about(stand_in), "limits": reached, "rows": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("parts", nargs="+", metavar="PART")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--stand-in", action="store_true")
    parser.add_argument("--torch", nargs="*", choices=["eager", "compiled"],
                        default=["eager", "compiled"])  # fmt: skip
    options = parser.parse_args()
    s = SIZES[options.size]
    s.torch = options.torch
    if options.parts[0] in ("table", "expected"):
        lines = table(options.parts[1:]) if options.parts[0] == "table" else expected(s)
        print("\n".join(lines))
        return
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if options.stand_in:
        sys.path.insert(0, str(TESTS))
        from cuda_sim import standin

        standin.install()
    found = measured(options.parts, s, options.stand_in)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n")
    if any("failed" in row for row in found["rows"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
