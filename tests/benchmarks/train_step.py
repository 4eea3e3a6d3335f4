"""One training step of a LLaMA: ours, against the same model written by hand, and torch's.

    python tests/benchmarks/train_step.py [--size S] [--size M] [--rounds 15] [--no-kernels]

By hand means forward and backward in plain numpy as one writes it who knows the model and wants
speed: the same products, work in place, no tape, no checks. All start from the same weights and
see the same batch; steps are taken in turn, so that the machine's moods hit everybody alike, and
medians are compared. The losses printed must agree.
"""

import argparse
import math
import time

import numpy as np

import tinygrad_ml as tg
from tinygrad_ml import optim
from tinygrad_ml.cli import _keep_freed_memory
from tinygrad_ml.llama import Llama, LlamaConfig

SIZES = {
    "S": (dict(vocab_size=256, dim=128, n_layers=4, n_heads=4, hidden_dim=352), 8, 128),
    "M": (dict(vocab_size=4096, dim=288, n_layers=6, n_heads=6, hidden_dim=768), 8, 256),
}
RATE, BETAS, DECAY, EPS = 1e-3, (0.9, 0.95), 0.1, 1e-8


def ours(config, weights, tokens, targets):
    """A function that makes one step and returns the loss."""
    model = Llama(config, rng=None)
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


def torch_eager(config, weights, tokens, targets):
    """A function that makes one step and returns the loss; attention and norms are torch's own."""
    import torch
    import torch.nn.functional as F

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
        return x.view(b, t, h, k).transpose(1, 2)

    def forward():
        x = F.embedding(ids, w["embedding.weight"])
        for i in range(config.n_layers):
            p = f"layers.{i}."
            n = F.rms_norm(x, (config.dim,), w[p + "attention_norm.weight"], 1e-5)
            q, key, value = (heads(n @ w[f"{p}attention.w{c}.weight"].T) for c in "qkv")
            y = F.scaled_dot_product_attention(rotated(q), rotated(key), value, is_causal=True)
            x = x + y.transpose(1, 2).reshape(b, t, -1) @ w[p + "attention.wo.weight"].T
            n = F.rms_norm(x, (config.dim,), w[p + "feed_forward_norm.weight"], 1e-5)
            gate, up = (n @ w[f"{p}feed_forward.{name}.weight"].T for name in ("gate", "up"))
            x = x + (F.silu(gate) * up) @ w[p + "feed_forward.down.weight"].T
        logits = F.rms_norm(x, (config.dim,), w["norm.weight"], 1e-5) @ w["head.weight"].T
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    def step():
        loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", choices=list(SIZES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-kernels", action="store_true", help="every function by definition")
    arguments = parser.parse_args()
    _keep_freed_memory()
    with tg.use_kernels(not arguments.no_kernels):
        for size in arguments.size or SIZES:
            compare(size, arguments.rounds)


def compare(size, rounds):
    sizes, b, t = SIZES[size]
    config, rng = LlamaConfig(**sizes), np.random.default_rng(0)
    weights = Llama(config, rng=rng).state_dict()
    text = rng.integers(0, config.vocab_size, (b, t + 1))
    batch = text[:, :-1].copy(), text[:, 1:].copy()
    steps = {"ours": ours(config, weights, *batch), "by hand": by_hand(config, weights, *batch)}
    try:
        steps["torch"] = torch_eager(config, weights, *batch)
    except ImportError:
        print("torch is not installed: left out")
    times, losses = {name: [] for name in steps}, {}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            begin = time.perf_counter()
            losses[name] = step()
            times[name].append(time.perf_counter() - begin)
    print(f"{size}: {sizes}, batch {b}, context {t}; kernels: {tg.kernels_used() or 'none'}")
    mine = float(np.median(times["ours"][2:]))  # the first two warm up
    for name, taken in times.items():
        median = float(np.median(taken[2:]))
        print(
            f"  {name:8} {1e3 * median:8.1f} ms   ours takes {mine / median:.2f} of it   "
            f"loss after {rounds + 2} steps {losses[name]:.5f}"
        )


if __name__ == "__main__":
    main()
