"""Training steps and decoding as CUDA graphs: launches are the calls themselves, to the bit."""

import inspect
import sys

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml import functional as F
from tinygrad_ml import nn, optim, peft
from tinygrad_ml.llama import Llama, LlamaConfig
from tinygrad_ml.train import Captured, Settings, Trainer, read_metrics

device = pytest.mark.parametrize("cuda", ["simulated", pytest.param("real", marks=pytest.mark.gpu)],
                                 indirect=True)  # fmt: skip


CONFIG = LlamaConfig(vocab_size=20, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=24)


def training(dtype):
    """A model, its optimiser with a schedule, and a step of it."""
    model = Llama(CONFIG, rng=np.random.default_rng(0), device="cuda", dtype=dtype)
    schedule = optim.warmup_cosine(2, 9)
    optimizer = optim.AdamW(model.named_parameters(), lr=0.01, schedule=schedule)

    def step(tokens, targets):
        loss = model.loss(tokens, targets)
        loss.backward()
        optim.scale_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return model, optimizer, step


def batches(n):
    rng = np.random.default_rng(1)
    for _ in range(n):
        ids = rng.integers(0, CONFIG.vocab_size, (2, 5))
        yield ids[:, :-1], ids[:, 1:]


@device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_launches_of_a_graph_are_the_steps_to_the_bit(cuda, dtype):
    eager, ours, step = training(dtype)
    replayed, theirs, other = training(dtype)
    captured = Captured(other, theirs)
    for tokens, targets in batches(4):
        wanted = step(*(tg.tensor(x, device="cuda") for x in (tokens, targets)))
        assert captured(tokens, targets).item() == wanted.item()
    assert theirs.steps == ours.steps == 4 and captured.graph.graph is not None
    for p, q in zip(eager.parameters(), replayed.parameters(), strict=True):
        np.testing.assert_array_equal(p.astype("f4").numpy(), q.astype("f4").numpy())
    for name, x in ours.state_dict().items():
        np.testing.assert_array_equal(np.asarray(theirs.state_dict()[name]), np.asarray(x))


def line(device="cuda", kind=optim.AdamW):
    """The least there is to train: w of y = w x."""
    w = tg.tensor([0.5, -1.0], device=device, requires_grad=True)
    optimizer = kind([w], lr=0.1)

    def step(x, y):
        loss = ((w * x - y) ** 2).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return w, optimizer, step


X, Y = np.array([1.0, 2.0], "f4"), np.array([3.0, 1.0], "f4")


@device
@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_what_is_not_the_devices_changes_all_the_same(cuda, kind):
    """Arguments, the step's number, and a learning rate that is set in between."""
    (w, ours, step), (v, theirs, other) = line(kind=kind), line(kind=kind)
    captured = Captured(other, theirs)
    for i in range(5):
        ours.groups[0]["lr"] = theirs.groups[0]["lr"] = 0.1 / (1 + i)
        given = [tg.tensor(a + i, device="cuda") for a in (X, Y)]
        assert captured(X + i, Y + i).item() == step(*given).item()
    np.testing.assert_array_equal(w.numpy(), v.numpy())


@device
def test_a_tape_from_before_a_launch_is_stale_after_it(cuda):
    w, optimizer, step = line()
    captured = Captured(step, optimizer)
    for _ in range(3):
        kept = (w * w).sum()
        captured(X, Y)
        with pytest.raises(tg.GraphError, match="changed by assign_"):
            kept.backward()


