"""Our optimisers against PyTorch's: 50 steps in float64 on the same gradients."""

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml import optim

torch = pytest.importorskip("torch")

STEPS = 50
SHAPES = [(5, 3), (4,), ()]


def everything(p):
    return True


CASES = {
    "sgd": (optim.SGD, torch.optim.SGD, {"lr": 0.1}),
    "momentum": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgd decay": (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}),
    "adam": (optim.Adam, torch.optim.Adam, {"lr": 0.01}),
    "adam decay": (optim.Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adam betas": (optim.Adam, torch.optim.Adam, {"lr": 0.01, "betas": (0.5, 0.7), "eps": 1e-3}),
    "adamw": (optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "adamw betas": (optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "betas": (0.9, 0.95)}),
}


def both(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    start = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    ours = [tg.tensor(x, requires_grad=True) for x in start]
    theirs = [torch.nn.Parameter(torch.tensor(x)) for x in start]
    return rng, ours, theirs


def give_gradients(rng, ours, theirs):
    for p, q in zip(ours, theirs, strict=True):
        g = rng.standard_normal(p.shape).astype(p.dtype)
        p.grad, q.grad = tg.tensor(g), torch.tensor(g)


def assert_close(ours, theirs, rtol):
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", CASES)
def test_fifty_steps_in_float64(name):
    make_ours, make_theirs, settings = CASES[name]
    rng, ours, theirs = both()
    a = make_ours(ours, decays=everything, **settings)
    b = make_theirs(theirs, **settings)
    for _ in range(STEPS):
        give_gradients(rng, ours, theirs)
        a.step()
        b.step()
    assert_close(ours, theirs, rtol=1e-13)  # 50 steps of some 10 roundings of 1e-16


def test_groups_schedule_and_clipping_together():
    rng, ours, theirs = both()
    schedule = optim.warmup_cosine(10, STEPS, floor=0.1)

    def groups(ps, key):
        return [{key: ps[:1], "weight_decay": 0.3}, {key: ps[1:], "lr": 0.05}]

    a = optim.AdamW(groups(ours, "parameters"), lr=0.02, decays=everything, schedule=schedule)
    b = torch.optim.AdamW(groups(theirs, "params"), lr=0.02)
    scheduler = torch.optim.lr_scheduler.LambdaLR(b, schedule)
    for _ in range(STEPS):
        give_gradients(rng, ours, theirs)
        norm = optim.clip_grad_norm(ours, 3.0)
        # torch divides by norm + 1e-6; its own value, not its clipped gradients, is the reference
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, 1e9)), rel=1e-14)
        for q in theirs:
            q.grad *= min(1.0, 3.0 / norm)
        a.step()
        b.step()
        scheduler.step()
        rates = [group["lr"] for group in b.param_groups]
        assert a.rates() == pytest.approx(rates, rel=1e-14)
    assert_close(ours, theirs, rtol=1e-13)


def test_float32_steps_stay_within_rounding_of_torchs():
    rng, ours, theirs = both(dtype=np.float32)
    a, b = optim.AdamW(ours, decays=everything), torch.optim.AdamW(theirs)
    for _ in range(STEPS):
        give_gradients(rng, ours, theirs)
        a.step()
        b.step()
    assert_close(ours, theirs, rtol=1e-5)  # 50 steps of some 10 roundings of 6e-8, worst case
