"""The example of meta-reinforcement learning runs at a tiny size, and its parts do what they say."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "meta_rl_navigation.py"
TINY = ("--iterations", "3", "--tasks", "2", "--trajectories", "3", "--goals", "4", "--width", "8")


def run(folder, script, *arguments, first_on_path=()):
    """In a process of its own: the example sets the threads of the whole process."""
    path = os.pathsep.join([*map(str, first_on_path), str(ROOT), *sys.path])
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", script, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_meta_rl_navigation(tmp_path):
    pytest.importorskip("gymnasium", reason='needs Gymnasium: pip install ".[rl]"')
    done = run(tmp_path, __file__, *TINY, "--seed", "3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    result = json.loads((tmp_path / "meta_rl_navigation.json").read_text())
    assert {"MAML", "joint training"} <= result["test"].keys()
    for row in result["test"].values():
        assert len(row) == 4 and all(mean < 0 < half for mean, half in row)
        assert row[0][0] < result["straight_way"] < 0
    # Both start from the same policy; MAML's then moves, by its inner step and by Adam's.
    assert len(result["training"]["maml"]) == len(result["training"]["joint"]) == 3
    assert len({before for before, _ in result["training"]["maml"]}) == 3
    assert all(before != after for before, after in result["training"]["maml"])
    assert (tmp_path / "meta_rl_navigation.png").read_bytes().startswith(b"\x89PNG")
    assert "MAML less " in done.stdout and "3/3" in done.stdout


def test_it_says_what_to_install(tmp_path):
    (tmp_path / "gymnasium.py").write_text("raise ImportError")
    done = run(tmp_path, EXAMPLE, *TINY, first_on_path=[tmp_path])
    assert done.returncode != 0
    assert 'pip install ".[rl]"' in done.stderr and "Traceback" not in done.stderr


def check_environment(example):
    """Gymnasium's own check, and many points at once against one after the other."""
    from gymnasium.utils.env_checker import check_env

    check_env(example["Navigation"](), skip_render_check=True)
    rng = np.random.default_rng(0)
    goals = np.array([[0.1, 0.095], [0.3, -0.2], [-0.2, 0.05]], "float32")
    actions = rng.uniform(-0.2, 0.2, (example["HORIZON"], 3, 2)).astype("float32")
    actions[0, 0] = 0.15  # Clipped to 0.1, it leads within 0.01 of the first goal.
    many = example["Navigations"](3)
    starts, _ = many.reset(options={"goal": goals})
    together = [many.step(action) for action in actions]
    for i, goal in enumerate(goals):
        one = example["Navigation"]()
        start, _ = one.reset(options={"goal": goal})
        np.testing.assert_array_equal(starts[i], start)
        for t, action in enumerate(actions[:, i]):
            alone = one.step(action)
            for of_all, of_one in zip(together[t][:4], alone[:4], strict=True):
                np.testing.assert_allclose(of_all[i], of_one, rtol=1e-5, atol=1e-7)
            if alone[2]:
                break
        assert t == (0 if i == 0 else len(actions) - 1) and alone[3] == (i > 0)
    ended = [step[1][0] for step in together[1:]]
    assert not np.any(ended) and np.all(together[-1][0][0] == together[0][0][0])


def check_advantages(example):
    """Against sums and least squares written out for one task after the other."""
    rng = np.random.default_rng(0)
    horizon, tasks, trajectories = example["HORIZON"], 2, 4
    positions = rng.normal(size=(tasks, trajectories, horizon, 2)).astype("float32")
    rewards = -rng.random((tasks, trajectories, horizon))
    is_on = np.ones(rewards.shape, bool)
    is_on[1, 2, 30:] = False
    rewards = np.where(is_on, rewards, 0)
    got = example["advantages"](positions, rewards, is_on).reshape(rewards.shape)
    assert not np.any(got[1, 2, 30:])
    for task in range(tasks):
        rows, returns, where = [], [], []
        for i in range(trajectories):
            length = 30 if (task, i) == (1, 2) else horizon
            for t in range(length):
                (x, y), time = positions[task, i, t].astype("float64"), t / horizon
                rows.append([x, y, x * x, y * y, time, time**2, time**3, 1])
                powers = 0.99 ** np.arange(length - t)
                returns.append(np.sum(powers * rewards[task, i, t:length]))
                where.append((i, t))
        solution = np.linalg.lstsq(np.array(rows), np.array(returns), rcond=None)[0]
        gained = np.array(returns) - np.array(rows) @ solution
        expected = (gained - gained.mean()) / gained.std()
        np.testing.assert_allclose(
            [got[task, i, t] for i, t in where], expected, rtol=1e-3, atol=1e-3
        )


def check_policies(example):
    """Weights that differ by task give what a policy with these weights gives."""
    rng = np.random.default_rng(0)
    policy = example["make_policy"]()
    policies = [[rng.normal(size=w.shape) for w in policy.get_weights()] for _ in range(2)]
    weights = example["stacked"]([[w.astype("float32") for w in each] for each in policies])
    positions = rng.normal(size=(2, 5, 2)).astype("float32")
    outputs = example["act"](weights, positions).numpy()
    for i, each in enumerate(policies):
        policy.set_weights(each)
        np.testing.assert_allclose(outputs[i], policy(positions[i]), rtol=1e-4, atol=1e-5)
    # The surrogate has the gradients of the log-probability, whose constant alone it lacks.
    actions, (mean, log) = rng.normal(size=(5, 2)), np.split(outputs[0].astype("float64"), 2, -1)
    density = np.exp(-0.5 * ((actions - mean) / np.exp(log)) ** 2) / np.exp(log)
    loss = example["minus_log_probability"](actions.astype("float32"), outputs[0])
    np.testing.assert_allclose(loss, -np.log(density).sum(axis=-1), rtol=1e-4)


if __name__ == "__main__":
    names = runpy.run_path(str(EXAMPLE))
    check_environment(names)
    check_advantages(names)
    check_policies(names)
