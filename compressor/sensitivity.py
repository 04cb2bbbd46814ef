"""Which products go back to float when 8 bits cost too much: as few as suffice, the most sensitive first.

What:     each product of constant weights is made INT8 alone; how far answers then move from the float graph's is its sensitivity.
Paper:    ranking layers by what quantization does to the answers, as HAQ (arXiv:1811.08886) and ZeroQ (arXiv:2001.00281) do.
Formula:  sensitivity of product i = mean KL(float ‖ graph with only i in INT8) over 256 validation texts; bisection finds the count.
Limits:   dynamic INT8 ranks for every backend; bisection takes it that more products in float never lose more.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from compressor.encoded import Encoded
from compressor.products import products
from compressor.quantizers import dynamic
from compressor.session import Graph
from compressor.tokens import Floats

TEXTS = 256
"""Validation texts that sensitivities are measured on."""


def by_sensitivity(
    source: Path, scratch: Path, data: Encoded, workers: int | None = None, *, reduce_range: bool = False
) -> dict[str, float]:
    """Return the sensitivity of each of a float graph's products, the most sensitive first; `scratch` is a file to write.

    `reduce_range`: with weights of 7 bits, as they will be deployed.
    """
    part = data.part(min(1.0, TEXTS / len(data.examples)))

    def answers(file: Path, *, single: bool) -> Floats:
        return Graph(file, single=single, pad_id=data.pad_id, workers=workers).logits(part.tokens)

    reference, names, found = answers(source, single=False), products(source), dict[str, float]()
    for name in names:
        dynamic(source, scratch, [], [other for other in names if other != name], reduce_range=reduce_range)
        found[name] = part.divergence(answers(scratch, single=True), reference)
    scratch.unlink()
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def fewest(names: Sequence[str], holds: Callable[[Collection[str]], bool]) -> Sequence[str] | None:
    """Return the shortest beginning of `names` that holds, found by bisection; None where not even all of them do."""
    if not holds(names):
        return None
    low, high = 0, len(names)  # the first `low` do not hold, the first `high` do
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(names[:middle]) else (middle, high)
    return names[:high]
