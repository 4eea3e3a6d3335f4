"""One training step of a LLaMA: ours, against the same model by hand and in torch.

    python tests/benchmarks/train_step.py [--size S] [--size M] [--size L] [--seconds 60]
        [--launches 3] [--peers hand torch compile ours-bf16 torch-bf16] [--json FILE]
        [--no-kernels]

By hand means forward and backward in plain numpy as one writes it who knows the model and wants
speed: the same products, work in place, no tape, no checks. All start from the same weights and
see the same batch, and the losses printed must agree. Each has a process of its own, where no
other's threads wait on its cores, and they take turns of a second, so that the machine's moods hit
everybody alike, until a size has used its seconds. A process has its luck with memory for life, two
percent of it, so there are several launches of each. Printed are medians, the least (on a busy
machine the better measure), and the processor's time, in milliseconds; the floor is the products
and the bytes of the step at the speeds that this machine reached in the same run; memory is the
growth of a process's peak over two steps. What is written in numpy, ours and by hand, keeps freed
memory, as `tinygrad-ml train` tells malloc to.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tinygrad_ml as tg
from tinygrad_ml import optim
from tinygrad_ml.cli import _keep_freed_memory
from tinygrad_ml.llama import Llama, LlamaConfig

SIZES = {
    "S": (dict(vocab_size=256, dim=128, n_layers=4, n_heads=4, hidden_dim=352), 8, 128),
    "M": (dict(vocab_size=4096, dim=288, n_layers=6, n_heads=6, hidden_dim=768), 8, 256),
    "L": (
        dict(vocab_size=8192, dim=768, n_layers=12, n_heads=12, n_kv_heads=4, hidden_dim=2048),
        2,
        512,
    ),
}  # the model, batch, context
RATE, BETAS, DECAY, EPS = 1e-3, (0.9, 0.95), 0.1, 1e-8


def ours(config, weights, tokens, targets, dtype="float32"):
    """A function that makes one step and returns the loss; the masters are float32."""
    model = Llama(config, rng=None, dtype=dtype)
    model.load_state_dict(weights)
    optimizer = optim.AdamW(model.named_parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)

    def step():
        loss = model.loss(tokens, targets)
        loss.backward()
        optim.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


# ----------------------------------------------------------------------------------- by hand


def rms_norm(x, w, eps=1e-5):
    r = 1 / np.sqrt(np.einsum("nd,nd->n", x, x)[:, None] / x.shape[1] + np.float32(eps))
    n = x * r
    return n * w, (n, r)


def rms_norm_back(g, w, kept):
    n, r = kept
    dw = np.einsum("nd,nd->d", g, n)
    g = g * w
    g -= n * (np.einsum("nd,nd->n", g, n)[:, None] / n.shape[1])
    g *= r
    return g, dw


def turned(x, cos, sin):
    """RoPE      x: (b, t, h, k)  cos, sin: (t, 1, k/2)"""
    half = x.shape[-1] // 2
    y = np.empty_like(x)
    a, b = x[..., :half], x[..., half:]
    np.multiply(a, cos, out=y[..., :half])
    y[..., :half] -= b * sin
    np.multiply(b, cos, out=y[..., half:])
    y[..., half:] += a * sin
    return y


def by_hand(config, weights, tokens, targets):
    """A function that makes one step and returns the loss."""
    w = {name: array.copy() for name, array in weights.items()}
    m, v = ({name: np.zeros_like(x) for name, x in w.items()} for _ in range(2))
    (b, t), h, k, d = tokens.shape, config.n_heads, config.head_dim, config.dim
    rows, ids, wanted = b * t, tokens.ravel(), targets.ravel()
    angles = np.arange(t)[:, None, None] * 10000.0 ** (-np.arange(0, k, 2) / k)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    hidden = np.triu(np.full((t, t), -np.inf, np.float32), 1)
    scale = np.float32(k**-0.5)
    count = 0

    def heads(x):
        return x.reshape(b, t, h, k).transpose(0, 2, 1, 3)

    def merged(x):
        return x.transpose(0, 2, 1, 3).reshape(rows, d)

    def attention(x, p):
        q, key, value = (x @ w[p + name].T for name in ("wq.weight", "wk.weight", "wv.weight"))
        q = turned(q.reshape(b, t, h, k), cos, sin).transpose(0, 2, 1, 3)
        key = turned(key.reshape(b, t, h, k), cos, sin).transpose(0, 2, 1, 3)
        value = heads(value)
        s = q @ key.swapaxes(-1, -2)
        s *= scale
        s += hidden
        s -= s.max(-1, keepdims=True)
        np.exp(s, out=s)
        s /= s.sum(-1, keepdims=True)
        y = merged(s @ value)
        return y @ w[p + "wo.weight"].T, (x, q, key, value, s, y)

    def attention_back(g, p, kept, grads):
        x, q, key, value, s, y = kept
        grads[p + "wo.weight"] = g.T @ y
        gy = heads(g @ w[p + "wo.weight"])
        gv = s.swapaxes(-1, -2) @ gy
        gs = gy @ value.swapaxes(-1, -2)
        gs -= np.einsum("bhts,bhts->bht", gs, s)[..., None]
        gs *= s
        gs *= scale
        gq, gk = gs @ key, gs.swapaxes(-1, -2) @ q
        gx = 0
        for name, one, turn in (("wq.weight", gq, 1), ("wk.weight", gk, 1), ("wv.weight", gv, 0)):
            one = one.transpose(0, 2, 1, 3)
            one = (turned(one, cos, -sin) if turn else one).reshape(rows, d)
            grads[p + name] = one.T @ x
            gx = gx + one @ w[p + name]
        return gx

    def feed_forward(x, p):
        gate, up = x @ w[p + "gate.weight"].T, x @ w[p + "up.weight"].T
        s = 1 / (1 + np.exp(-gate))
        a = gate * s
        z = a * up
        return z @ w[p + "down.weight"].T, (x, gate, up, s, a, z)

    def feed_forward_back(g, p, kept, grads):
        x, gate, up, s, a, z = kept
        grads[p + "down.weight"] = g.T @ z
        gz = g @ w[p + "down.weight"]
        g_up = gz * a
        gz *= up
        gz *= s * (1 + gate - a)  # silu' = s (1 + x (1 - s))
        grads[p + "gate.weight"], grads[p + "up.weight"] = gz.T @ x, g_up.T @ x
        gx = gz @ w[p + "gate.weight"]
        gx += g_up @ w[p + "up.weight"]
        return gx

    def loss_and_gradients():
        x, kept, grads = w["embedding.weight"][ids], [], {}
        for i in range(config.n_layers):
            p = f"layers.{i}."
            n1, kept1 = rms_norm(x, w[p + "attention_norm.weight"])
            y, kept2 = attention(n1, p + "attention.")
            x = x + y
            n2, kept3 = rms_norm(x, w[p + "feed_forward_norm.weight"])
            y, kept4 = feed_forward(n2, p + "feed_forward.")
            x = x + y
            kept.append((kept1, kept2, kept3, kept4))
        n, kept_n = rms_norm(x, w["norm.weight"])
        s = n @ w["head.weight"].T
        s -= s.max(-1, keepdims=True)
        picked = s[np.arange(rows), wanted]
        np.exp(s, out=s)
        total = s.sum(-1, keepdims=True)
        loss = float((np.log(total[:, 0]) - picked).mean())
        s /= total
        s[np.arange(rows), wanted] -= 1
        s /= rows
        grads["head.weight"] = s.T @ n
        g, grads["norm.weight"] = rms_norm_back(s @ w["head.weight"], w["norm.weight"], kept_n)
        for i in reversed(range(config.n_layers)):
            p = f"layers.{i}."
            kept1, kept2, kept3, kept4 = kept.pop()
            back = feed_forward_back(g, p + "feed_forward.", kept4, grads)
            name = p + "feed_forward_norm.weight"
            back, grads[name] = rms_norm_back(back, w[name], kept3)
            g = g + back
            back = attention_back(g, p + "attention.", kept2, grads)
            name = p + "attention_norm.weight"
            back, grads[name] = rms_norm_back(back, w[name], kept1)
            g = g + back
        table = np.zeros_like(w["embedding.weight"])
        np.add.at(table, ids, g)
        grads["embedding.weight"] = table
        return loss, grads

    def step():
        nonlocal count
        count += 1
        loss, grads = loss_and_gradients()
        norm = math.sqrt(sum(float(np.dot(g.ravel(), g.ravel())) for g in grads.values()))
        shrink = np.float32(min(1.0, 1.0 / norm))
        for name, x in w.items():
            g = grads[name]
            g *= shrink
            if x.ndim == 2:
                x *= 1 - RATE * DECAY
            m[name] *= BETAS[0]
            m[name] += (1 - BETAS[0]) * g
            g *= g
            v[name] *= BETAS[1]
            v[name] += (1 - BETAS[1]) * g
            spread = np.sqrt(v[name])
            spread *= (1 - BETAS[1] ** count) ** -0.5
            spread += EPS
            x -= RATE / (1 - BETAS[0] ** count) * m[name] / spread
        return loss

    return step


# ------------------------------------------------------------------------------------- torch


def torch_step(config, weights, tokens, targets, compiled=False, device="cpu", half=False):
    """A function that makes one step and returns the loss; attention and norms are torch's own.

    On a GPU, or if `half`, the products are of bfloat16 (autocast); weights and optimiser float32.
    """
    import torch
    import torch.nn.functional as F

    torch.set_default_device(device)
    w = {name: torch.tensor(x, requires_grad=True) for name, x in weights.items()}
    (b, t), h, k = tokens.shape, config.n_heads, config.head_dim
    angles = np.arange(t)[:, None] * 10000.0 ** (-np.arange(0, k, 2) / k)
    cos, sin = (torch.tensor(np.tile(f(angles), 2), dtype=torch.float32) for f in (np.cos, np.sin))
    ids, wanted = torch.tensor(tokens), torch.tensor(targets)
    groups = [
        {"params": [x for x in w.values() if x.ndim == 2], "weight_decay": DECAY},
        {"params": [x for x in w.values() if x.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPS, fused=True)

    def rotated(x):
        x1, x2 = x.chunk(2, -1)
        return x * cos + torch.cat([-x2, x1], -1) * sin

    def heads(x):
        return x.view(b, t, -1, k).transpose(1, 2)

    def forward():
        x = F.embedding(ids, w["embedding.weight"])
        for i in range(config.n_layers):
            p = f"layers.{i}."
            n = F.rms_norm(x, (config.dim,), w[p + "attention_norm.weight"], 1e-5)
            q, key, value = (heads(n @ w[f"{p}attention.w{c}.weight"].T) for c in "qkv")
            y = F.scaled_dot_product_attention(
                rotated(q), rotated(key), value, is_causal=True, enable_gqa=key.shape[1] < h
            )
            x = x + y.transpose(1, 2).reshape(b, t, -1) @ w[p + "attention.wo.weight"].T
            n = F.rms_norm(x, (config.dim,), w[p + "feed_forward_norm.weight"], 1e-5)
            gate, up = (n @ w[f"{p}feed_forward.{name}.weight"].T for name in ("gate", "up"))
            x = x + (F.silu(gate) * up) @ w[p + "feed_forward.down.weight"].T
        logits = F.rms_norm(x, (config.dim,), w["norm.weight"], 1e-5) @ w["head.weight"].T
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    forward = torch.compile(forward) if compiled else forward

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=half or device != "cpu"):
            loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item() if device == "cpu" else loss

    return step


STEPS = {
    "ours": ours,
    "hand": by_hand,
    "torch": torch_step,
    "compile": lambda *given: torch_step(*given, compiled=True),
    "ours-bf16": lambda *given: ours(*given, dtype="bfloat16"),
    "torch-bf16": lambda *given: torch_step(*given, half=True),
}


def prepared(size, name):
    """The function that makes one step, from the same weights on the same batch for all."""
    sizes, b, t = SIZES[size]
    config, rng = LlamaConfig(**sizes), np.random.default_rng(0)
    weights = Llama(config, rng=rng).state_dict()
    text = rng.integers(0, config.vocab_size, (b, t + 1))
    return STEPS[name](config, weights, text[:, :-1].copy(), text[:, 1:].copy())


class Contestant:
    """A peer in processes of its own, whose steps and processor time are counted there."""

    def __init__(self, size, name, kernels):
        command = [sys.executable, __file__, "--size", size, "--steps-of", name]
        self.command = command if kernels else [*command, "--no-kernels"]
        self.walls, self.used = [], []

    def begin(self):
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        self.peak_mb, self.loss = json.loads(self.process.stdout.readline())

    def take_turn(self, seconds):
        print(seconds, file=self.process.stdin, flush=True)
        walls, used = json.loads(self.process.stdout.readline())
        self.walls += walls
        self.used += used

    def figures(self):
        return {
            "median": 1e3 * float(np.median(self.walls)),
            "least": 1e3 * min(self.walls),
            "cpu": 1e3 * float(np.median(self.used)),
            "peak_mb": self.peak_mb,
            "loss": self.loss,
        }

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def take_turns(size, name):
    """The other end: the peak's growth and a loss; then, for each line of seconds, the steps."""
    if name in ("ours", "ours-bf16", "hand"):
        _keep_freed_memory()  # as `tinygrad-ml train` does; by hand in the same way
    step = prepared(size, name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of what comes now (Linux)
    before = peak_rss()
    loss = [step() for _ in range(2)][-1]
    print(json.dumps([peak_rss() - before, loss]), flush=True)
    for line in sys.stdin:
        walls, used = [], []
        step()  # wakes threads and caches
        begin = time.perf_counter()
        while not walls or time.perf_counter() - begin < float(line):
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            used.append(time.process_time() - cpu)
            walls.append(time.perf_counter() - wall)
        print(json.dumps([walls, used]), flush=True)


def compare(size, peers, seconds, launches, kernels):
    """{name: figures} of one size, printed as they are found."""
    if SIZES[size][0].get("n_kv_heads"):
        peers = [p for p in peers if p != "hand"]  # its heads are not grouped
    sides = {name: Contestant(size, name, kernels) for name in peers}
    rounds, used = 0, 0.0
    with tqdm(total=seconds, desc=size, unit="s", leave=False) as bar:
        for launch in range(1, launches + 1):
            for side in sides.values():
                side.begin()
            begin = time.perf_counter()
            while rounds < 3 * launch or used < seconds * launch / launches:
                rounds += 1
                for side in sides.values():
                    side.take_turn(1.0)
                used += time.perf_counter() - begin
                begin = time.perf_counter()
                bar.n = min(seconds, round(used))
                bar.refresh()
            for side in sides.values():
                side.end()
    found = {name: side.figures() for name, side in sides.items()}
    report(size, found, floor(size), rounds)
    return found


def report(size, found, floor_ms, rounds):
    sizes, b, t = SIZES[size]
    print(f"{size}: {sizes}, batch {b}, context {t}; {rounds} rounds, floor {floor_ms:.0f} ms")
    print(
        f"  {'ms':10}{'median':>9}{'least':>9}{'cpu':>9}{'MB':>8}   it / ours: median, least, cpu"
    )
    for name, row in found.items():
        kinds = ("median", "least", "cpu")
        figures = "".join(f"{row[k]:9.1f}" for k in kinds)
        ratios = "".join(f"{row[k] / found['ours'][k]:8.2f}" for k in kinds)
        print(f"  {name:10}{figures}{row['peak_mb']:8.0f}   {ratios}   loss {row['loss']:.5f}")


def peak_rss():
    """Megabytes that this process has had in memory at most."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def floor(size):
    """Milliseconds for the step's products and its least bytes at this machine's best speeds."""
    sizes, b, t = SIZES[size]
    config = LlamaConfig(**sizes)
    d, k, wide, rows = config.dim, config.head_dim, config.hidden_dim, b * t
    inner, shared = config.n_heads * k, config.n_kv_heads * k
    maps = config.n_layers * (2 * d * (inner + shared) + 3 * d * wide) + d * config.vocab_size
    attended = config.n_layers * config.n_heads * b * t * t // 2 * k
    operations = 2 * 3 * rows * maps + 2 * 7 * attended
    entries = rows * config.n_layers * (14 * d + 6 * wide) + 3 * rows * config.vocab_size
    return 1e3 * (operations / product_speed() + 4 * (entries + 7 * maps) / copy_speed())


def product_speed(n=1024):
    """Multiplications and additions a second in a square product."""
    a = np.ones((n, n), np.float32)
    return 2 * n**3 / least(lambda: tg.matmul(a, a))


def copy_speed():
    """Bytes a second, read and written, of a large copy."""
    a = np.ones(32_000_000, np.float32)
    b = np.empty_like(a)
    return 2 * a.nbytes / least(lambda: np.copyto(b, a))


def least(run, repeats=7):
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", choices=list(SIZES))
    parser.add_argument("--seconds", type=float, default=60, help="for each size")
    parser.add_argument("--launches", type=int, default=3, help="of each process (3)")
    parser.add_argument("--peers", nargs="*", default=["hand", "torch"], choices=list(STEPS))
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--no-kernels", action="store_true", help="every function by definition")
    parser.add_argument("--steps-of", choices=list(STEPS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.steps_of:
        with tg.use_kernels(not given.no_kernels):
            return take_turns(given.size[0], given.steps_of)
    print(f"kernels: {tg.kernels.level()}, {tg.kernels.get_num_threads()} threads, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    peers, on = ["ours", *given.peers], not given.no_kernels
    found = {
        size: compare(size, peers, given.seconds, given.launches, on)
        for size in given.size or SIZES
    }
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    return None


if __name__ == "__main__":
    main()
