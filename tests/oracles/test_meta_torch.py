"""Meta's .pth files, as torch.save writes them."""

import json
import os
import pickle

import numpy as np
import pytest

from tinygrad_ml.io import FormatError
from tinygrad_ml.llama.formats import meta

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64"])
def test_tensors_are_read_exactly(tmp_path, dtype):
    a = (100 * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))).to(
        getattr(torch, dtype)
    )
    torch.save(
        {"a": a, "transposed": a.T, "part": a[1:, ::2], "number": a[0, 0]}, tmp_path / "x.pth"
    )
    found = meta.read_pth(tmp_path / "x.pth")
    for name, x in (("a", a), ("transposed", a.T), ("part", a[1:, ::2]), ("number", a[0, 0])):
        assert found[name].shape == tuple(x.shape)
        assert (found[name].astype("float64") == x.double().numpy()).all()


class Evil:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


def test_what_is_no_tensor_is_refused(tmp_path):
    torch.save({"a": Evil()}, tmp_path / "x.pth")
    with pytest.raises(FormatError, match="more than tensors.*system is no tensor"):
        meta.read_pth(tmp_path / "x.pth")
    torch.save([1, 2], tmp_path / "y.pth")
    with pytest.raises(FormatError, match="table of tensors"):
        meta.read_pth(tmp_path / "y.pth")
    (tmp_path / "z.pth").write_bytes(pickle.dumps({}))
    with pytest.raises(FormatError, match="no PyTorch zip file"):
        meta.read_pth(tmp_path / "z.pth")


def test_a_model_cut_in_two_is_joined(tmp_path):
    rng = np.random.default_rng(0)
    dim, hidden, vocab, heads = 8, 12, 10, 2
    sizes = {
        "tok_embeddings.weight": (vocab, dim, 1),
        "norm.weight": (dim, None),
        "output.weight": (vocab, dim, 0),
        "layers.0.attention.wq.weight": (dim, dim, 0),
        "layers.0.attention.wk.weight": (dim, dim, 0),
        "layers.0.attention.wv.weight": (dim, dim, 0),
        "layers.0.attention.wo.weight": (dim, dim, 1),
        "layers.0.attention_norm.weight": (dim, None),
        "layers.0.ffn_norm.weight": (dim, None),
        "layers.0.feed_forward.w1.weight": (hidden, dim, 0),
        "layers.0.feed_forward.w2.weight": (dim, hidden, 1),
        "layers.0.feed_forward.w3.weight": (hidden, dim, 0),
    }
    whole = {n: torch.tensor(rng.normal(size=s[:-1])) for n, s in sizes.items()}
    for i in range(2):
        parts = {
            n: x if sizes[n][-1] is None else x.chunk(2, sizes[n][-1])[i].clone()
            for n, x in whole.items()
        }
        torch.save(parts, tmp_path / f"consolidated.0{i}.pth")
    params = {"dim": dim, "n_layers": 1, "n_heads": heads, "vocab_size": -1, "norm_eps": 1e-6}
    (tmp_path / "params.json").write_text(json.dumps(params))
    assert meta.recognises(tmp_path)
    config, arrays = meta.read(tmp_path)
    assert (config.vocab_size, config.hidden_dim, config.norm_eps) == (vocab, hidden, 1e-6)
    for name in ("tok_embeddings", "layers.0.feed_forward.w2", "layers.0.attention.wo"):
        ours = {
            "tok_embeddings": "embedding",
            "layers.0.feed_forward.w2": "layers.0.feed_forward.down",
            "layers.0.attention.wo": "layers.0.attention.wo",
        }[name]
        np.testing.assert_array_equal(arrays[ours + ".weight"], whole[name + ".weight"].numpy())
    q = whole["layers.0.attention.wq.weight"].numpy()  # rows 0 1 2 3 of a head become 0 2 1 3
    np.testing.assert_array_equal(
        arrays["layers.0.attention.wq.weight"], q[[0, 2, 1, 3, 4, 6, 5, 7]]
    )
