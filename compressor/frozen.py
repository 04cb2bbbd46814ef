"""Any frozen module behind a store: each distinct object runs once, whatever it is.

    store = Store(Path("store"), identity_of(encoder, "float16"), 1e9, print)
    frozen = Frozen(encoder, store)
    states = frozen(images)          # runs the encoder; the next time, in any order or batch, it does not

What:     keys from the objects' own bytes, or from what a callable says of them; outputs as of compressor/store.py.
Papers:   embedding recycling (arXiv:2207.04993).
Formula:  key = sha256(identity; extract(object)); identity holds the digest of all weights and buffers.
Limits:   objects are tensors of one shape; outputs are (batch, rows, width) or (batch, width).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.entries import DType
from compressor.store import Identity, Store
from compressor.tokens import Floats

KeyExtractor = Callable[[Any], bytes]
"""What tells an object from others."""


def bytes_of(tensor: Tensor) -> bytes:
    """Return a tensor's type, shape and content."""
    array = tensor.detach().cpu().contiguous()
    return f"{array.dtype} {list(array.shape)} ".encode() + array.view(torch.uint8).numpy().tobytes()


def identity_of(module: nn.Module, dtype: DType) -> Identity:
    """Return whose outputs a store would hold: a module's by all its weights and buffers."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + bytes_of(tensor.reshape(-1)))
    return Identity(digest.hexdigest(), 0, "", "float32", dtype)


class Frozen:
    """A module in evaluation mode, without gradients, that computes what its store does not know."""

    def __init__(self, module: nn.Module, store: Store, extract: KeyExtractor = bytes_of) -> None:
        """Take the module as it is; `extract` may be cheaper than hashing all of an object, as its file's name is."""
        self.module, self.store, self.extract = module.eval().requires_grad_(False), store, extract

    def __call__(self, objects: Sequence[Tensor]) -> list[Floats]:
        """Return the output of each object, float32 (rows, width)."""
        keys = [self.store.identity.key(self.extract(one)) for one in objects]
        return self.store.through(keys, lambda missing: self._computed([objects[number] for number in missing]))

    @torch.no_grad()
    def _computed(self, objects: Sequence[Tensor]) -> list[Floats]:
        whole: Tensor = self.module(torch.stack(list(objects)))
        return list(whole.reshape(len(objects), -1, whole.shape[-1]).float().cpu().numpy())
