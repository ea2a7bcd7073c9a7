"""Right losses and models pass; each known fault is found, and named for what it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_sslmeta.testing as testing

WORKER = Path(__file__).with_name("batch_invariance_worker.py")

RIGHT = (
    "nt_xent",
    "nt_xent_float16",
    "exact",
    "exact_weighted",
    "exact_weighted_mean",
    "exact_sum",
    "exact_none",
    "gathered_even",
    "mse_even",
    "mse_by_name_even",
    "function_even",
    "crossentropy_even",
    "two_targets",
    "same_pairs",
    "scale_free",
    "no_empty_share",
    "docstring",
    "sim_clr",
    "sim_clr_function",
    "plain_even",
    "synchronised",
    "micro_batched",
)
# What the error says, beginning with the reason. Shares are those of two replicas.
WRONG = {
    "divided_twice": ("divided twice", "DividedTwice", "1/2", "loss: "),
    "local_negatives": (
        "local negatives or statistics: ",
        "gradient of `y_pred`",
        "shares of 6, 6",
    ),
    "nt_xent_local": ("local negatives or statistics: ", "gather=True", "NTXent"),
    "scalar_local_negatives": ("local negatives or local statistics", "Also not divided"),
    "gathered_scalar": ("not divided", "2 times", "(batch,)"),
    "gathered_without_gradient": ("gathered without gradient", "the loss agrees"),
    "local_variance": ("local statistics: ", "all_reduce"),
    "statistic_without_gradient": ("divided twice", "Or: gathered without gradient"),
    "labels": ("local negatives or statistics: ",),
    "mse": ("uneven shares are weighed alike", "shares of 6, 5", "uneven=False"),
    "gathered": ("uneven shares are weighed alike", "shares of 6, 5"),
    "weighted_mean": ("local weights", "mean_with_sample_weight"),
    "empty_share": ("a replica without samples", "shares of 6, 0", "nan"),
    "random": ("random numbers or state", "a second run on one device"),
    "constant_part": ("the gradients agree, and the value does not", "loss: "),
    "exact_micro_batches": ("the loss of a sample depends on others", "micro-batches of 6, 6"),
    "sim_clr_local": ("in the loss, local negatives or statistics: ", "SimCLR", "step 1 of 3"),
    "sim_clr_local_norm": ("local statistics: BatchNormalization", "synchronized=True"),
    "plain": ("in the loss, uneven shares are weighed alike", "shares of 6, 5", "/kernel"),
    "batch_norm": ("local statistics: BatchNormalization", 'state "', "moving_mean"),
    "dropout": ("random numbers: the model draws some", "dropout"),
    "local_state": ("local state: ", 'state "', "largest"),
    "own_step": ("divided twice", "1/2", "/kernel"),
    "micro_batched_sum": ("the gradients of micro-batches are summed", "micro_batch_size=2"),
}
MISUSE = {
    "nan": ("ValueError", "the loss is nan"),
    "no_candidate": ("ValueError", "pass `y_true=` and `y_pred=`"),
    "too_many_replicas": ("RuntimeError", "configure_replicas(64)"),
    "not_compiled": ("ValueError", "must have been compiled"),
    "in_scope": ("RuntimeError", "outside of any `strategy.scope()`"),
}
QUICK = ("nt_xent_local", "exact")
# Of 12 samples four replicas get 3 each; these say nothing of the shares.
ON_FOUR = ("exact", "exact_weighted", "mse_even", "scale_free", "plain_even", "sim_clr_function")


def run(replicas, *cases):
    """Error types and messages by case, from one process that runs one case after the other."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(replicas), *cases],
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING:tensorflow" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    return json.loads(line.removeprefix("RESULTS "))


def check(case, kind, message):
    if case in RIGHT:
        assert (kind, message) == ("", "")
    elif case in MISUSE:
        expected, phrase = MISUSE[case]
        assert kind == expected and phrase in message, message
    else:
        reason, *phrases = WRONG[case]
        assert kind == "AssertionError", message
        assert message.split("Likely reason: ")[1].startswith(reason), message
        assert all(phrase in message for phrase in phrases), message


@pytest.fixture(scope="module")
def quick():
    return run(2, *QUICK)


@pytest.fixture(scope="module")
def on_two():
    return run(2)


@pytest.mark.parametrize("case", QUICK)
def test_quick(quick, case):
    check(case, *quick[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", [*RIGHT, *WRONG, *MISUSE])
def test_on_two_devices(on_two, case):
    check(case, *on_two[case])


@pytest.mark.slow
def test_every_case_is_tested(on_two):
    assert on_two.keys() == {*RIGHT, *WRONG, *MISUSE}


@pytest.mark.slow
def test_two_and_four_replicas_in_one_process():
    """Four devices: 2 replicas and 4 by turns, each case again and again."""
    results = run(4, *ON_FOUR, "four_alone", *ON_FOUR[:2], "local_on_four")
    for case in ON_FOUR:
        check(case, *results[case])
    kind, message = results["local_on_four"]
    assert kind == "AssertionError" and "on 4 replicas with shares of 3, 3, 3, 3" in message
    assert "Likely reason: local negatives or statistics: " in message
    kind, message = results["four_alone"]
    assert kind == "AssertionError" and "on 4 replicas with shares of 3, 3, 3, 2" in message
    assert "uneven shares are weighed alike" in message


@pytest.mark.slow
def test_one_device_does_not_suffice():
    """In a process whose devices nobody divided."""
    code = (
        "import keras_sslmeta.testing as t, keras_sslmeta.losses as losses\n"
        "for call in (lambda: t.assert_batch_invariant(losses.NTXent()), t.configure_replicas):\n"
        "    try:\n        call()\n        raise SystemExit(1)\n"
        "    except RuntimeError as error:\n"
        "        assert 'configure_replicas(2)' in str(error), error\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("count", [1, 0, 2.0, True, None])
def test_configure_replicas_refuses(count):
    with pytest.raises(ValueError, match=f"count={count!r}"):
        testing.configure_replicas(count)