def recorded(body, device="cuda"):
    """Two calls of a step that ends as it should, with `body` in the middle."""
    w, optimizer, _ = line(device)

    def step(x):
        (body(w * x)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    captured = Captured(step, optimizer)
    captured(X)
    captured(X)


@device
def test_a_step_that_looks_at_its_numbers_is_refused(cuda):
    with pytest.raises(tg.DeviceError, match="must not look at its numbers"):
        recorded(lambda y: y * y.sum().item())
    with pytest.raises(tg.DeviceError, match="must not look at its numbers"):
        recorded(lambda y: y if (y.data > 0).all() else -y)


@device
def test_a_step_that_draws_random_numbers_is_refused(cuda):
    rng = np.random.default_rng(0)
    with pytest.raises(tg.DeviceError, match="dropout: in a recorded step"):
        recorded(lambda y: F.dropout(y, 0.5, rng))


@device
def test_other_shapes_and_forgotten_gradients_are_refused(cuda):
    _, optimizer, step = line()
    captured = Captured(step, optimizer)
    captured(X, Y)
    with pytest.raises(ValueError, match="expected .* as at first"):
        captured(X, Y[:1])
    w, optimizer, _ = line()
    with pytest.raises(ValueError, match="end it with zero_grad"):
        Captured(lambda x: (w * x).sum().backward(), optimizer)(X)
    with pytest.raises(TypeError, match="got SGD, expected Adam or AdamW"):
        Captured(step, line(kind=optim.SGD)[1])


def test_on_the_cpu_the_step_just_runs():
    w, optimizer, step = line("cpu")
    captured = Captured(step, optimizer)
    v, _, other = line("cpu")
    for _ in range(3):
        assert captured(X, Y).item() == other(X, Y).item()
    np.testing.assert_array_equal(w.numpy(), v.numpy())


# ------------------------------------------------------------------------------------ a run


@pytest.fixture
def settings(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog sat on the log. " * 20)
    tiny = {"dim": 16, "layers": 1, "heads": 2, "context": 8, "batch_size": 2, "steps": 6,
            "warmup": 2, "eval_every": 3, "eval_batches": 1, "save_every": 2}  # fmt: skip
    return lambda **changes: Settings(**{"data": str(text), "device": "cuda"} | tiny | changes)


@device
@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16", "ema": 0.9}, {"recompute": True}])
def test_a_run_by_a_graph_is_the_run_kernel_by_kernel(cuda, settings, tmp_path, changes):
    """Losses, norms and weights, to the bit, with what is looked at and saved in between."""
    found = []
    for name in ("graph", "kernels"):
        trainer = Trainer(settings(**changes), tmp_path / name)
        if name == "kernels":
            trainer.captured = None
        trainer.train()
        kept = ("loss", "grad_norm", "val_loss")
        lines = [[line.get(k) for k in kept] for line in read_metrics(tmp_path / name)]
        found.append((lines, (tmp_path / name / "model.safetensors").read_bytes()))
        assert name == "kernels" or trainer.captured.graph.graph is not None
    assert found[0] == found[1]


@device
def test_a_run_that_was_stopped_goes_on_by_a_graph(cuda, settings, tmp_path):
    for name in ("whole", "resumed"):
        Trainer(settings(), tmp_path / name).train()
    (tmp_path / "resumed" / "state" / "latest").write_text("step-4")
    again = Trainer(settings(), tmp_path / "resumed", resume=True)
    assert again.step == 4
    again.train()
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert models[0] == models[1]


@device
@pytest.mark.parametrize(
    "changes, reason",
    [({"dtype": "float16"}, "float16"), ({"accumulate": 2}, "--accumulate"),
     ({"documents": True}, "--documents")])  # fmt: skip
def test_a_run_that_no_graph_can_hold_says_so(cuda, settings, tmp_path, changes, reason):
    with pytest.warns(UserWarning, match=f"kernel by kernel: .*{reason}"):
        trainer = Trainer(settings(**changes, steps=1), tmp_path / "run")
    assert np.isfinite(trainer.train())


@device
def test_a_run_goes_on_kernel_by_kernel_where_a_recording_fails(cuda, settings, tmp_path):
    trainers = [Trainer(settings(), tmp_path / name) for name in ("plain", "curious")]
    layer = trainers[1].model.layers[0]
    layer.feed_forward = Curious(layer.feed_forward)
    losses = [trainers[0].train_step()[0] for _ in range(3)]
    assert trainers[1].train_step()[0] == losses[0]
    with pytest.warns(UserWarning, match="kernel by kernel: .* must not look at its numbers"):
        assert trainers[1].train_step()[0] == losses[1]
    assert trainers[1].train_step()[0] == losses[2]


@device
def test_a_loss_that_is_not_a_number_stops_a_graph_too(cuda, settings, tmp_path):
    trainer = Trainer(settings(), tmp_path / "run")
    for _ in range(2):
        trainer.train_step()
    p = next(trainer.model.parameters())
    p.assign_(p.data * np.nan)
    with pytest.raises(FloatingPointError, match="step 1: .* made the first NaN.*step-0"):
        trainer.train_step()


# ------------------------------------------------------------------------------------ decoding


def decoder(dtype="float32", where="cuda"):
    """A model with weights large enough that its predictions differ from place to place."""
    changed = dict(vars(CONFIG), n_layers=2, n_heads=4, n_kv_heads=2, head_dim=32)
    model = Llama(LlamaConfig(**changed), rng=np.random.default_rng(0), device=where, dtype=dtype)
    for p in model.parameters():
        if p.ndim == 2:
            p.assign_(p.data * 20)
    return model


def one_by_one(model, tokens, count, mask=None):
    """The most likely tokens, by calls of the model, and their log-probabilities."""
    cache, found, logprobs, given = model.new_cache(len(tokens)), [], [], tokens
    with tg.no_grad():
        for _ in range(count):
            logits = model(given, cache=cache, mask=mask, last=1).numpy()[:, 0].astype("f8")
            mask, best = None, logits.argmax(axis=1)
            top = logits.max(axis=1, keepdims=True)
            logprobs.append(-np.log(np.exp(logits - top).sum(axis=1)))  # of the most likely one
            given = best[:, None]
            found.append(best)
    return np.concatenate([tokens, np.stack(found, 1)], 1), np.stack(logprobs, 1)


ROWS = np.array([[3, 1, 4, 1], [0, 0, 9, 2]])
PADDED = np.array([[True] * 4, [False, False, True, True]])


@device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mask", [None, PADDED])
def test_a_recorded_token_is_the_models_own(cuda, dtype, mask, request):
    """To the bit; but cuBLAS may add up float32 in another order while it is recorded."""
    model = decoder(dtype)
    ids, logprobs = model.generate(ROWS, 9, mask=mask, eos=(), return_logprobs=True)
    wanted, theirs = one_by_one(model, ROWS, 9, mask)
    np.testing.assert_array_equal(ids, wanted)
    by_cublas = dtype == "float32" and "real" in request.node.callspec.id
    np.testing.assert_allclose(logprobs, theirs, rtol=2e-6 if by_cublas else 0)


@device
def test_a_token_is_one_launch_and_one_look(cuda):
    standin = pytest.importorskip("cuda_sim.standin")
    if sys.modules["cupy"].__version__ != "stand-in":
        pytest.skip("a GPU counts nothing")
    model, counted = decoder(), []
    for count in (10, 11):
        standin.Count.reset()
        model.generate(ROWS, count, eos=())
        counted.append((standin.Count.launches, standin.Count.syncs))
    assert np.subtract(*counted[::-1]).tolist() == [1, 1]


@device
@pytest.mark.parametrize("options", [{}, {"window": 7}, {"temperature": 0.9, "top_k": 5}])
def test_a_cache_that_grows_is_recorded_anew(cuda, options):
    found = []
    for where in ("cuda", "cpu"):
        model, text = decoder(where=where), [[3, 1, 4]]
        cache = model.new_cache(1)
        for count in (7, 6):  # the second call goes on from the first one's cache
            rng = np.random.default_rng(0)
            text = model.generate(text, count, cache=cache, eos=(), rng=rng, **options)
        found.append(text)
    np.testing.assert_array_equal(*found)


@device
def test_an_adapted_model_is_recorded_too(cuda):
    found = []
    for where in ("cuda", "cpu"):
        adapted = peft.attach(decoder(where=where), peft.LoRA(2), rng=np.random.default_rng(1))
        for _, p in adapted.trained():
            p.assign_(np.resize(np.linspace(-1, 1, 7, dtype="f4"), p.shape))
        found.append(adapted.generate(ROWS, 8, eos=()))
    np.testing.assert_array_equal(*found)


class Curious(nn.Module):
    """A part that looks at its numbers."""

    def __init__(self, inner):
        self.inner = inner

    def forward(self, x, *, rng=None):
        assert np.isfinite(x.sum().item())
        return self.inner(x, rng=rng)


@device
def test_a_model_that_looks_at_its_numbers_is_called_as_it_is(cuda):
    model = decoder()
    wanted = model.generate(ROWS, 8, eos=())
    model.layers[1].feed_forward = Curious(model.layers[1].feed_forward)
    np.testing.assert_array_equal(model.generate(ROWS, 8, eos=()), wanted)


# ------------------------------------------------------------------------------ what they need


def test_gradients_scaled_on_the_device_are_those_that_are_clipped():
    rng = np.random.default_rng(0)
    for scale in (0.01, 100.0):
        pair = [[tg.tensor(np.ones(3, "f4"), requires_grad=True) for _ in range(2)]
                for _ in range(2)]  # fmt: skip
        for group in pair:
            for i, p in enumerate(group):
                p.grad = tg.tensor(scale * np.arange(1.0, 4) * (i + 1), dtype="float32")
        norm, same = optim.scale_gradients(pair[0], 1.0), optim.clip_grad_norm(pair[1], 1.0)
        assert float(norm) == pytest.approx(same, rel=1e-6)
        for p, q in zip(*pair, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-6)
    pair[0][0].grad = tg.tensor([np.inf, 1, rng.random()], dtype="float32")
    assert np.isinf(float(optim.scale_gradients(pair[0], 1.0)))
    assert all((p.grad.numpy() == 0).all() for p in pair[0])


def test_the_stand_in_has_the_parameters_of_cupys_streams_and_graphs():
    from cuda_sim import standin

    listed = [name.split(".") for name in standin.SIGNATURES if name.startswith("cuda.")]
    for _, kind, name in (parts for parts in listed if len(parts) == 3):
        ours = inspect.signature(getattr(getattr(standin, kind), name)).parameters
        assert ", ".join(ours) == standin.SIGNATURES[f"cuda.{kind}.{name}"]
