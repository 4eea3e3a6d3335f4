"""Where in a model something is: paths, and the patterns that choose among them.

Patterns match Hugging Face's paths (model.layers.0.self_attn.q_proj), as in their peft: a list of
names matches whole paths or their last words, a text is a regular expression for the whole path.
"""

import re

from .. import nn
from ..llama.formats.huggingface import our_name, their_name

ALL_LINEAR = "all-linear"  # every Linear but the head
LINEARS = (nn.Linear, nn.QuantizedLinear)
MATRICES = (*LINEARS, nn.Embedding, nn.QuantizedEmbedding)
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")
_BLOCKS = {"attention": "self_attn", "feed_forward": "mlp"}


class Wrapped(nn.Module):
    """A part of the model and the pieces that adapters add to it: y <- y + w d(x, y)."""

    def __init__(self, base, selection):
        self.base, self.pieces = base, {}
        self._selection = selection

    def active(self):
        """Triples (name, piece, weight) of the adapters in use, in the order of their use."""
        weights = self._selection.weights.items()
        return [(name, self.pieces[name], w) for name, w in weights if name in self.pieces]

    def forward(self, x, *, rng=None, **options):
        active = self.active()
        if len(active) == 1 and hasattr(active[0][1], "part") and _is_one(active[0][2]):
            return active[0][1].part(x, rng=rng, **options)
        inputs, inner = [], x
        for _, piece, w in reversed(active):  # the last one is the outermost
            inputs.append(inner)
            inner = _added(inner, piece.change_input(self.base, inner, rng=rng), w)
        y = self.base(inner, rng=rng, **options)
        for (_, piece, w), x in zip(active, reversed(inputs), strict=True):
            y = _added(y, piece.change(self.base, x, y, rng=rng, **options), w)
        return y


def _is_one(w):
    return isinstance(w, float) and w == 1.0


def _added(y, change, w):
    """y + w change      w: a float, or an array of one for each row"""
    if change is None:
        return y
    if not _is_one(w):
        change = change * (w if isinstance(w, float) else w.column(change))
    return y + (change if change.dtype == y.dtype else change.astype(y.dtype))


def bare(module):
    """The part itself, without what has been wrapped around it."""
    return module.base if isinstance(module, Wrapped) else module


def at(model, path):
    """What stands at this path, wrapped or not; the way there leads through wrappings."""
    for key in path.split("."):
        model = bare(model)
        model = model[int(key)] if isinstance(model, list) else getattr(model, key)
    return model


def put(model, path, new):
    above, _, key = path.rpartition(".")
    setattr(bare(at(model, above)) if above else model, key, new)


def paths(model):
    """{Hugging Face's path: path here} of every part of a model, wrapped or not."""
    found = {}
    for name, _ in model.named_modules():
        keys = name.split(".")
        if name and "pieces" not in keys:
            path = ".".join(key for key in keys if key != "base")
            found[their_path(path)] = path
    return found


def their_path(path):
    """'layers.0.attention' and 'layers.0.attention.wq' as Hugging Face calls them."""
    stem, _, last = path.rpartition(".")
    if last in _BLOCKS and stem.startswith("layers."):
        return f"model.{stem}.{_BLOCKS[last]}"
    return their_name(path)


def our_path(path):
    stem, _, last = path.rpartition(".")
    for ours, theirs in _BLOCKS.items():
        if last == theirs and stem.startswith("model.layers."):
            return f"{stem.removeprefix('model.')}.{ours}"
    return our_name(path)


def chosen(model, targets, kinds, *, layers=None, excluded=()):
    """The paths here of the parts of these kinds that the targets choose, in the model's order.

    ValueError if there are none; it says what could have been chosen.
    """
    available = {
        theirs: ours
        for theirs, ours in paths(model).items()
        if isinstance(bare(at(model, ours)), kinds)
    }
    found = [
        ours
        for theirs, ours in available.items()
        if not matches(theirs, excluded)
        and (layers is None or layer_of(theirs) in layers)
        and (
            (theirs != "lm_head" and isinstance(bare(at(model, ours)), LINEARS))
            if targets == ALL_LINEAR
            else matches(theirs, targets)
        )
    ]
    if not found:
        words = sorted({theirs.rpartition(".")[2] for theirs in available})
        raise ValueError(
            f"targets: {targets!r} matches no part of the model"
            f"{'' if layers is None else f' in layers {tuple(layers)}'}; there are "
            f"{', '.join(words)}"
        )
    return found


def matches(path, targets):
    """Whether a text matches the whole path, or one of the names its last words."""
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets)


def by_pattern(table, path, default):
    """The entry of the first pattern that matches the path's end; the default if none does."""
    for pattern, entry in table.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return entry
    return default


def layer_of(path):
    """The number in the path, or None."""
    number = _LAYER.match(path)
    return int(number[1]) if number else None
