"""A frozen module of another modality behind the store that texts have."""

import copy
import logging
import shutil
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from compressor.entries import DType
from compressor.errors import RecipeError
from compressor.frozen import Frozen, identity_of
from compressor.store import Store


class VisionEncoder(nn.Module):
    """Patches of an image, embedded and seen by two layers of attention."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.patches = nn.Conv2d(3, 32, kernel_size=8, stride=8)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.5, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, patches, 32) of images (batch, 3, height, width)."""
        states: Tensor = self.layers(self.patches(images).flatten(2).transpose(1, 2))
        return states


def images(count: int) -> list[Tensor]:
    return list(torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


def store_of(encoder: nn.Module, folder: Path, dtype: DType = "float32") -> Store:
    return Store(folder, identity_of(encoder, dtype), 2**26, print)


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("float16", 1e-2), ("int8", 0.05)])
def test_each_distinct_image_is_seen_once(dtype: DType, close: float, tmp_path: Path) -> None:
    encoder, pictures = VisionEncoder(), images(6)
    with torch.no_grad():
        expected = encoder.eval()(torch.stack(pictures)).numpy()
    store = store_of(encoder, tmp_path / "store", dtype)
    frozen = Frozen(encoder.train(), store)
    for order in ([0, 1, 2, 0], [5, 4, 3], [3, 0, 5, 1]):
        for number, found in zip(order, frozen([pictures[n] for n in order]), strict=True):
            assert found.shape == (16, 32)
            np.testing.assert_allclose(found, expected[number], atol=close)
    assert store.computed == 6
    store.close()


def test_a_key_may_be_what_a_callable_says(tmp_path: Path) -> None:
    encoder, (first, second) = VisionEncoder(), images(2)
    names = {id(first): b"a.png", id(second): b"a.png"}
    frozen = Frozen(encoder, store_of(encoder, tmp_path / "store"), lambda image: names[id(image)])
    (one,), (same,) = frozen([first]), frozen([second])
    np.testing.assert_array_equal(one, same)  # of one name: the caller said that they are one
    assert frozen.store.computed == 1
    frozen.store.close()


def test_a_callable_may_name_objects_that_are_no_tensors(tmp_path: Path) -> None:
    encoder, pictures = VisionEncoder(), images(3)
    for number, picture in enumerate(pictures):
        np.save(tmp_path / f"{number}.npy", picture.numpy())
    files, opened = sorted(tmp_path.glob("*.npy")), list[Path]()

    def loaded(paths: list[Path]) -> Tensor:
        opened.extend(paths)
        return torch.stack([torch.from_numpy(np.load(path)) for path in paths])

    frozen = Frozen(encoder, store_of(encoder, tmp_path / "store"), lambda path: path.name.encode(), loaded)
    found = frozen([files[2], files[0], files[2]])
    with torch.no_grad():
        expected = encoder(torch.stack([pictures[2], pictures[0]])).numpy()
    np.testing.assert_allclose(np.stack(found[:2]), expected, atol=1e-5)
    assert frozen([files[0], files[1]])[0].shape == (16, 32)
    assert opened == [files[2], files[0], files[1]]  # those that the store knows are not even read
    frozen.store.close()


def test_a_module_that_was_trained_meanwhile_is_still_asked_without_dropout(tmp_path: Path) -> None:
    encoder, (picture,) = VisionEncoder(), images(1)
    frozen = Frozen(encoder, store_of(encoder, tmp_path / "store"))
    encoder.train()
    (found,) = frozen([picture])
    with torch.no_grad():
        np.testing.assert_allclose(found, encoder.eval()(picture[None])[0].numpy(), atol=1e-5)
    frozen.store.close()


def layer_of(**differing: object) -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(**{"d_model": 32, "nhead": 4, "dim_feedforward": 64, "batch_first": True, **differing})  # type: ignore[arg-type]


@pytest.mark.parametrize("differing", [{"nhead": 8}, {"norm_first": True}, {"activation": "gelu"}, {"layer_norm_eps": 1e-3}])
def test_modules_of_equal_weights_that_compute_otherwise_are_told_apart(differing: dict[str, object], tmp_path: Path) -> None:
    plain, other = layer_of(), layer_of(**differing)
    assert [t.tolist() for t in plain.state_dict().values()] == [t.tolist() for t in other.state_dict().values()]
    assert identity_of(plain, "float16") == identity_of(layer_of().train(), "float16")
    assert identity_of(plain, "float16") != identity_of(other, "float16")
    store = store_of(plain, tmp_path / "store")
    with pytest.raises(RecipeError, match="made for model"):
        Frozen(other, store)
    store.close()


