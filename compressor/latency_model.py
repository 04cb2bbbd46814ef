"""A length configuration's latency from what others took: enough to choose whom to measure, never what is reported.

What:     least squares over the work of all layers: tokens that attend, pairs of them, and tokens that pass on.
Formula:  latency = a + b · Σ n_in + c · Σ n_in² + d · Σ n_out, means over the texts.
Limits:   it holds for one graph on one machine; with fewer configurations than numbers to fit it is their mean per token.
"""

from collections.abc import Sequence

import numpy as np

from compressor.lengths import LengthConfig
from compressor.tokens import Floats


def features(config: LengthConfig, tokens: int) -> Floats:
    """Return what a text of so many tokens asks of all layers."""
    kept = config.kept(tokens)
    passed = [tokens, *kept[:-1]]
    return np.array([1.0, sum(passed), sum(n * n for n in passed), sum(kept)])


def fitted(asked: Sequence[Floats], latencies: Sequence[float]) -> Floats:
    """Return the four coefficients that fit measured latencies (configurations,) of what configurations ask (configurations, 4) best."""
    rows = np.array(asked)
    if len(rows) < rows.shape[1]:
        return np.array([0.0, float(np.mean(np.array(latencies) / rows[:, 1])), 0.0, 0.0])
    coefficients: Floats = np.linalg.lstsq(rows, np.array(latencies), rcond=None)[0]
    return coefficients


def predicted(coefficients: Floats, asked: Floats) -> float:
    """Return the latency that a fit expects of what a configuration asks."""
    return float(np.dot(coefficients, asked))
