from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel

from compressor import finetuning
from compressor.classification import TextClassification
from compressor.errors import RecipeError
from compressor.losses import balanced_weights, label_loss
from compressor.modeling import PlainModel
from compressor.pretrained import load_model
from compressor.progress import Progress
from compressor.settings.training import Finetune
from compressor.training import Fitted, Step
from compressor.tuning import learning_parameters, merged, prepare
from tests.test_families import batch, model_of

KINDS = ["bert", "roberta", "electra", "mpnet", "distilbert", "deberta-v2"]
HEAD = ("classifier", "pre_classifier", "pooler")
SETTINGS = {
    "full": Finetune(),
    "freeze": Finetune(method="freeze", frozen_layers=2),
    "head": Finetune(method="freeze"),
    "bitfit": Finetune(method="bitfit"),
    "lora": Finetune(method="lora", rank=2),
}


def test_bitfit_of_a_family_without_biases_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"bitfit: modernbert here has no biases that could learn; use lora or adapters"):
        prepare(model_of("modernbert"), SETTINGS["bitfit"])


def train(model: PreTrainedModel, settings: Finetune, steps: int = 3) -> nn.Module:
    """Train on one batch; return the model as it was trained, before it is merged."""
    tuned = prepare(model, settings)
    forward = PlainModel(tuned).train()
    optimizer = torch.optim.SGD([p for p in forward.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        label_loss(forward(*batch(16, 9, 3)), torch.tensor([0, 1, 2]), batch(16, 9, 3)[1].bool(), "labels").backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned


def changed(kind: str, method: str) -> set[str]:
    """Names of the weights that differ after training; the model has its plain names again."""
    model = model_of(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged(train(model, SETTINGS[method]))
    after = model.state_dict()
    assert after.keys() == before.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def is_head(name: str) -> bool:
    return any(part in name for part in HEAD)


@pytest.mark.parametrize("kind", KINDS)
def test_freezing_leaves_embeddings_and_lower_layers_alone(kind: str) -> None:
    names = changed(kind, "freeze")
    assert any(is_head(name) for name in names)
    assert any("layer.2." in name for name in names)
    assert not any("layer.0." in name or "layer.1." in name or "embeddings" in name for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_alone_learns_when_all_layers_are_frozen(kind: str) -> None:
    names = changed(kind, "head")
    assert names
    assert all(is_head(name) for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_bitfit_trains_biases_and_the_head(kind: str) -> None:
    names = changed(kind, "bitfit")
    assert any("layer.0." in name for name in names)
    assert all(name.endswith("bias") or is_head(name) for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_changes_queries_values_and_the_head_once_merged(kind: str) -> None:
    names = changed(kind, "lora")
    inside = {name for name in names if not is_head(name)}
    assert len(inside) == 2 * 3  # a query and a value matrix in each of three layers
    assert all(name.endswith("weight") for name in inside)


def test_a_merged_model_answers_as_the_wrapped_one_did() -> None:
    model = model_of("bert")
    tuned = train(model, SETTINGS["lora"]).eval()
    with torch.no_grad():
        before = PlainModel(tuned).eval()(*batch(16, 9))
        merged(tuned)
        torch.testing.assert_close(PlainModel(model).eval()(*batch(16, 9)), before, atol=1e-5, rtol=0)


def test_a_merged_model_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    model = model_of("bert")
    merged(train(model, SETTINGS["lora"]))
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, ("a", "b", "c"))
    torch.testing.assert_close(again.state_dict(), model.state_dict())


def test_every_method_trains_fewer_weights_than_full_and_more_than_the_head() -> None:
    counts = {name: learning_parameters(prepare(model_of("bert"), settings)) for name, settings in SETTINGS.items()}
    assert max(counts, key=counts.__getitem__) == "full"
    assert min(counts, key=counts.__getitem__) == "head"
    assert len(set(counts.values())) == len(counts)


@pytest.mark.parametrize("method", ["full", "bitfit", "adapters", "lora"])
def test_above_all_layers_the_head_alone_learns(method: Any) -> None:
    """As the deepest probe of recycle.layer auto has it."""
    tuned = prepare(model_of("bert"), Finetune(method=method), recycled=3)
    names = {name for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert names
    assert all(is_head(name) for name in names)


def test_more_frozen_layers_than_there_are_is_refused() -> None:
    with pytest.raises(RecipeError, match="4 of 3 layers cannot be frozen"):
        prepare(model_of("bert"), Finetune(method="freeze", frozen_layers=4))


@pytest.mark.parametrize(("key", "method"), [("frozen_layers", "freeze"), ("rank", "lora")])
def test_a_key_of_another_method_is_refused(key: str, method: str) -> None:
    with pytest.raises(ValidationError, match=f"{key} belongs to method {method}, but method is bitfit"):
        Finetune.model_validate({"method": "bitfit", key: 2})


def test_balanced_weights_give_every_class_the_same_say() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    weights = balanced_weights(labels, 3)
    torch.testing.assert_close(weights * torch.bincount(labels), torch.full((3,), 2.0))
    torch.testing.assert_close(weights[labels].mean(), torch.tensor(1.0))
    some = balanced_weights(labels, 4)  # as a tag that the scheme has and the data has not
    assert some.isfinite().all()
    torch.testing.assert_close(some[labels].mean(), torch.tensor(1.0))


def test_what_normalises_above_all_layers_learns_with_them() -> None:
    model = prepare(model_of("modernbert"), Finetune(), 1)
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert "model.final_norm.weight" in learning
    assert not [name for name in learning if name.startswith(("model.embeddings", "model.layers.0."))]


def test_a_folder_with_adapters_serves_another_head(tmp_path: Path) -> None:
    model = model_of("bert")
    prepare(model, Finetune(method="adapters", adapter_size=4))
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, ("a", "b", "c", "d", "e"))
    assert again.config.num_labels == 5
    for name, weight in again.base_model.state_dict().items():
        torch.testing.assert_close(weight, model.base_model.state_dict()[name])
    assert load_model(tmp_path, (), "masked-lm").config.adapter_size == 4


def test_fine_tuning_weighs_classes_as_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, told = model_of("bert"), batch(16, 9, 3), list[float]()
    names = ("input_ids", "attention_mask", "token_type_ids")
    texts = dict(zip(names, inputs, strict=True)) | {"labels": torch.tensor([0, 1, 2])}
    model.classifier.weight.data *= 50  # so that the three texts are answered otherwise

    def fitted(forward: Any, losses: Any, *_: Any) -> Fitted:
        told.extend(loss.item() for loss in losses(texts, Step(0, 0.0)))
        return Fitted(1, 0.0, 0.0, 0.0, 1)

    monkeypatch.setattr(finetuning, "fit", fitted)
    monkeypatch.setattr(finetuning, "score_of", lambda *_: 0.0)
    train: Any = SimpleNamespace(targets=np.array([0, 0, 0, 1, 1, 2]))
    data = finetuning.TrainingData(train, train, "accuracy")
    for settings in (Finetune(), Finetune(class_weights="balanced")):
        finetuning.finetune(model, settings, data, TextClassification(), 1, tmp_path, Progress(quiet=True))
    logits, weights = PlainModel(model)(*inputs), torch.tensor([2 / 3, 1.0, 2.0])
    each = torch.nn.functional.cross_entropy(logits, texts["labels"], reduction="none")
    expected = [each.mean().item(), (each * weights[texts["labels"]]).mean().item()]
    assert told == pytest.approx(expected, rel=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-4
