"""P-tuning: a prompt that a small network computes while it is trained."""

from dataclasses import dataclass
from itertools import pairwise

from .. import nn, ops
from .method import Method, check_choice, check_counts, place_of
from .prompt import Prompt


@dataclass(frozen=True)
class PTuning(Method):
    """prompt = f(E)      E: (p, d), trained with f      Liu et al. 2021 (arXiv:2103.10385)

    That the virtual tokens come out of one network ties them together, and steadies training;
    afterwards only the prompt is needed (drop_encoders), which is what files hold.

    length   p, how many virtual tokens
    hidden   h, the width of f. None: no f, the prompt alone, as it comes from a file
    encoder  "mlp": W3 relu(W2 relu(W1 E + b1) + b2) + b3, W1: (h, d)  W2: (h, h)  W3: (d, h);
             "lstm", the paper's: an LSTM of h each way over the tokens, on it W2 relu(W1 x + b1) +
             b2, W1: (2 h, 2 h)  W2: (d, 2 h)
    layers   of the LSTM
    """

    length: int = 20
    hidden: int | None = 128
    encoder: str = "mlp"
    layers: int = 2

    def __post_init__(self):
        check_counts(self, "length", "layers")
        check_choice("encoder", self.encoder, ENCODERS)
        if self.hidden is not None:
            check_counts(self, "hidden")

    def virtual(self, model, rng):
        place = {"rng": rng, **place_of(model)}
        table = nn.parameter((self.length, model.config.dim), init=nn.unit_normal, **place)
        if self.hidden is None:
            return Prompt(table)
        network = ENCODERS[self.encoder](model.config.dim, self, **place)
        return Prompt(encoder=PromptEncoder(table, network))


class PromptEncoder(nn.Module):
    def __init__(self, embedding, network):
        self.embedding, self.network = embedding, network

    def forward(self):
        return self.network(self.embedding)


class MLP(nn.Module):
    """Linears with a relu between      (p, d) -> (p, d)"""

    def __init__(self, *widths, rng, **place):
        self.layers = [nn.Linear(*pair, bias=True, rng=rng, **place) for pair in pairwise(widths)]

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = ops.relu(layer(x))
        return self.layers[-1](x)


class LSTMNetwork(nn.Module):
    """An MLP over LSTMs that read the tokens both ways      (p, d) -> (p, d)"""

    def __init__(self, d, method, **place):
        h, widths = method.hidden, [d, *[2 * method.hidden] * (method.layers - 1)]
        self.ways = [[LSTM(width, h, **place), LSTM(width, h, **place)] for width in widths]
        self.head = MLP(2 * h, 2 * h, d, **place)

    def forward(self, x):
        for onward, back in self.ways:
            x = ops.concatenate(onward(x), back(x[::-1])[::-1], axis=-1)  # (p, 2 h)
        return self.head(x)


class LSTM(nn.Module):
    """c <- s(f) c + s(i) tanh(g), h <- s(o) tanh(c), s the logistic function; h of every token

    i, f, g, o = W x + U h + b      (p, inputs) -> (p, h)      Hochreiter & Schmidhuber 1997
    """

    def __init__(self, inputs, h, *, rng, **place):
        init = lambda rng, shape: rng.uniform(-(h**-0.5), h**-0.5, shape)  # PyTorch's
        self.inner = nn.Linear(inputs, 4 * h, bias=True, rng=rng, init=init, **place)
        self.again = nn.Linear(h, 4 * h, rng=rng, init=init, **place)

    def forward(self, x):
        read = self.inner(x)  # (p, 4 h)
        states, h, c = [], None, None
        for token in range(x.shape[0]):
            gates = read[token : token + 1]
            gates = gates if h is None else gates + self.again(h)
            i, f, g, o = gates.reshape(4, 1, -1)
            new = ops.sigmoid(i) * ops.tanh(g)
            c = new if c is None else ops.sigmoid(f) * c + new
            h = ops.sigmoid(o) * ops.tanh(c)
            states.append(h)
        return ops.concatenate(*states, axis=0)


def _mlp(d, method, **place):
    return MLP(d, method.hidden, method.hidden, d, **place)


ENCODERS = {"mlp": _mlp, "lstm": LSTMNetwork}
