"""Perplexity: every token predicted once, from as much as the window holds."""

import numpy as np
import pytest

import tinygrad_ml as tg
from tinygrad_ml.cli import main
from tinygrad_ml.llama import ByteTokenizer, Llama, LlamaConfig
from tinygrad_ml.llama.evaluate import Score, perplexity


@pytest.fixture(scope="module")
def model():
    model = Llama(
        LlamaConfig(30, 16, 2, 2, 24, max_length=8), rng=np.random.default_rng(0), dtype="float64"
    )
    for p in model.parameters():
        p.assign_(p.data * 20 if p.ndim == 2 else p.data)
    return model


TEXT = np.random.default_rng(1).integers(0, 30, 23)


def by_definition(model, context, stride):
    """Token i from the window that predicts it first."""
    total = 0.0
    for i in range(1, len(TEXT)):
        end = context + 1 + max(0, -(-(i - context) // stride)) * stride
        begin = max(0, min(end, len(TEXT)) - context - 1)
        with tg.no_grad():
            logits = model(TEXT[None, begin:i]).numpy()[0, -1]
        total += np.logaddexp.reduce(logits) - logits[TEXT[i]]
    return total


@pytest.mark.parametrize(("context", "stride"), [(8, 4), (8, 8), (8, 1), (5, 3), (40, 20), (1, 1)])
def test_every_token_is_predicted_once(model, context, stride):
    nll, count = perplexity(model, TEXT, context, stride)
    assert count == len(TEXT) - 1
    np.testing.assert_allclose(nll, by_definition(model, context, stride), rtol=1e-9)


def test_a_model_that_knows_nothing_has_the_vocabularys_perplexity():
    nll, count = perplexity(Llama(LlamaConfig(30, 16, 1, 2, 24), rng=None), TEXT, 8)
    assert Score(nll, count, 99).perplexity == pytest.approx(30)


def test_errors_name_the_argument(model):
    with pytest.raises(ValueError, match="stride: got 9, expected 1 to context, which is 8"):
        perplexity(model, TEXT, 8, 9)
    with pytest.raises(ValueError, match="tokens: got 1"):
        perplexity(model, TEXT[:1])


def test_the_command(tmp_path, capsys):
    Llama(LlamaConfig(257, 16, 1, 2, 24), rng=None).save_pretrained(tmp_path)
    ByteTokenizer().save(tmp_path / "tokenizer.json")
    (tmp_path / "text").write_text("to be or not to be")
    main(["eval", str(tmp_path), "--data", str(tmp_path / "text")])
    out = capsys.readouterr().out  # a byte is a character, log2(257) bits, but for the first
    assert "17 tokens" in out
    assert f"{17 / 18 * np.log2(257):.4f} bits per character" in out
