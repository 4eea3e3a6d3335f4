"""attach: a frozen model with adapters, called as the model itself is."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from .. import nn
from ..autograd import no_grad
from ..llama import Llama
from ..llama.generate import generate
from ..tensor import array_of
from . import ahead
from .merge import merged_part, with_biases
from .method import Method
from .places import Wrapped, at, bare, paths, put, their_path
from .selection import Selection


def attach(model, config, name="default", *, rng=None):
    """The model, frozen, with an adapter that is trained and in use      -> Adapted

    model   a Llama, or one that was adapted before, which gets another adapter
    config  peft.LoRA(rank=8), peft.PrefixTuning(length=20), ...
    rng     numpy.random.default_rng(seed), for the initial values

    The model itself is changed, not copied: parts of it are wrapped. detach() undoes it.
    """
    if not isinstance(config, Method):
        raise TypeError(f"config: got {type(config).__name__}, expected one such as peft.LoRA()")
    if not isinstance(rng, np.random.Generator | None):
        raise TypeError(
            f"rng: got {type(rng).__name__}, expected numpy.random.default_rng(seed), or None for "
            "an adapter that is about to be loaded"
        )
    adapted = model if isinstance(model, Adapted) else Adapted(model)
    adapted._add(config, name, rng)
    return adapted


class Adapted(nn.Module):
    """A frozen model and its adapters; called, trained and asked to write as the model is.

    model     the model, with parts of it wrapped
    configs   {name: config}
    virtual   {name: Module} of those adapters that are virtual tokens
    """

    def __init__(self, model):
        if any(isinstance(x, Wrapped) for x in model.modules()):
            raise ValueError("model: it is adapted already; attach to what attach returned")
        self.model = model
        self.configs, self.virtual = {}, {}
        self._selection = Selection()
        self._flags = [(x, x.requires_grad) for x in model.parameters()]
        self._merged = None
        model.requires_grad_(False)

    config = property(lambda self: self.model.config)
    head = property(lambda self: self.model.head)

    def _add(self, config, name, rng):
        self._refuse_merged("attach")
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"name: got {name!r}, expected a text without a dot")
        if name in self.configs:
            raise ValueError(f"name: there is an adapter {name!r} already")
        with self.using(None):
            pieces, virtual = config.pieces(self.model, rng), config.virtual(self.model, rng)
        for path, piece in pieces.items():
            part = at(self.model, path)
            if not isinstance(part, Wrapped):
                part = Wrapped(part, self._selection)
                put(self.model, path, part)
            part.pieces[name] = piece
        if virtual is not None:
            self.virtual[name] = virtual
        self.configs[name] = config
        self.use(name)

    def remove(self, name):
        """Take one adapter away; returns itself."""
        self._refuse_merged("remove")
        self._check_name(name)
        for path, part in self._wrapped():
            part.pieces.pop(name, None)
            if not part.pieces:
                put(self.model, path, part.base)
        self.virtual.pop(name, None)
        del self.configs[name]
        self.use(next(iter(self.configs), None))
        return self

    # --- which adapters

    def use(self, chosen):
        """Choose what the next calls use; returns itself.

        "a"                    this adapter
        {"a": 0.5, "b": 0.5}   changes added with these weights, in this order
        ["a", None, "b"]       a batch of three rows, each with its own or with none
        None                   the model as it was
        """
        self._refuse_merged("use")
        self._selection.set(chosen, list(self.configs))
        return self

    @contextmanager
    def using(self, chosen):
        """`with adapted.using(None):` the same for a while."""
        before = self._selection.current()
        self.use(chosen)
        try:
            yield self
        finally:
            self.use(before)

    def adapter_parameters(self, name="default"):
        """{name in files: Tensor} of one adapter, by Hugging Face's paths."""
        self._check_name(name)
        found = {}
        for path, part in self._wrapped():
            if name in part.pieces:
                for key, x in part.pieces[name].named_parameters():
                    found[f"{their_path(path)}.{key}"] = x
        if name in self.virtual:
            found |= {f"virtual.{k}": x for k, x in self.virtual[name].named_parameters()}
        return found

    def count(self, name="default"):
        """How many numbers an adapter trains."""
        tensors = {id(x): x for x in self.adapter_parameters(name).values() if x.requires_grad}
        return sum(x.size for x in tensors.values())

    def trained(self):
        """Pairs (name, Tensor) of what is trained, for an optimiser."""
        return [(name, x) for name, x in self.named_parameters() if x.requires_grad]

    def drop_encoders(self):
        """Prefixes and prompts that a network computes become what it computes; returns itself.

        To be done after training: what an optimiser was made for is there no longer.
        """
        for virtual in self.virtual.values():
            virtual.drop_encoder()
        return self

    def _wrapped(self):
        """Pairs (path, Wrapped) in the model's order."""
        found = ((path, at(self.model, path)) for path in paths(self.model).values())
        return [(path, part) for path, part in found if isinstance(part, Wrapped)]

    def _check_name(self, name):
        if name not in self.configs:
            raise ValueError(f"name: got {name!r}, expected one of {', '.join(self.configs)}")

    # --- called as the model is

    forward, loss = Llama.forward, Llama.loss

    def hidden(
        self,
        tokens=None,
        *,
        embeddings=None,
        past=None,
        cache=None,
        mask=None,
        positions=None,
        segments=None,
        rng=None,
        recompute=False,
    ):
        """As the model's; virtual tokens stand before the text, and are not among the results."""
        context = {"embeddings": embeddings, "past": past, "mask": mask, "positions": positions,
                   "segments": segments, "rng": rng, "recompute": recompute}  # fmt: skip
        if isinstance(cache, ahead.AheadCache):
            cache.check(self._selection.key())
            context["positions"] = ahead.shifted(positions, cache.lengths)
            return self.model.hidden(tokens, cache=cache.inner, **context)
        b = len(array_of(tokens) if embeddings is None else embeddings.data)
        virtual = ahead.gather(self.virtual, self._selection, b)
        if virtual is None:
            return self.model.hidden(tokens, cache=cache, **context)
        if cache is not None:
            raise ValueError("cache: it lacks the virtual tokens; make it by adapted.new_cache(b)")
        tokens, context = ahead.before(virtual, self.model, tokens, context)
        return self.model.hidden(tokens, **context)[:, virtual.prompt.count :]

    def new_cache(self, b, capacity=0):
        """An empty cache for b rows; virtual tokens are in it, and not counted."""
        with no_grad():
            virtual = ahead.gather(self.virtual, self._selection, b)
            if virtual is None:
                return self.model.new_cache(b, capacity)
            cache = self.model.new_cache(b, capacity + virtual.count)
            ahead.fill(cache, virtual, self.model)
        return ahead.AheadCache(cache, virtual.lengths, self._selection.key())

    def generate(self, tokens, max_new_tokens, *, mask=None, num_beams=1, **options):
        """As the model's. Beams are searched a row at a time, each with its own adapter."""
        rows = self._selection.rows
        if rows is None or num_beams == 1:
            options |= {"mask": mask, "num_beams": num_beams}
            return generate(self, tokens, max_new_tokens, **options)
        if len(rows) != len(tokens):
            raise ValueError(
                f"use: {len(rows)} rows were given adapters, got {len(tokens)} prompts"
            )
        found = []
        for i, name in enumerate(rows):
            with self.using(name):
                own = None if mask is None else mask[i : i + 1]
                found.append(
                    generate(self, tokens[i : i + 1], max_new_tokens, mask=own,
                             num_beams=num_beams, **options)
                )  # fmt: skip
        return _stacked_rows(self.model, found, tokens, options)

    def save_pretrained(self, folder, dtype=None):
        """Refused while the model is adapted: its files would lack the adapters, or hold them."""
        if self._merged is None:
            raise ValueError(
                "save_pretrained: the model is adapted: merge() it first, or save the adapter "
                "alone by peft.save(adapted, folder)"
            )
        self.model.save_pretrained(folder, dtype)

    # --- back to a plain model

    def merge(self, keep=True, dense=False):
        """Add what is in use to the weights, so that the adapters cost nothing; returns itself.

        keep   keep the old weights, so that unmerge() can put them back, the very bytes. False:
               free them; all adapters are let go of, and .model is a plain model
        dense  make quantised weights dense where something is added to them. Without it merging
               over them is refused, because quantising the sum again would not be exact

        ValueError, before anything is changed, lists what cannot be merged, and why.
        """
        self._refuse_merged("merge")
        changed = self._changed(dense)
        config, wrapped = self.model.config, self._wrapped()
        for path, part in wrapped:
            put(self.model, path, changed.get(path, part.base))
        self.model.config = with_biases(self.model, _untied(self.model))
        self._merged = (config, wrapped)
        if not keep:
            self._forget()
        return self

    def unmerge(self):
        """Put back the weights and the adapters as they were before merge(); returns itself."""
        if self._merged is None:
            raise ValueError("unmerge: nothing is merged, or the old weights were not kept")
        self.model.config, wrapped = self._merged
        for path, part in wrapped:
            put(self.model, path, part)
        self._merged = None
        return self

    def detach(self):
        """The model as it was before attach, its weights trained or frozen as they were."""
        if self._merged is not None:
            self.unmerge()
        for path, part in self._wrapped():
            put(self.model, path, part.base)
        self._forget()
        return self.model

    def _changed(self, dense):
        """{path: the part with the changes of the adapters in use in its weights}"""
        if self._selection.rows is not None:
            raise ValueError("merge: rows use different adapters, there is one weight for all")
        changed = {}
        problems = [
            f"{name}: virtual tokens are no change of the weights"
            for name in self._selection.weights if name in self.virtual
        ]  # fmt: skip
        for path, part in self._wrapped():
            active = part.active()
            try:
                if active:
                    changed[path] = merged_part(part.base, active, dense)
            except ValueError as error:
                problems.append(f"{their_path(path)}: {error}")
        if problems:
            more = f"\n       and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError("merge: " + "\n       ".join(problems[:5]) + more)
        return changed

    def _forget(self):
        """Let go of every adapter; what was trained before attach is trained again."""
        for x, flag in self._flags:
            x.requires_grad = flag
        self.configs, self.virtual, self._merged = {}, {}, None
        self._selection.set(None, [])

    def _refuse_merged(self, doing):
        if self._merged is not None:
            raise ValueError(f"{doing}: the adapters are merged; unmerge() first")


def _untied(model):
    """The config, which says that the head is tied only while it is."""
    tied = getattr(bare(model.head), "weight", 0) is getattr(bare(model.embedding), "weight", 1)
    if not model.config.tie_embeddings or tied:
        return model.config
    return replace(model.config, tie_embeddings=False)


def _stacked_rows(model, found, prompts, options):
    """Rows that were written one by one, padded on the right to one length."""
    pairs = [x if isinstance(x, tuple) else (x, None) for x in found]
    longest = max(ids.shape[1] for ids, _ in pairs)
    eos = options.get("eos", model.config.eos)
    filler = 0 if eos in (None, ()) else eos if isinstance(eos, int) else eos[0]
    pad = [((0, 0), (0, longest - ids.shape[1])) for ids, _ in pairs]
    ids = np.concatenate(
        [np.pad(x, p, constant_values=filler) for (x, _), p in zip(pairs, pad, strict=True)]
    )
    if pairs[0][1] is None:
        return ids
    new = max(logprobs.shape[1] for _, logprobs in pairs)
    logprobs = [np.pad(x, ((0, 0), (0, new - x.shape[1]))) for _, x in pairs]
    return ids, np.concatenate(logprobs)
