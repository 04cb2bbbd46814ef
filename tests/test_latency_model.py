import random

import numpy as np
import pytest

from compressor.latency_model import features, fitted, predicted
from compressor.lengths import LengthConfig


def test_a_latency_that_follows_the_work_is_found_again() -> None:
    rng, true = random.Random(1), np.array([0.4, 0.01, 2e-5, 0.03])
    configs = [LengthConfig.sample(6, 128, 0.4, rng) for _ in range(20)]
    times = [float(np.dot(true, features(c, 100))) for c in configs]
    fit = fitted([features(c, 100) for c in configs[:12]], times[:12])
    assert [predicted(fit, features(c, 100)) for c in configs[12:]] == pytest.approx(times[12:])


def test_few_measurements_give_a_time_per_token() -> None:
    full, half = (LengthConfig.repaired([n] * 2, 64) for n in (64, 32))
    fit = fitted([features(full, 64)], [8.0])
    assert predicted(fit, features(full, 64)) == pytest.approx(8.0)
    assert predicted(fit, features(half, 64)) == pytest.approx(6.0)  # its first layer sees all tokens
