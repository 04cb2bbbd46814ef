"""Run the frozen layers once per text: layers above them learn from what a store keeps of each.

What:     of each distinct text the output of layer k is computed once, without dropout; a batch is put together from those.
Papers:   embedding recycling (arXiv:2207.04993).
Formula:  h_k of a text depends on nothing that learns, so that head(upper(h_k)) is what the whole model would answer.
Limits:   the families of compressor/families.py; in float32 a stored text differs from one computed in another batch by rounding alone.
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressor.encoded import Encoded
from compressor.errors import RecipeError
from compressor.families import Inner, Place, captured, encoder_layers, family, shape_of
from compressor.modeling import PlainModel
from compressor.settings.training import Finetune
from compressor.store import Store
from compressor.tokens import Floats, Ints, Tokens, content_of, length_batches
from compressor.tuning import prepare

FILLED_AT_ONCE = 64
"""Texts that are computed together while a store is filled."""
_NO_PART = {"id2label", "label2id", "num_labels", "problem_type", "architectures", "num_hidden_layers", "n_layers", "layer_types"} | {
    "_name_or_path",
    "dtype",
    "transformers_version",
}
"""Keys of a configuration that tell of heads, of layers above, or of where it came from."""


class Lower:
    """The frozen part: embeddings and the first `layers` layers of a model, in evaluation mode and without gradients."""

    def __init__(
        self, model: PreTrainedModel, layers: int, device: torch.device, precision: torch.autocast, key: str = "recycle.layer"
    ) -> None:
        """Copy the part out of the model; `key` is where the recipe asks for it.

        Raises:
            RecipeError: the model has fewer layers.
        """
        check_layers(model, layers, key)
        where = family(model)
        self.place, self.device, self.precision = layers, device, precision
        self._one = Lock()  # a reader ahead and a validation may ask at once: what is captured, and autocast, are of the model
        upper = encoder_layers(model)[layers:]
        kept = {id(module): None for module in upper}  # not worth a copy: they are dropped from it
        copied: PreTrainedModel = copy.deepcopy(model, dict(kept))
        copied.set_submodule(where.layers, encoder_layers(copied)[:layers])
        self.model = PlainModel(copied.requires_grad_(False).eval().to(device))

    def at(self, layers: int) -> "Lower":
        """Return the same part, shared, as one whose states are those after fewer of its layers."""
        found = copy.copy(self)
        found.place = layers
        return found

    def digest(self) -> str:
        """Return the hash of what the states depend on: these layers' weights, and how they compute."""
        config = {key: value for key, value in self.model.model.config.to_dict().items() if key not in _NO_PART}
        found = hashlib.sha256(json.dumps([config, self.place], sort_keys=True, default=str).encode())
        for name, value in sorted(self.model.model.base_model.state_dict().items()):
            if not name.startswith("pooler"):
                found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def states(self, tokens: Tokens, pad_id: int) -> list[Floats]:
        """Return each text's states after the last of these layers, float32 (tokens, width)."""
        return self.states_at([self.place], tokens, pad_id)[self.place]

    @torch.no_grad()
    def states_at(self, layers: Sequence[int], tokens: Tokens, pad_id: int) -> dict[int, list[Floats]]:
        """Return what `states` does after each of some layers, all from one pass."""
        batch = {name: torch.from_numpy(array).to(self.device) for name, array in tokens.padded(pad_id).items()}
        places: dict[int, Place] = {layer: ("hidden", layer) for layer in layers}
        with self._one, captured(self.model.model, places.values()) as seen, self.precision:
            self.model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        whole, lengths = {layer: seen[place].float().cpu().numpy() for layer, place in places.items()}, tokens.lengths.tolist()
        return {layer: [text[:length] for text, length in zip(found, lengths, strict=True)] for layer, found in whole.items()}


def check_layers(model: PreTrainedModel, layers: int, key: str) -> None:
    """Refuse to recycle layers that are not there.

    Raises:
        RecipeError: the model has fewer, or does more between them than run them; or its family is not known.
    """
    family(model)
    if getattr(model.config, "conv_kernel_size", 0):
        raise RecipeError(
            f"{key}: this {model.config.model_type} encoder convolves after its first layer, so that none runs alone; leave it out"
        )
    if not 1 <= layers <= (count := most_layers(model)):
        raise RecipeError(f"{key} {layers}: this encoder can recycle 1 to {count} layers; choose one of these")


def most_layers(model: PreTrainedModel) -> int:
    """Return how many layers of this encoder may be recycled: all, but for a family whose encoder does not run without one."""
    return shape_of(model).layers - int(model.config.model_type == "deberta-v2")


