import dataclasses
import math

import numpy as np
import pytest

from keras_sslmeta.evaluation import FewShotResult


def test_interval_and_text():
    values = [0.6, 0.8, 0.7, 1.0, 0.9]
    result = FewShotResult(np.array(values))
    variance = sum((v - 0.8) ** 2 for v in values) / 4
    assert result.accuracy == pytest.approx(0.8)
    assert result.half_interval == pytest.approx(1.96 * math.sqrt(variance / 5))
    assert str(result) == "80.0 ± 13.9 %"
    assert repr(result) == "FewShotResult(80.0 ± 13.9 %, 5 episodes)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.per_episode = None


def test_one_episode_has_no_interval():
    assert math.isnan(FewShotResult(np.array([0.5])).half_interval)


def test_interval_covers_the_mean_19_times_in_20():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        result = FewShotResult(random.binomial(75, 0.8, 200) / 75)
        covered += abs(result.accuracy - 0.8) < result.half_interval
    assert 0.93 < covered / 2000 < 0.97


def test_paired_difference():
    a, b = np.array([0.9, 0.5, 0.7]), np.array([0.8, 0.3, 0.7])
    difference, half = FewShotResult(a).paired_difference(FewShotResult(b))
    assert difference == pytest.approx(0.1)
    assert half == pytest.approx(1.96 * np.std([0.1, 0.2, 0.0], ddof=1) / math.sqrt(3))
    back, _ = FewShotResult(b).paired_difference(FewShotResult(a))
    assert back == pytest.approx(-0.1)
    for other in (FewShotResult(b[:2]), FewShotResult(b, episodes_key=1)):
        with pytest.raises(ValueError, match="same episodes"):
            FewShotResult(a).paired_difference(other)
