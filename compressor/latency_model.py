"""A length configuration's latency from what others took: enough to choose whom to measure, never what is reported.

What:     least squares over the work of all layers: tokens that attend, pairs of them, and tokens that pass on.
Formula:  latency = a + b · Σ n_in + c · Σ n_in² + d · Σ n_out, with the tokens of a text of usual length.
Limits:   it holds for one graph on one machine; with fewer configurations than numbers to fit it is their mean per token.
"""

from collections.abc import Sequence

import numpy as np

from compressor.lengths import LengthConfig
from compressor.tokens import Floats


def features(config: LengthConfig, tokens: int) -> list[float]:
    """Return what a text of so many tokens asks of all layers."""
    kept = config.kept(tokens)
    passed = [tokens, *kept[:-1]]
    return [1.0, float(sum(passed)), float(sum(n * n for n in passed)), float(sum(kept))]


def fitted(configs: Sequence[LengthConfig], latencies: Sequence[float], tokens: Sequence[int]) -> Floats:
    """Return the four coefficients that fit measured latencies (configurations,) of texts of so many tokens (configurations,) best."""
    rows = np.array([features(config, read) for config, read in zip(configs, tokens, strict=True)])
    if len(rows) < rows.shape[1]:
        return np.array([0.0, float(np.mean(np.array(latencies) / rows[:, 1])), 0.0, 0.0])
    coefficients: Floats = np.linalg.lstsq(rows, np.array(latencies), rcond=None)[0]
    return coefficients


def predicted(coefficients: Floats, config: LengthConfig, tokens: int) -> float:
    """Return the latency that a fit expects of a configuration."""
    return float(np.dot(coefficients, features(config, tokens)))
