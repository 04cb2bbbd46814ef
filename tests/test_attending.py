from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compressor import attending
from compressor.attending import attend

SHAPE = (5, 2, 7, 4)
"""(texts, heads, tokens, head_dim)"""
KEYS = torch.arange(7) < torch.tensor([7, 3, 5, 7, 1])[:, None]
MASKS = {
    "none": None,
    "keys": torch.where(KEYS, 0.0, -1e4)[:, None, None],
    "pairs": torch.randn(5, 1, 7, 7, generator=torch.Generator().manual_seed(3)),
    "alike in all texts": torch.randn(1, 2, 7, 7, generator=torch.Generator().manual_seed(4)),
}


def votes(probabilities: Tensor, texts: slice) -> Tensor:
    return (probabilities * KEYS[texts, None, :, None]).sum((1, 2))


def trained(added: Tensor | None, dropout: float, precision: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Return context, what was read, and the gradients of queries, keys and values."""
    torch.manual_seed(1)
    given = [torch.randn(SHAPE, requires_grad=True) for _ in range(3)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        context, told = attend(*given, added, dropout, votes)
    (context.float() * torch.randn(SHAPE)).sum().backward()
    return context, told, [x.grad for x in given]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Read so many texts of SHAPE at a time."""

    def choose(texts: int) -> None:
        monkeypatch.setattr(attending, "LARGE", 0)
        monkeypatch.setattr(attending, "PART", texts * 2 * 7 * 7 * 4)

    return choose


@pytest.mark.parametrize("texts", [1, 2, 5])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("mask", MASKS)
def test_texts_in_parts_give_what_all_at_once_give(mask: str, dropout: float, texts: int, parts: Callable[[int], None]) -> None:
    expected = trained(MASKS[mask], dropout)
    parts(texts)
    found = trained(MASKS[mask], dropout)
    assert "Recomputed" in str(found[0].grad_fn)
    torch.testing.assert_close(found, expected)


def test_in_parts_the_backward_pass_has_the_precision_of_the_forward_pass(parts: Callable[[int], None]) -> None:
    expected = trained(MASKS["keys"], 0.3, torch.bfloat16)
    parts(2)
    found = trained(MASKS["keys"], 0.3, torch.bfloat16)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_probabilities_are_not_kept(parts: Callable[[int], None]) -> None:
    parts(1)
    q = torch.randn(SHAPE, requires_grad=True)
    context, _ = attend(q, q, q, None)
    assert {tuple(x.shape) for x in context.grad_fn.saved_tensors if x is not None} == {SHAPE}  # type: ignore[union-attr]


def test_small_batches_learned_biases_and_inference_are_read_at_once(parts: Callable[[int], None]) -> None:
    q = torch.randn(SHAPE, requires_grad=True)
    assert "Recomputed" not in str(attend(q, q, q, None)[0].grad_fn)
    parts(1)
    bias = torch.zeros(1, 2, 7, 7, requires_grad=True)
    attend(q, q, q, bias)[0].sum().backward()
    assert bias.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(attend(q, q, q, None)[0], torch.nn.functional.scaled_dot_product_attention(q, q, q, scale=1.0))


def test_dropout_leaves_out_the_same_pairs_in_all_heads_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, k, values = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8), torch.eye(4).expand(1, 2, 4, 4)
    plain = attend(q, k, values, None)[0]
    found = [attend(q, k, values, None, 0.1)[0] for _ in range(2000)]
    assert all(torch.equal(x[0, 0] == 0, x[0, 1] == 0) for x in found[:20])
    torch.testing.assert_close(torch.stack(found).mean(0), plain, atol=0.02, rtol=0)
