"""Layers' functions, einsum and convolution: values and gradients against PyTorch's."""

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml import functional as F

torch = pytest.importorskip("torch")
nn = torch.nn.functional

T = np.array([[2, 0, -100], [3, 1, 3]])
TT = torch.tensor(T)
WEIGHT = np.array([0.3, 1.0, 0.2, 2.0])
SHARE = np.array([0.0, 1.0, 0.3, 1.0])
MASK = np.array([[True, True, False, True], [True, False, False, True], [True, False, True, True]])


def torch_rope(x, cos, sin):
    """As Hugging Face's apply_rotary_pos_emb, with whole tables and rotate_half."""
    cos, sin = torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def classes_second(f, **options):
    """torch wants the classes along axis 1."""
    return lambda x: f(x.movedim(-1, 1), TT, **options)


# name: (ours, torch's, shapes)
CASES = {
    "gelu": (F.gelu, nn.gelu, [(4, 5)]),
    "gelu_tanh": (F.gelu_tanh, lambda x: nn.gelu(x, approximate="tanh"), [(4, 5)]),
    "leaky_relu": (F.leaky_relu, nn.leaky_relu, [(4, 5)]),
    "elu": (F.elu, nn.elu, [(4, 5)]),
    "selu": (F.selu, nn.selu, [(4, 5)]),
    "mish": (F.mish, nn.mish, [(4, 5)]),
    "hardtanh": (F.hardtanh, nn.hardtanh, [(4, 5)]),
    "softplus": (F.softplus, nn.softplus, [(4, 5)]),
    "log_sigmoid": (F.log_sigmoid, nn.logsigmoid, [(4, 5)]),
    "glu": (F.glu, nn.glu, [(3, 6)]),
    "swiglu": (F.swiglu, lambda a, b: nn.silu(a) * b, [(3, 4), (3, 4)]),
    "rms_norm": (F.rms_norm, lambda x, w: nn.rms_norm(x, (6,), w, 1e-6), [(2, 3, 6), (6,)]),
    "layer_norm": (F.layer_norm, lambda x, w, b: nn.layer_norm(x, (6,), w, b),
                   [(2, 3, 6), (6,), (6,)]),
    "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b),
                   lambda x, w, b: nn.group_norm(x, 2, w, b), [(2, 4, 3, 2), (4,), (4,)]),
    "normalize": (F.normalize, lambda x: nn.normalize(x, dim=-1), [(3, 4)]),
    "cosine_similarity": (F.cosine_similarity,
                          lambda a, b: nn.cosine_similarity(a, b, -1), [(3, 4), (3, 4)]),
    "linear": (F.linear, nn.linear, [(2, 3, 4), (5, 4), (5,)]),
    "embedding": (lambda w: F.embedding(w, T % 4), lambda w: nn.embedding(TT % 4, w), [(4, 3)]),
    "rope": (F.rope, torch_rope, [(2, 2, 3, 4), (3, 2), (3, 2)]),
    "attention": (lambda q, k, v: F.attention(q, k, v, causal=True),
                  lambda q, k, v: nn.scaled_dot_product_attention(q, k, v, is_causal=True),
                  [(2, 2, 3, 4)] * 3),
    "attention, grouped and masked": (
        lambda q, k, v: F.attention(q, k, v, MASK, scale=0.3),
        lambda q, k, v: nn.scaled_dot_product_attention(
            q, k, v, torch.tensor(MASK), scale=0.3, enable_gqa=True),
        [(2, 4, 3, 4), (2, 2, 4, 4), (2, 2, 4, 4)]),
    "attention, biased": (
        F.attention, nn.scaled_dot_product_attention,
        [(2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 4), (1, 2, 3, 5)]),
    "cross_entropy": (lambda x: F.cross_entropy(x, T), classes_second(nn.cross_entropy),
                      [(2, 3, 4)]),
    "cross_entropy, smoothed": (
        lambda x: F.cross_entropy(x, T, label_smoothing=0.2),
        classes_second(nn.cross_entropy, label_smoothing=0.2), [(2, 3, 4)]),
    "linear_cross_entropy": (
        lambda x, w: F.linear_cross_entropy(x, w, T, reduction="sum"),
        lambda x, w: nn.cross_entropy((x @ w.T).flatten(0, 1), TT.flatten(), reduction="sum"),
        [(2, 3, 4), (5, 4)]),
    "nll_loss": (lambda x: F.nll_loss(x, T, reduction="none"),
                 classes_second(nn.nll_loss, reduction="none"), [(2, 3, 4)]),
    "binary_cross_entropy_with_logits": (
        lambda x: F.binary_cross_entropy_with_logits(x, SHARE, pos_weight=WEIGHT),
        lambda x: nn.binary_cross_entropy_with_logits(
            x, torch.tensor(SHARE), pos_weight=torch.tensor(WEIGHT)),
        [(4,)]),
    "mse_loss": (F.mse_loss, nn.mse_loss, [(3, 4), (3, 4)]),
    "l1_loss": (F.l1_loss, nn.l1_loss, [(3, 4), (3, 4)]),
    "huber_loss": (F.huber_loss, nn.huber_loss, [(3, 4), (3, 4)]),
    "kl_div": (F.kl_div, lambda q, p: nn.kl_div(q, p, reduction="batchmean", log_target=True),
               [(3, 4), (3, 4)]),
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, stride=2, padding=3, dilation=2, groups=2),
               lambda x, w, b: nn.conv1d(x, w, b, 2, 3, 2, 2), [(2, 4, 9), (6, 2, 3), (6,)]),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
               lambda x, w, b: nn.conv2d(x, w, b, (2, 1), (1, 2), (1, 2)),
               [(2, 3, 6, 5), (4, 3, 3, 2), (4,)]),
    "conv2d, depthwise": (lambda x, w: F.conv2d(x, w, groups=3),
                          lambda x, w: nn.conv2d(x, w, groups=3), [(2, 3, 5, 4), (6, 1, 2, 2)]),
    "max_pool1d": (lambda x: F.max_pool1d(x, 3, 2, 1), lambda x: nn.max_pool1d(x, 3, 2, 1),
                   [(2, 3, 8)]),
    "max_pool2d": (lambda x: F.max_pool2d(x, (2, 3), 1), lambda x: nn.max_pool2d(x, (2, 3), 1),
                   [(2, 3, 5, 6)]),
    "avg_pool1d": (lambda x: F.avg_pool1d(x, 3, 2, 1), lambda x: nn.avg_pool1d(x, 3, 2, 1),
                   [(2, 3, 8)]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2, padding=1),
                   lambda x: nn.avg_pool2d(x, 2, padding=1), [(2, 3, 6, 4)]),
    **{f"einsum {s}": (lambda *xs, s=s: F.einsum(s, *xs), lambda *xs, s=s: torch.einsum(s, *xs),
                       shapes)
       for s, shapes in {
           "bhqd,bhkd->bhqk": [(2, 2, 3, 4), (2, 2, 5, 4)], "ii->i": [(4, 4)],
           "iij->j": [(3, 3, 2)],
           "...ij,...jk->...ik": [(2, 1, 2, 3), (3, 3, 2)], "i,j,k->kij": [(2,), (3,), (4,)],
           "abc,cd,bd->ad": [(2, 3, 4), (4, 5), (3, 5)], "ba,b": [(3, 2), (3,)]}.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients(name):
    ours, theirs, shapes = CASES[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    xs = [tg.tensor(a, requires_grad=True) for a in arrays]
    ys = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, z = ours(*xs), theirs(*ys)
    close = {"rtol": 1e-11, "atol": 1e-13}  # float64 sums of tens of terms, in another order
    np.testing.assert_allclose(y.data, z.detach().numpy(), **close)
    c = rng.standard_normal(y.shape)
    want = torch.autograd.grad(z, ys, torch.tensor(c))
    for g, w in zip(tg.grad(y, xs, c), want, strict=True):
        np.testing.assert_allclose(g.data, w.numpy(), **close)
