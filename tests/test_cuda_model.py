"""Models and estimators on the device "cuda": the numbers of the CPU. Simulated, or on a GPU."""

import numpy as np
import pytest
from test_cuda_kernels import numbers

from tinygrad_ml import backend, optim
from tinygrad_ml.estimators import SOM, LogisticRegression
from tinygrad_ml.llama import Llama, LlamaConfig

device = pytest.mark.usefixtures("cuda")
CONFIG = LlamaConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48)
TOKENS = np.arange(14).reshape(2, 7) * 5 % 50


def llama(where, dtype="float32"):
    return Llama(CONFIG, rng=np.random.default_rng(0), device=where, dtype=dtype)


@device
def test_training_a_llama(cuda):
    """Three steps: the losses of the CPU, to the rounding of a step's sums."""
    losses = []
    for where in ("cuda", "cpu"):
        model, found = llama(where), []
        optimizer = optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            loss = model.loss(TOKENS[:, :-1], TOKENS[:, 1:])
            loss.backward()
            optim.clip_grad_norm(list(model.parameters()), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        losses.append(found)
    np.testing.assert_allclose(*losses, rtol=1e-5)


@device
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_llama_in_half_precision(cuda, dtype):
    losses = [llama(where, dtype).loss(TOKENS[:, :-1], TOKENS[:, 1:]).item()
              for where in ("cuda", "cpu")]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=2e-2 if dtype == "bfloat16" else 3e-3)


@device
def test_generating_token_by_token(cuda):
    made = [np.asarray(llama(where).generate(TOKENS[:, :3], 6)) for where in ("cuda", "cpu")]
    np.testing.assert_array_equal(*made)


@device
def test_moving_a_model_keeps_its_bits(cuda):
    model = llama("cpu")
    before = {name: np.array(a) for name, a in model.state_dict().items()}
    there = model.to("cuda")
    assert {p.device for p in there.parameters()} == {"cuda:0"}
    for name, a in there.to("cpu").state_dict().items():
        np.testing.assert_array_equal(a, before[name])


@device
def test_logistic_regression(cuda):
    x, y = numbers(60, 4), (numbers(60) > 0).astype(int)
    here = LogisticRegression().fit(x, y)
    there = LogisticRegression().fit(*(backend.to_device(a, "cuda") for a in (x, y)))
    assert backend.device_of(there.coef_) == "cuda:0"
    np.testing.assert_allclose(backend.to_host(there.coef_), here.coef_, rtol=1e-6)


@device
def test_self_organising_map(cuda):
    x = numbers(50, 3)
    here = SOM((4, 3), random_state=0).fit(x)
    there = SOM((4, 3), random_state=0).fit(backend.to_device(x, "cuda"))
    assert backend.device_of(there.codebook_) == "cuda:0"
    np.testing.assert_allclose(
        backend.to_host(there.codebook_), here.codebook_, rtol=1e-6, atol=1e-9
    )