@dataclass(frozen=True)
class Recycled(Encoded):
    """A split whose batches hold what the frozen layers made of its texts: `states` (batch, longest, width)."""

    lower: Lower
    store: Store
    keys: tuple[bytes, ...]
    ahead: ClassVar[int] = 2

    @classmethod
    def of(cls, data: Encoded, lower: Lower, store: Store) -> "Recycled":
        """Return the split with its texts' keys."""
        keys = tuple(store.identity.key(content_of(text)) for text in data.tokens)
        return cls(
            **{name: getattr(data, name) for name in Encoded.__dataclass_fields__ if name in vars(data)},
            lower=lower,
            store=store,
            keys=keys,
        )

    def part(self, share: float) -> "Recycled":
        """Return a share of the examples, as Encoded does."""
        return Recycled.of(super().part(share), self.lower, self.store)

    def batch(self, rows: Ints, draw: int = 0) -> dict[str, NDArray[Any]]:
        """Return a batch as Encoded does, and the states; what the store does not know is computed and kept."""
        arrays = super().batch(rows, draw)
        found = self.known(rows)
        states = np.zeros((*arrays["input_ids"].shape, found[0].shape[1]), np.float32)
        for number, own in enumerate(found):
            states[number, : len(own)] = own
        return {**arrays, "states": states}

    def known(self, rows: Ints) -> list[Floats]:
        """Return the states of these texts."""
        keys = [self.keys[row] for row in rows]
        return self.store.through(keys, lambda missing: self.lower.states(self.tokens.rows(rows[missing]), self.pad_id))

    def fill(self) -> Iterator[int]:
        """Compute what the store lacks, texts of like length together, as long as it keeps them; yield how many texts are done."""
        done = 0
        for rows in length_batches(self.tokens.lengths, FILLED_AT_ONCE):
            if not self.store.filling:  # a batch then computes its own
                return
            self.known(rows)
            done += len(rows)
            yield done


class _Given(nn.Module):
    """In the place of the embeddings: returns the states that it was given."""

    states: Tensor

    def forward(self, *_: object, **__: object) -> Tensor:
        return self.states


class Upper(nn.Module):
    """The layers above the frozen ones, and the head, as a module from states to logits; made by `above`."""

    def __init__(self, model: PreTrainedModel, given: _Given, below: int) -> None:
        super().__init__()
        self.plain, self.given, self.below = PlainModel(model), given, below

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, states: Tensor) -> Tensor:
        """Return the whole model's logits, from the states of the frozen layers (batch, seq, width)."""
        self.given.states = states
        logits: Tensor = self.plain(input_ids, attention_mask, token_type_ids)
        return logits


@contextmanager
def above(model: PreTrainedModel, layers: int) -> Iterator[Upper]:
    """Take the first layers out of a model while the others learn, and put them back in the end."""
    where, given = family(model), _Given()
    whole, embeddings = model.get_submodule(where.layers), model.get_submodule(where.embeddings)
    projected = f"{where.embeddings}_project"  # ELECTRA widens its embeddings: states are wide already
    parent = model.get_submodule(projected.rpartition(".")[0])
    widened = getattr(parent, "embeddings_project", None)
    model.set_submodule(where.layers, encoder_layers(model)[layers:])
    model.set_submodule(where.embeddings, given)
    if widened is not None:
        model.set_submodule(projected, nn.Identity())
    try:
        yield Upper(model, given, layers)
    finally:
        model.set_submodule(where.layers, whole)
        model.set_submodule(where.embeddings, embeddings)
        if widened is not None:
            model.set_submodule(projected, widened)


def learning(model: PreTrainedModel, layers: int) -> AbstractContextManager[PlainModel | Upper]:
    """Return the model as it learns above so many recycled layers, which then stay as they are; as a whole above none."""
    return above(prepare(model, Finetune(), layers), layers) if layers else nullcontext(PlainModel(model))  # type: ignore[arg-type]


@contextmanager
def captured_in(forward: PlainModel | Upper, places: Iterable[Place]) -> Iterator[Inner]:
    """Collect as `captured` does what a model computes at places, which count from its first layer, also where that was taken out."""
    if isinstance(forward, PlainModel):
        with captured(forward.model, places) as seen:
            yield seen
        return
    moved = {place: (place[0], place[1] - forward.below if place[1] >= 0 else place[1]) for place in places}
    with captured(forward.plain.model, moved.values()) as seen:
        yield _Moved(seen, moved)


class _Moved(Mapping[Place, Tensor]):
    """What was seen, by the places that were asked."""

    def __init__(self, seen: Inner, moved: Mapping[Place, Place]) -> None:
        self.seen, self.moved = seen, moved

    def __getitem__(self, place: Place) -> Tensor:
        return self.seen[self.moved[place]]

    def __iter__(self) -> Iterator[Place]:
        return iter(self.moved)

    def __len__(self) -> int:
        return len(self.moved)
