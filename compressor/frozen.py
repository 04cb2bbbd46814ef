"""Any frozen module behind a store: each distinct object runs once, whatever it is.

    store = Store(Path("store"), identity_of(encoder, "float16"), 1e9, print)
    frozen = Frozen(encoder, store)
    states = frozen(images)          # runs the encoder; the next time, in any order or batch, it does not

What:     keys from the objects' own bytes, or from what a callable says of them; outputs as of compressor/store.py.
Papers:   embedding recycling (arXiv:2207.04993).
Formula:  key = sha256(identity; extract(object)); identity holds the digest of all weights, buffers and plain attributes.
Limits:   outputs are (batch, rows, width) or (batch, width); code is known by its name alone, and private attributes (`_…`) not at all:
          what computes otherwise by these needs a store of its own.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from itertools import chain
from operator import itemgetter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.entries import DType
from compressor.errors import RecipeError
from compressor.store import Identity, Store
from compressor.tokens import Floats

KeyExtractor = Callable[[Any], bytes]
"""What tells an object from others."""
_NO_FACTS = {"training", "name_or_path"}
"""Attributes that say nothing of what a module computes, as those that are its own affair (`_…`)."""
_ORIGIN = {"architectures", "dtype", "model_type", "transformers_version"}
"""Keys of a transformers configuration that tell where it came from, or what its class tells."""


def bytes_of(tensor: Tensor) -> bytes:
    """Return a tensor's type, shape and content."""
    array = tensor.detach().cpu().contiguous()
    return f"{array.dtype} {list(array.shape)} ".encode() + array.view(torch.uint8).numpy().tobytes()


def identity_of(module: nn.Module, dtype: DType) -> Identity:
    """Return whose outputs a store would hold: a module's by its parts' classes and plain attributes, all weights and all buffers.

    Attributes count because two modules may differ in nothing else: a layer's heads, what is normalised first, its activation.
    """
    digest = hashlib.sha256()
    for name, part in module.named_modules(remove_duplicate=False):  # one that is named twice computes twice
        own = {key: _told(value) for key, value in _facts(part).items()}
        digest.update(json.dumps([name, _told(type(part)), own], sort_keys=True).encode())
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    for name, tensor in sorted(named, key=itemgetter(0)):
        digest.update(name.encode() + bytes_of(tensor.reshape(-1)))
    return Identity(digest.hexdigest(), 0, "", "float32", dtype)


def _facts(owner: object) -> dict[str, Any]:
    return {key: value for key, value in vars(owner).items() if key not in _NO_FACTS and not key.startswith("_")}


def _told(value: object, within: tuple[int, ...] = ()) -> Any:
    """Return what JSON can hold of an attribute: numbers and texts, collections of them, dataclasses, configurations; else a type's name.

    Other objects hold what changes from process to process: loggers, caches, tokenizers.
    """
    if id(value) in within:
        return "itself"
    told = partial(_told, within=(*within, id(value)))
    if isinstance(value, Mapping):
        return sorted(json.dumps([told(key), told(one)]) for key, one in value.items())
    if isinstance(value, (set, frozenset)):
        return sorted(json.dumps(told(one)) for one in value)
    if isinstance(value, (list, tuple)):
        return [told(one) for one in value]
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        return [list(value.shape), told(value.tolist())]
    if isinstance(value, Enum):
        return [told(type(value)), value.name]
    if isinstance(value, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(value)
        return [list(tensor.shape), hashlib.sha256(bytes_of(tensor.reshape(-1))).hexdigest()]
    if isinstance(value, nn.Module):  # one that its owner does not register, as in a list
        parts = {name: told(_facts(part)) for name, part in value.named_modules(remove_duplicate=False)}
        return [told(type(value)), told(parts), told(value.state_dict())]
    if isinstance(value, partial):
        return [told(value.func), told(value.args), told(value.keywords)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.generic, torch.dtype)):
        return str(value)
    named = value if hasattr(value, "__qualname__") else type(value)
    if named is not value and hasattr(value, "model_type"):  # a configuration of transformers, which is a dataclass too
        return [told(named), told({key: one for key, one in _facts(value).items() if key not in _ORIGIN})]
    if is_dataclass(value) and named is not value:
        return [told(named), told({field.name: getattr(value, field.name) for field in fields(value)})]
    if isinstance(value, SimpleNamespace):
        return [told(named), told(_facts(value))]
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"  # type: ignore[attr-defined]


class Frozen:
    """A module in evaluation mode, without gradients, that computes what its store does not know."""

    def __init__(
        self,
        module: nn.Module,
        store: Store,
        extract: KeyExtractor = bytes_of,
        collate: Callable[[list[Any]], Tensor] = torch.stack,  # type: ignore[assignment]
    ) -> None:
        """Take the module as it is; `collate` makes the batch that it reads of any objects, of tensors of one shape by default.

        Rows that it pads are kept as they are computed, so that it should pad all alike, or be given objects of one shape at a time.

        `extract` may be cheaper than hashing all of an object, as its file's name is.

        Raises:
            RecipeError: the store holds another module's outputs.
        """
        store.check(identity_of(module, store.identity.dtype))
        self.module, self.store, self.extract, self.collate = module.requires_grad_(False), store, extract, collate

    def __call__(self, objects: Sequence[Any]) -> list[Floats]:
        """Return the output of each object, float32 (rows, width).

        Raises:
            RecipeError: the module returns something else than a tensor with a row of the batch for each object, or a key is not bytes.
        """
        told = [self.extract(one) for one in objects]
        if wrong := [type(one).__name__ for one in told if not isinstance(one, bytes)]:
            raise RecipeError(f"a key is bytes, but extract returns a {wrong[0]}; encode it")
        keys = [self.store.identity.key(one) for one in told]
        return self.store.through(keys, lambda missing: self._computed([objects[number] for number in missing]))

    @torch.no_grad()
    def _computed(self, objects: list[Any]) -> list[Floats]:
        held = next(chain(self.module.parameters(), self.module.buffers()), None)
        with torch.autocast(held.device.type if held is not None else "cpu", enabled=False):  # what is kept must not depend on who asks
            whole: Tensor = self.module.eval()(self.collate(objects))
        if not isinstance(whole, Tensor) or whole.ndim not in (2, 3) or len(whole) != len(objects):
            found = f"a tensor of shape {tuple(whole.shape)}" if isinstance(whole, Tensor) else f"a {type(whole).__name__}"
            shapes = f"(batch, rows, width) or (batch, width), and here are {len(objects)} objects"
            raise RecipeError(f"a store keeps tensors {shapes}, but the module returns {found}; wrap it in one that returns such a tensor")
        return list(whole.reshape(len(objects), -1, whole.shape[-1]).float().cpu().numpy())
