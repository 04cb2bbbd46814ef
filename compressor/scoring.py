"""What a model answers and how well: forward passes in batches by length, on the device and in the precision that suit the machine."""

from collections.abc import Callable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from compressor.encoded import Encoded
from compressor.machine import describe, fast_bf16
from compressor.tokens import Floats, Ints, in_order, length_batches


def score_of(model: nn.Module, data: Encoded, metric: str, *extra: Tensor | None) -> float:
    """Return the score of a model on a split; `extra` are further inputs of its forward pass, as a length configuration.

    The model stays in evaluation mode, on the device that suits the machine.
    """
    device = Accelerator().device
    model.eval().to(device)
    further = [None if one is None else one.to(device) for one in extra]
    return data.score(predict(lambda b: model(*inputs_of(b), *further), data), metric)


def inputs_of(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """Return what a model reads of a batch; states of frozen layers where they were recycled."""
    return [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "states") if name in batch]


@torch.inference_mode()
def predict(forward: Callable[[dict[str, Tensor]], Tensor], data: Encoded) -> Floats:
    """Return what a score needs of a model's logits, in the order of the data; the model is in evaluation mode.

    The result is (windows, classes), or (tokens, classes) where every token has logits.
    """
    device, batches, found = Accelerator().device, length_batches(data.tokens.lengths, data.rows_at_once), list[Floats]()
    for rows in batches:
        batch = on(device, data.batch(rows))
        with autocast("auto", device):
            found.append(data.reduced(forward(batch), batch).float().cpu().numpy())
    return in_order(found, batches, data.tokens.lengths)


def on(device: torch.device, batch: Mapping[str, Ints | Floats]) -> dict[str, Tensor]:
    """Return a batch as tensors on a device."""
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context that runs matrix products in bfloat16 where the precision asks for it; `auto` asks the machine."""
    fast = device.type == "cuda" or fast_bf16(describe()) is not None
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16" or (precision == "auto" and fast))
