import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressor.dropout import ATTENTION, CheapDropout, attention_dropped, cheapen, dropped
from compressor.modeling import load_model
from tests.test_families import CONFIGS, L, batch, model_of


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_zeroes_the_share_and_keeps_the_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    out = CheapDropout(p)(torch.ones(1000, 401, dtype=dtype)).float()
    assert abs((out == 0).float().mean().item() - p) < 0.005
    assert abs(out.mean().item() - 1) < 0.01
    assert len(out.unique()) == 2


def test_elements_are_dropped_independently_of_their_neighbours() -> None:
    torch.manual_seed(0)
    zero = (CheapDropout(0.5)(torch.ones(400_000)) == 0).float() - 0.5
    for distance in (1, 2, 3, 4, 5):
        assert abs((zero[distance:] * zero[:-distance]).mean().item()) < 0.005


def test_elements_are_dropped_alike_along_the_dimension_that_is_named() -> None:
    torch.manual_seed(0)
    zero = dropped(torch.ones(64, 3, 50), 0.3, alike=1) == 0
    assert torch.equal(zero, zero[:, :1].expand_as(zero))
    assert abs(zero.float().mean().item() - 0.3) < 0.03


def test_gradients_pass_where_values_did() -> None:
    x = torch.ones(7, 5, requires_grad=True)
    out = CheapDropout(0.3)(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, out.detach())


def test_the_seed_decides_the_mask() -> None:
    dropout, x = CheapDropout(0.3), torch.ones(100)
    torch.manual_seed(1)
    first = dropout(x)
    assert not torch.equal(first, dropout(x))
    torch.manual_seed(1)
    assert torch.equal(first, dropout(x))


def test_evaluation_and_probability_zero_change_nothing() -> None:
    x = torch.randn(9)
    assert CheapDropout(0.3).eval()(x) is x
    assert CheapDropout(0.0)(x) is x


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


def test_dropout_of_attention_keeps_the_mean_and_evaluation_is_exact(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model, ("a", "b"))
    plain, ids = copy.deepcopy(model), torch.tensor([[2, 5, 6, 7, 3]])
    cheapen(model)
    assert model.config._attn_implementation == ATTENTION
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    query = torch.randn(1, 2, 4, 8)
    probabilities = (query @ query.transpose(-1, -2)).softmax(-1)
    mean = torch.stack([attention_dropped(probabilities, 0.1) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, probabilities, atol=0.02, rtol=0)
    model.save_pretrained(tmp_path / "saved")
    assert ATTENTION not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