def test_where_a_model_came_from_is_no_part_of_what_it_computes(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8)
    made = ViTModel(config)
    made.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    loaded = [ViTModel.from_pretrained(tmp_path / name) for name in "ab"]
    assert len({identity_of(model, "float16") for model in (made, *loaded)}) == 1
    attention = next(part for part in loaded[0].modules() if hasattr(part, "scaling"))
    attention.scaling *= 2
    assert identity_of(loaded[0], "float16") != identity_of(made, "float16")


@dataclass(slots=True)
class Slotted:
    pool: str


def test_what_changes_with_the_process_is_no_part_of_an_identity() -> None:
    module = nn.Identity()
    module.log = logging.getLogger("my.model")  # type: ignore[assignment]
    before = identity_of(module, "float16")
    logging.getLogger("another.library")
    assert identity_of(module, "float16") == before


class Pooling(Enum):
    MEAN = 0
    CLS = 1


def test_an_object_that_holds_itself_has_an_identity() -> None:
    module, held = nn.Identity(), SimpleNamespace(pool="mean")
    held.own = held
    module.how = held  # type: ignore[assignment]
    assert identity_of(module, "float16") == identity_of(copy.copy(module), "float16")


@pytest.mark.parametrize(
    ("module", "objects", "told"),
    [
        (nn.Flatten(0, 1), torch.arange(24.0).reshape(2, 3, 4), r"a tensor of shape \(6, 4\)"),
        (nn.Identity(), torch.arange(120.0).reshape(2, 3, 4, 5), r"a tensor of shape \(2, 3, 4, 5\)"),
        (nn.LSTM(4, 4, batch_first=True), torch.arange(24.0).reshape(2, 3, 4), "a tuple"),
    ],
)
def test_what_is_no_row_for_each_object_is_refused(module: nn.Module, objects: torch.Tensor, told: str, tmp_path: Path) -> None:
    frozen = Frozen(module, store_of(module, tmp_path / "store"))
    with pytest.raises(RecipeError, match=f"and here are 2 objects, but the module returns {told}"):
        frozen(list(objects))
    for key, kind in (("a", "str"), (None, "NoneType")):
        with pytest.raises(RecipeError, match=f"a key is bytes, but extract returns a {kind}; encode it"):
            Frozen(module, frozen.store, extract=lambda _, key=key: key)(list(objects))  # type: ignore[misc]
    frozen.store.close()


def test_what_is_kept_does_not_depend_on_who_asks(tmp_path: Path) -> None:
    module = nn.Linear(64, 64)
    frozen, images = Frozen(module, store_of(module, tmp_path / "store")), list(torch.randn(2, 64))
    with torch.autocast("cpu", torch.bfloat16):
        found = frozen(images)
    np.testing.assert_allclose(np.concatenate(found), module(torch.stack(images)).detach().numpy(), atol=1e-3)
    frozen.store.close()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.tensor(0.5), torch.tensor(0.6)),
        (np.float32(1), np.float32(2)),
        (np.arange(4).reshape(2, 2), np.arange(4)),
        ({1: 2, "1": "x"}, {1: 3, "1": "x"}),
        ({"a", "b"}, {"a", "c"}),
        (torch.Tensor.relu, torch.Tensor.sigmoid),
        (torch.nn.functional.relu, torch.nn.functional.gelu),
        (partial(torch.clamp, min=0), partial(torch.clamp, min=1)),
        (torch.float32, torch.bfloat16),
        (SimpleNamespace(pool="mean"), SimpleNamespace(pool="cls")),
        (Pooling.MEAN, Pooling.CLS),
        (np.array(["cat", "dog"]), np.array(["cat", "cow"])),
        ([SimpleNamespace(heads=2)], [SimpleNamespace(heads=4)]),
        (Slotted("mean"), Slotted("cls")),
    ],
)
def test_an_attribute_of_any_kind_tells_modules_apart(one: object, other: object) -> None:
    def having(value: object) -> str:
        module = nn.Identity()
        module.how = value  # type: ignore[assignment]
        return identity_of(module, "float16").model

    assert having(one) == having(copy.copy(one))
    assert having(one) != having(other)


def test_other_weights_never_hit(tmp_path: Path) -> None:
    encoder, other = VisionEncoder(), VisionEncoder(seed=1)
    store_of(encoder, tmp_path / "store").close()
    with pytest.raises(RecipeError, match="made for model"):
        store_of(other, tmp_path / "store")


class Hidden(nn.Module):
    """A module that holds another one in a list, where torch does not look."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = [inner]


def test_modules_that_share_parts_are_told_apart() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = first.weight
    modules = [
        nn.Sequential(first, second),
        nn.Sequential(first, second, first),
        nn.Sequential(first, second, second),
        nn.Sequential(first, tied),
        Hidden(first),
        Hidden(second),
    ]
    assert len({identity_of(module, "float32").model for module in modules}) == len(modules)
    assert identity_of(Hidden(first), "float32") == identity_of(Hidden(copy.deepcopy(first)), "float32")
