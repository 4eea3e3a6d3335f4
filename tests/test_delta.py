"""The change of a model as a LoRA: exact where the rank suffices, and the least error elsewhere."""

import numpy as np
import pytest

from tinygrad_ml import peft
from tinygrad_ml.llama import Llama, LlamaConfig
from tinygrad_ml.llama.formats.huggingface import their_name

CONFIG = LlamaConfig(vocab_size=30, dim=24, n_layers=2, n_heads=4, hidden_dim=40, n_kv_heads=2)
TOKENS = np.random.default_rng(9).integers(0, 30, (2, 7))


def model(seed=0):
    return Llama(CONFIG, rng=np.random.default_rng(seed), dtype="float64")


def changed(rank, seed=1):
    """The model with a change of that rank in every Linear, and the changes."""
    tuned, rng, changes = model(), np.random.default_rng(seed), {}
    for name, p in tuned.named_parameters():
        if p.ndim == 2 and name.split(".")[0] == "layers":
            n, m = p.shape
            changes[name] = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, m)) / 10
            p.assign_(p.numpy() + changes[name])
    return tuned, changes


def test_a_change_of_low_rank_comes_back_whole(tmp_path):
    tuned, _ = changed(rank=3)
    adapted, left = peft.compress(model(), tuned, rank=3)
    assert len(left) == 14
    assert max(x.share for x in left.values()) < 1e-12
    np.testing.assert_allclose(adapted(TOKENS).numpy(), tuned(TOKENS).numpy(), rtol=1e-9)
    peft.save(adapted, tmp_path)
    again = peft.load(model(), tmp_path)
    np.testing.assert_array_equal(again(TOKENS).numpy(), adapted(TOKENS).numpy())


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_error_is_what_is_left_and_no_other_of_that_rank_has_less(rank):
    tuned, changes = changed(rank=12)
    adapted, left = peft.compress(model(), tuned, rank=rank)
    merged = adapted.merge(keep=False).model.state_dict()
    start, rng = model().state_dict(), np.random.default_rng(2)
    for name, change in changes.items():
        path = their_name(name).removesuffix(".weight")
        low = merged[name] - start[name]
        error = np.linalg.norm(change - low)
        assert np.linalg.matrix_rank(low, tol=1e-9) == rank
        assert left[path].error == pytest.approx(error, rel=1e-8)
        assert left[path].norm == pytest.approx(np.linalg.norm(change), rel=1e-12)
        u, s, vt = np.linalg.svd(low)  # near ones of the same rank
        for _ in range(5):
            near = (u[:, :rank] + 1e-3 * rng.normal(size=u[:, :rank].shape)) * s[:rank] @ vt[:rank]
            assert np.linalg.norm(change - near) > error


def test_a_rank_beyond_the_matrix_is_the_matrix():
    tuned, _ = changed(rank=2)
    adapted, left = peft.compress(model(), tuned, rank=30)
    assert max(x.error for x in left.values()) < 1e-12
    np.testing.assert_allclose(adapted(TOKENS).numpy(), tuned(TOKENS).numpy(), rtol=1e-9)


def test_an_embedding_and_the_head_are_compressed_too():
    tuned, rng = model(), np.random.default_rng(5)
    for p in (tuned.embedding.weight, tuned.head.weight):
        p.assign_(p.numpy() + rng.normal(size=(30, 2)) @ rng.normal(size=(2, 24)))
    adapted, left = peft.compress(model(), tuned, rank=2, targets=["embed_tokens", "lm_head"])
    assert max(x.share for x in left.values()) < 1e-12
    np.testing.assert_allclose(adapted(TOKENS).numpy(), tuned(TOKENS).numpy(), rtol=1e-9)


def test_models_of_two_sizes_are_refused():
    other = Llama(LlamaConfig(30, 16, 2, 4, 40), rng=np.random.default_rng(0), dtype="float64")
    with pytest.raises(ValueError, match=r"q_proj: base \(24, 24\), tuned \(16, 16\)"):
        peft.compress(model(), other)
