import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.cheapening import ATTENTION, cheapen
from compressor.dropout import CheapDropout
from compressor.pretrained import load_model
from tests.test_families import CONFIGS, L, batch, model_of


def test_cheapen_replaces_every_dropout_once_and_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.4))).eval()
    cheapen(model)
    cheapen(model)
    found = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert [(type(m), m.p, m.training) for m in found] == [(CheapDropout, 0.2, False), (CheapDropout, 0.4, False)]


def gradients(model: nn.Module, *lengths: int) -> tuple[Tensor, list[Tensor]]:
    ids, mask, _ = batch(*lengths)
    logits = model(input_ids=ids, attention_mask=mask).logits
    logits.square().sum().backward()
    return logits, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("lengths", [(L, 9, 3), (L, L)])
@pytest.mark.parametrize("kind", CONFIGS)
def test_without_dropout_a_cheapened_model_trains_as_before(kind: str, lengths: tuple[int, ...]) -> None:
    model = model_of(kind)
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    changed = copy.deepcopy(model)
    cheapen(changed)
    expected, found = gradients(model.train(), *lengths), gradients(changed.train(), *lengths)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_evaluation_is_exact_and_the_attention_is_not_saved(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model, ("a", "b"))
    plain, ids = copy.deepcopy(model), torch.tensor([[2, 5, 6, 7, 3]])
    cheapen(model)
    assert model.config._attn_implementation == ATTENTION
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    model.save_pretrained(tmp_path / "saved")
    assert ATTENTION not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
