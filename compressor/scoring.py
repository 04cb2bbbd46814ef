"""What a model answers and how well: forward passes in batches by length, on the device and in the precision that suit the machine."""

from collections.abc import Callable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from compressor.encoded import Encoded
from compressor.machine import describe, fast_bf16
from compressor.tokens import Floats, Ints, in_order, length_batches

LONG = 512
"""Tokens of a text up to which batches are whole."""


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
    device, found = Accelerator().device, list[Floats]()
    batches = [part for rows in length_batches(data.tokens.lengths, data.rows_at_once) for part in _bearable(rows, data)]
    for rows in batches:
        batch = on(device, data.batch(rows))
        with autocast("auto", device):
            found.append(data.reduced(forward(batch), batch).float().cpu().numpy())
    return in_order(found, batches, data.tokens.lengths)


def _bearable(rows: Ints, data: Encoded) -> list[Ints]:
    """Return a batch in parts that take no more memory than one of LONG tokens: attention's grows with the square of the longest."""
    size = max(1, min(len(rows), int(data.rows_at_once * (LONG / data.tokens.lengths[rows].max()) ** 2)))
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def on(device: torch.device, batch: Mapping[str, Ints | Floats]) -> dict[str, Tensor]:
    """Return a batch as tensors on a device."""
    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def gpu_multiplies_bf16() -> bool:
    """Return whether there is a GPU that multiplies bfloat16; those before NVIDIA's Ampere emulate it, slower than float32."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context that runs matrix products in bfloat16 where the precision asks for it; `auto` asks the machine."""
    fast = gpu_multiplies_bf16() if device.type == "cuda" else fast_bf16(describe()) is not None
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16" or (precision == "auto" and fast))
