import math

import numpy as np
import pytest

from keras_sslmeta.evaluation.few_shot_result import FewShotResult
from keras_sslmeta.evaluation.few_shot_table import few_shot_table

RANDOM = np.random.default_rng(0)


def result(accuracy, key=0, episodes=30):
    return FewShotResult(RANDOM.binomial(75, accuracy, episodes) / 75, key)


def cells(line, columns):
    """Of a line, cut where the header's columns begin."""
    return [line[a:b].strip() for a, b in zip(columns, [*columns[1:], None], strict=True)]


def test_accuracies_and_paired_differences():
    raw, ours, worse = result(0.5), result(0.9), result(0.3)
    table = few_shot_table({"raw": raw, "a long name": ours, "MAML": worse}, baseline="raw")
    header, *lines = table.split("\n")
    columns = [0, header.index("accuracy"), header.index("over raw")]
    assert [cells(line, columns)[0] for line in lines] == ["raw", "a long name", "MAML"]
    assert cells(lines[0], columns)[1:] == [str(raw), ""]
    for line, other in zip(lines[1:], (ours, worse), strict=True):
        gaps = 100 * (other.per_episode - raw.per_episode)
        half = 1.96 * np.std(gaps, ddof=1) / math.sqrt(30)
        assert cells(line, columns)[1:] == [str(other), f"{gaps.mean():+.1f} ± {half:.1f} %"]
    assert lines[1].split()[-4].startswith("+") and lines[2].split()[-4].startswith("-")
    assert all(line == line.rstrip() for line in table.split("\n"))


def test_columns_by_shots():
    one, five, other = result(0.5, key=1), result(0.7, key=5), result(0.6, key=5)
    table = few_shot_table({"a": {1: one, 5: five}, "b": {5: other}, "c": {"all": one}})
    header, *lines = table.split("\n")
    columns = [0, *(header.index(name) for name in ("1 shot", "5 shots", "all"))]
    assert cells(lines[0], columns) == ["a", str(one), str(five), ""]
    assert cells(lines[1], columns) == ["b", "", str(other), ""]
    assert cells(lines[2], columns) == ["c", "", "", str(one)]


def test_differences_by_shots_where_the_baseline_has_them():
    one, five, other = result(0.5, key=1), result(0.7, key=5), result(0.6, key=5)
    table = few_shot_table({"a": {1: one, 5: five}, "b": {5: other}}, baseline="b")
    header, first, _ = table.split("\n")
    assert header.count("over b") == 2
    difference, half = five.paired_difference(other)
    assert first.endswith(f"{five}  {100 * difference:+.1f} ± {100 * half:.1f} %")
    assert first.count("±") == 3


@pytest.mark.parametrize(
    ("results", "baseline", "message"),
    [
        ({}, None, "`results` must be a dict from names"),
        ({"a": {}}, None, "`results` must be a dict from names"),
        ([result(0.5)], None, "`results` must be a dict from names"),
        (result(0.5), None, "`results` must be a dict from names"),
        ({"a": 0.5}, None, "`results` must be a dict from names"),
        ({"a": {1: 0.5}}, None, "`results` must be a dict from names"),
        ({"a": result(0.5), "b": {1: result(0.5)}}, None, "`results` must be a dict from names"),
        ({"a": result(0.5)}, "b", "`baseline` must be a name in `results`: a. Received"),
        (
            {"a": result(0.5), "b": result(0.5, key=1)},
            "a",
            "`results` must be on the baseline's episodes. Received: others for b. `other` must be",
        ),
    ],
)
def test_bad_input(results, baseline, message):
    with pytest.raises(ValueError, match=message):
        few_shot_table(results, baseline)
