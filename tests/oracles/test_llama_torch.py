"""The LLaMA against one written in torch from the papers: logits, gradients, a training curve."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygrad_ml import optim
from tinygrad_ml.llama import Llama, LlamaConfig

torch = pytest.importorskip("torch")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def angles(config, t, dtype):
    """RoPE's angles, (t, k/2); llama3's three cases spelt out, a frequency at a time."""
    k, scaling, found = config.head_dim, config.rope_scaling, []
    for i in range(k // 2):
        f = config.rope_theta ** (-2 * i / k)
        if scaling and scaling["rope_type"] == "linear":
            f /= scaling["factor"]
        elif scaling:
            old, wavelength = scaling["original_max_position_embeddings"], 2 * math.pi / f
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            if wavelength > old / low:
                f /= scaling["factor"]
            elif wavelength >= old / high:
                smooth = (old / wavelength - low) / (high - low)
                f = (1 - smooth) * f / scaling["factor"] + smooth * f
        found.append(f)
    return torch.outer(torch.arange(t).double(), torch.tensor(found).double()).to(dtype)


def reference(config, w, tokens, allowed):
    """Logits of the model with weights w      tokens: (b, t)  allowed: (b, t, t) bools"""
    (b, t), h, k = tokens.shape, config.n_heads, config.head_dim
    turn = angles(config, t, w["norm.weight"].dtype)
    turn = torch.polar(torch.ones_like(turn), turn)  # a rotation is a complex number of length 1

    def linear(x, name):
        return torch.nn.functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[f"{name}.weight"]

    def rotated(x):
        x = torch.complex(*x.chunk(2, -1)) * turn[:, None]  # (b, t, n, k/2)
        return torch.cat([x.real, x.imag], -1)

    def attention(x, p):
        q, key, v = (linear(x, f"{p}.w{c}").view(b, t, -1, k) for c in "qkv")
        q, key = rotated(q), rotated(key)
        key, v = (x.repeat_interleave(h // config.n_kv_heads, 2) for x in (key, v))
        scores = torch.einsum("bqhk,bshk->bhqs", q, key) / math.sqrt(k)
        scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        y = torch.einsum("bhqs,bshk->bqhk", scores.softmax(-1), v)
        return linear(y.reshape(b, t, -1), f"{p}.wo")

    def feed_forward(x, p):
        gate, up = linear(x, f"{p}.gate"), linear(x, f"{p}.up")
        return linear(gate * torch.sigmoid(gate) * up, f"{p}.down")

    x = w["embedding.weight"][tokens]
    for i in range(config.n_layers):
        p = f"layers.{i}"
        x = x + attention(norm(x, f"{p}.attention_norm"), f"{p}.attention")
        x = x + feed_forward(norm(x, f"{p}.feed_forward_norm"), f"{p}.feed_forward")
    head = w.get("head.weight", w["embedding.weight"])
    return norm(x, "norm") @ head.T


def leaves(model):
    return {n: torch.tensor(x, requires_grad=True) for n, x in model.state_dict().items()}


def made(dtype, **changes):
    sizes = {"vocab_size": 30, "dim": 12, "n_layers": 2, "n_heads": 4, "hidden_dim": 20}
    model = Llama(LlamaConfig(**sizes | changes), rng=np.random.default_rng(0), dtype=dtype)
    for p in model.parameters():  # biases and gains too: none at its initial 0 or 1
        p.assign_(p.data + 0.2 * np.random.default_rng(p.size).standard_normal(p.shape))
    return model


@given(
    st.fixed_dictionaries(
        {
            "n_kv_heads": st.sampled_from([1, 2, 4]),
            "head_dim": st.sampled_from([2, 4, 6]),
            "tie_embeddings": st.booleans(),
            "attention_bias": st.booleans(),
            "mlp_bias": st.booleans(),
            "rope_theta": st.sampled_from([1e4, 5e5]),
            "rope_scaling": st.sampled_from([None, LLAMA3, {"rope_type": "linear", "factor": 4.0}]),
        }
    ),
    st.integers(1, 3),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_logits_and_gradients_are_those_of_the_reference(changes, b, t, segmented, seed):
    model, rng = made("float64", **changes), np.random.default_rng(seed)
    tokens, targets = rng.integers(0, 30, (2, b, t))
    targets[rng.random((b, t)) < 0.2] = -100
    segments = np.sort(rng.integers(0, 3, (b, t)), axis=1) if segmented else np.zeros((b, t), int)
    allowed = np.tri(t, dtype=bool) & (segments[:, :, None] == segments[:, None, :])
    given_segments = segments if segmented else None

    w = leaves(model)
    logits = reference(model.config, w, torch.tensor(tokens), torch.tensor(allowed))
    ours = model(tokens, segments=given_segments).numpy()
    # float64; positions begin anew in a segment here, not there: RoPE sees differences only
    np.testing.assert_allclose(ours, logits.detach().numpy(), rtol=1e-8, atol=1e-9)

    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets).flatten(), reduction="sum"
    )
    losses.backward()
    loss = model.loss(tokens, targets, segments=given_segments, reduction="sum")
    loss.backward()
    np.testing.assert_allclose(loss.item(), losses.item(), rtol=1e-9, atol=1e-12)
    for name, p in model.named_parameters():
        expected = w[name].grad
        expected = np.zeros(p.shape) if expected is None else expected.numpy()
        np.testing.assert_allclose(p.grad.numpy(), expected, rtol=1e-7, atol=1e-8, err_msg=name)


def test_float32_training_follows_the_same_curve_for_50_steps():
    config = LlamaConfig(
        vocab_size=64, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=64, max_length=32
    )
    model = Llama(config, rng=np.random.default_rng(0))
    w = leaves(model)
    groups = [
        {"params": [x for x in w.values() if x.ndim == 2], "weight_decay": 0.1},
        {"params": [x for x in w.values() if x.ndim == 1], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    ours = optim.AdamW(model.named_parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    text = np.random.default_rng(1).integers(0, 64, 200).repeat(3)  # something to be learnt
    allowed = torch.ones(32, 32, dtype=torch.bool).tril()[None]
    curves = [], []
    for step in range(50):
        starts = np.random.default_rng(step).integers(0, len(text) - 33, 4)
        batch = text[starts[:, None] + np.arange(33)]
        tokens, targets = batch[:, :-1], batch[:, 1:]

        logits = reference(config, w, torch.tensor(tokens), allowed)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(targets).flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        theirs.step()
        theirs.zero_grad()
        curves[1].append(loss.item())

        loss = model.loss(tokens, targets)
        loss.backward()
        optim.clip_grad_norm(model.parameters(), 1.0)
        ours.step()
        ours.zero_grad()
        curves[0].append(loss.item())
    assert curves[0][-1] < 0.6 * curves[0][0]
    np.testing.assert_allclose(*curves, rtol=1e-3)
