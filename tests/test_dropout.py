import pytest
import torch

from compressor.dropout import CheapDropout, drawn, factors


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


def test_what_stays_is_drawn_and_scaled_to_keep_the_mean() -> None:
    torch.manual_seed(0)
    kept = drawn((64, 1, 999), 0.3, torch.device("cpu"))
    assert kept is not None
    assert kept.shape == (64, 1, 999)
    assert abs((~kept).float().mean().item() - 0.3) < 0.01
    assert factors(kept, 0.3, torch.float32).unique().tolist() == pytest.approx([0, 1 / 0.7], rel=1e-4)
    assert drawn((2, 2), 0.0, torch.device("cpu")) is None


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
