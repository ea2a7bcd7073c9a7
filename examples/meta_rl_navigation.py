"""Learns to learn where to go: MAML with policy gradients, on Gymnasium's interface.

    pip install ".[rl]" && python examples/meta_rl_navigation.py

A point starts at the origin of the plane, sees where it is, and moves by at most 0.1 a step along each axis.
The goal is somewhere in a square around it and cannot be seen: only the reward, minus the distance, tells of
it. MAML (Finn et al. 2017, section 5.3) looks for a policy which one policy-gradient step, on 20 trajectories
towards a new goal, turns into one that goes there. Beside it, a policy of the same form is trained on all
goals at once, by as many trajectories, and adapts in the same way.

`ksm.meta.DifferentiableFit` takes the inner step, and gradients go through it exactly: inputs are positions,
targets are actions, weights of samples are advantages, and the compiled loss is minus their log-probability.
As in the paper's code, the trajectories before adaptation count as given: no gradient goes through how
likely the first policy made them (E-MAML and ProMP have that term). Outside is one step of Adam
for each batch of tasks, where the paper takes TRPO's.

Writes meta_rl_navigation.png and meta_rl_navigation.json into the current folder.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import time
from typing import NamedTuple


def positive(text):
    """A positive whole number of the command line."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, not {text}")
    return int(text)


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--seed", type=int, default=0, help="changes everything random")
parser.add_argument("--iterations", type=positive, default=200, help="meta-training steps (200)")
parser.add_argument("--tasks", type=positive, default=20, help="goals a step (20)")
parser.add_argument(
    "--trajectories", type=positive, default=20, help="trajectories a goal to adapt to (20)"
)
parser.add_argument("--goals", type=positive, default=200, help="unseen goals to test on (200)")
parser.add_argument("--width", type=positive, default=64, help="units of each hidden layer (64)")
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
try:
    import gymnasium
except ImportError:
    raise SystemExit('This example needs Gymnasium: pip install ".[rl]"') from None
import keras
import matplotlib.figure
import numpy as np
import tensorflow as tf

import keras_sslmeta as ksm

# Small operations gain nothing from a second thread.
tf.config.threading.set_intra_op_parallelism_threads(1)
keras.utils.set_random_seed(arguments.seed)

# ---------------------------------------------------------------------------- the environment
HORIZON = 100
SPEED = np.float32(0.1)
REACH = SPEED * (HORIZON + 1)


def move(position, action, goal):
    """One step of any number of points: where they are then, their rewards, who has arrived."""
    position = position + np.clip(action, -SPEED, SPEED)
    distance = np.linalg.norm(position - goal, axis=-1)
    return position, -distance, distance < 0.01


def random_goals(rng, count=None):
    """Goals of the unit square around the origin."""
    return rng.uniform(-0.5, 0.5, (2,) if count is None else (count, 2)).astype("float32")


class Navigation(gymnasium.Env):
    """A point looks for its goal: `options={"goal": …}` of `reset`, or else a random one."""

    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-REACH, REACH, (2,))
        self.action_space = gymnasium.spaces.Box(-SPEED, SPEED, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        goal = (options or {}).get("goal")
        self.goal = random_goals(self.np_random) if goal is None else goal
        self.position, self.steps = np.zeros(2, "float32"), 0
        return self.position, {}

    def step(self, action):
        self.position, reward, arrived = move(self.position, action, self.goal)
        self.steps += 1
        return self.position, float(reward), bool(arrived), self.steps == HORIZON, {}


class Navigations(gymnasium.vector.VectorEnv):
    """Many such points at once; who has come to an end stays there."""

    def __init__(self, num_envs):
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
        self.num_envs = num_envs
        one = Navigation()
        self.single_observation_space = one.observation_space
        self.single_action_space = one.action_space
        batch_space = gymnasium.vector.utils.batch_space
        self.observation_space = batch_space(one.observation_space, num_envs)
        self.action_space = batch_space(one.action_space, num_envs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        goals = (options or {}).get("goal")
        self.goals = random_goals(self.np_random, self.num_envs) if goals is None else goals
        self.positions, self.steps = np.zeros((self.num_envs, 2), "float32"), 0
        self.arrived = np.zeros(self.num_envs, bool)
        return self.positions, {}

    def step(self, actions):
        actions = np.where(self.arrived[:, None], 0, actions)
        self.positions, rewards, arrived = move(self.positions, actions, self.goals)
        rewards = np.where(self.arrived, 0, rewards)
        self.arrived, self.steps = self.arrived | arrived, self.steps + 1
        is_over = np.full(self.num_envs, self.steps == HORIZON)
        return self.positions, rewards, self.arrived, is_over, {}


# --------------------------------------------------------------------------------- the policy
class Spread(keras.layers.Layer):
    """Puts learnt logarithms of standard deviations beside the means: `(batch, 2)` to `(batch, 4)`."""

    def build(self, shape):
        half = keras.initializers.Constant(np.log(0.5))
        self.log_deviation = self.add_weight(shape=(shape[-1],), initializer=half)

    def call(self, mean):
        spread = keras.ops.broadcast_to(self.log_deviation, keras.ops.shape(mean))
        return keras.ops.concatenate([mean, spread], axis=-1)


def minus_log_probability(actions, outputs):
    """Of a normal distribution, less its constant; weighed by advantages it is the surrogate loss."""
    mean, log_deviation = keras.ops.split(outputs, 2, axis=-1)
    standardised = (actions - mean) * keras.ops.exp(-log_deviation)
    return keras.ops.sum(log_deviation + 0.5 * keras.ops.square(standardised), axis=-1)


def make_policy():
    """A normal distribution of actions in units of `SPEED`, whose means depend on the position."""
    small = keras.initializers.RandomNormal(stddev=0.01)  # It starts around the origin.
    policy = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(arguments.width, activation="tanh"),
            keras.layers.Dense(arguments.width, activation="tanh"),
            keras.layers.Dense(2, kernel_initializer=small),
            Spread(),
        ]
    )
    policy.compile(keras.optimizers.Adam(3e-3), loss=minus_log_probability)
    return policy


form = make_policy()  # Both trainings start from its weights.


@tf.function(jit_compile=True)
def act(weights, positions):
    """Outputs of policies that differ in their weights: `(tasks, points, 2)` to `(tasks, points, 4)`."""
    return tf.vectorized_map(
        lambda task: form.stateless_call(task[0], [], task[1])[0], (weights, positions)
    )


def stacked(policies):
    """A list of weights for each task, as one list with an axis of tasks."""
    return [tf.stack(same) for same in zip(*policies, strict=True)]


def copies(policy, tasks):
    """The policy's own weights, for each of so many tasks."""
    return [[tf.convert_to_tensor(v.value) for v in policy.trainable_variables]] * tasks


# ------------------------------------------------------------------------------- trajectories
class Trajectories(NamedTuple):
    """What each task's policy did; positions, actions and advantages are `(tasks, samples, …)`."""

    positions: np.ndarray
    actions: np.ndarray
    advantages: np.ndarray
    returns: np.ndarray  # (tasks, trajectories), undiscounted.

    def of_tasks(self):
        """Inputs, targets and weights of samples, task by task."""
        return zip(self.positions, self.actions, self.advantages, strict=True)


def sample(weights, goals, trajectories, rng):
    """Some trajectories of each task's policy towards its goal."""
    size = len(goals), trajectories
    envs = Navigations(len(goals) * trajectories)
    positions, _ = envs.reset(options={"goal": np.repeat(goals, trajectories, axis=0)})
    is_on = np.ones(envs.num_envs, bool)
    record = []
    for _ in range(HORIZON):
        here = positions.reshape(*size, 2)
        mean, log_deviation = np.split(act(weights, here).numpy(), 2, axis=-1)
        noise = rng.standard_normal(mean.shape, dtype="float32")
        actions = mean + np.exp(log_deviation) * noise
        positions, rewards, ended, cut, _ = envs.step(SPEED * actions.reshape(-1, 2))
        counted = np.where(is_on, rewards, 0)
        record.append((here, actions, counted.reshape(size), is_on.reshape(size)))
        is_on = is_on & ~ended & ~cut
    here, actions, rewards, is_on = (np.stack(x, axis=2) for x in zip(*record, strict=True))
    return Trajectories(
        here.reshape(len(goals), -1, 2),
        actions.reshape(len(goals), -1, 2),
        advantages(here, rewards, is_on),
        rewards.sum(axis=2),
    )


def advantages(positions, rewards, is_on, discount=0.99):
    """Discounted returns less a baseline, in each task of mean 0 and deviation 1; 0 after the end.

    The baseline is the paper's: linear in position, its square, time, and powers of time, by
    least squares in each task. Of deviation 1, they tell a step's direction and not its length.
    """
    returns = np.zeros(rewards.shape)
    following = 0.0
    for t in reversed(range(HORIZON)):
        returns[..., t] = following = rewards[..., t] + discount * following
    t = np.broadcast_to(np.arange(HORIZON)[:, None] / HORIZON, (*rewards.shape, 1))
    features = np.concatenate([positions, positions**2, t, t**2, t**3, t**0], axis=-1)
    tasks = len(rewards)
    is_on, returns = is_on.reshape(tasks, -1, 1), returns.reshape(tasks, -1, 1)
    features = np.where(is_on, features.reshape(tasks, -1, features.shape[-1]), 0)
    returns = np.where(is_on, returns, 0)
    across = np.swapaxes(features, 1, 2)
    ridge = 1e-5 * np.eye(features.shape[-1])
    gained = returns - features @ np.linalg.solve(across @ features + ridge, across @ returns)
    count = is_on.sum(axis=1, keepdims=True)
    gained = np.where(is_on, gained - gained.sum(axis=1, keepdims=True) / count, 0)
    deviation = np.sqrt(np.square(gained).sum(axis=1, keepdims=True) / count)
    return (gained / (deviation + 1e-8)).astype("float32")[..., 0]


# ---------------------------------------------------------------------------------- training
RATE = 0.1  # Of the inner step, as in the paper.


def progress(title, metrics):
    """A bar that moves by one at each call with metrics."""
    print(f"\n{title}: {arguments.iterations} steps of {arguments.tasks} goals")
    bar = keras.utils.Progbar(arguments.iterations, unit_name="step", stateful_metrics=metrics)
    return lambda *values: bar.add(1, values=list(zip(metrics, values, strict=True)))


def train_maml():
    """The policy, and its mean returns before and after the inner step along meta-training."""
    policy = make_policy()
    policy.set_weights(form.get_weights())
    fit = ksm.meta.DifferentiableFit(policy, keras.optimizers.SGD(RATE), same_batch=True)
    rng = np.random.default_rng([arguments.seed, 0])
    advance = progress("MAML", ["return_before", "return_after"])
    history = []
    for _ in range(arguments.iterations):
        goals = random_goals(rng, arguments.tasks)
        weights = stacked(copies(policy, len(goals)))
        before = sample(weights, goals, arguments.trajectories, rng)
        with tf.GradientTape() as tape:
            adapted = [fit(x, y, sample_weight=w) for x, y, w in before.of_tasks()]
            with tape.stop_recording():
                weights = stacked([each.weights for each in adapted])
                after = sample(weights, goals, arguments.trajectories, rng)
            losses = [
                each.loss(x, y, sample_weight=w)
                for each, (x, y, w) in zip(adapted, after.of_tasks(), strict=True)
            ]
            loss = tf.reduce_mean(tf.stack(losses))
        gradients = tape.gradient(loss, policy.trainable_variables)
        policy.optimizer.apply(gradients, policy.trainable_variables)
        history.append([float(before.returns.mean()), float(after.returns.mean())])
        advance(*history[-1])
    return policy, history


def train_joint():
    """The policy for all goals, from as many trajectories a goal: those before and after."""
    policy = make_policy()
    policy.set_weights(form.get_weights())
    rng = np.random.default_rng([arguments.seed, 0])
    advance = progress("Joint training", ["return"])
    history = []
    for _ in range(arguments.iterations):
        goals = random_goals(rng, arguments.tasks)
        weights = stacked(copies(policy, len(goals)))
        batch = sample(weights, goals, 2 * arguments.trajectories, rng)
        x, y, w = (part.reshape(-1, *part.shape[2:]) for part in batch[:3])
        policy.train_on_batch(x, y, sample_weight=w)
        history.append([float(batch.returns.mean())])
        advance(*history[-1])
    return policy, history


# ----------------------------------------------------------------------------------- testing
STEPS = 3


def adapt_along(policy, goals, rate, stream):
    """Curve of returns before and after each step, and the positions on the way, step by step.

    Each step has new trajectories. Rates after the first step are halved, as in the paper.
    """
    fit = ksm.meta.DifferentiableFit(policy, keras.optimizers.SGD(rate), same_batch=True)
    rng = np.random.default_rng([arguments.seed, stream])
    policies = copies(policy, len(goals))
    returns, positions = [], []
    for k in range(STEPS + 1):
        batch = sample(stacked(policies), goals, arguments.trajectories, rng)
        returns.append(batch.returns.mean(axis=1))
        positions.append(batch.positions.reshape(len(goals), -1, HORIZON, 2))
        if k < STEPS:
            step = rate if k == 0 else rate / 2
            policies = [
                fit(x, y, sample_weight=w, weights=weights, learning_rate=step).weights
                for weights, (x, y, w) in zip(policies, batch.of_tasks(), strict=True)
            ]
    curve = ksm.evaluation.AdaptationCurve(np.stack(returns, axis=1), "return", episodes_key=stream)
    return curve, positions


def return_of_the_straight_way(goals):
    """What a point gets that knows its goal."""
    envs = Navigations(len(goals))
    positions, _ = envs.reset(options={"goal": goals})
    total = np.zeros(len(goals))
    for _ in range(HORIZON):
        positions, rewards, *_ = envs.step(goals - positions)
        total += rewards
    return total


started = time.perf_counter()
maml, maml_history = train_maml()
maml_seconds = time.perf_counter() - started
joint, joint_history = train_joint()
joint_seconds = time.perf_counter() - started - maml_seconds

# The joint policy may do better by steps of another size: the best after one, on goals of their own.
others = random_goals(np.random.default_rng([arguments.seed, 1]), max(2, arguments.goals // 4))
RATES = (0.03, 0.1, 0.2, 0.3, 0.5)
best = max(RATES, key=lambda rate: adapt_along(joint, others, rate, 2)[0].mean[1])

goals = random_goals(np.random.default_rng([arguments.seed, 3]), arguments.goals)
print(f"\nTesting on {len(goals)} unseen goals")
curves, paths = {}, {}
curves["MAML"], paths["MAML"] = adapt_along(maml, goals, RATE, 4)
curves["joint training"], paths["joint training"] = adapt_along(joint, goals, RATE, 4)
if best != RATE:
    tuned = f"joint, rate {best}"
    curves[tuned], paths[tuned] = adapt_along(joint, goals, best, 4)
strongest = list(curves)[-1]
difference, half = curves["MAML"].paired_difference(curves[strongest])
straight = return_of_the_straight_way(goals)

# ----------------------------------------------------------------------------------- picture
picture = matplotlib.figure.Figure(figsize=(15, 8.5), layout="constrained")
axes = picture.subplots(2, 3)
iterations = 1 + np.arange(arguments.iterations)
axes[0, 0].plot(iterations, maml_history, label=["MAML, before", "MAML, after one step"])
axes[0, 0].plot(iterations, joint_history, label="joint training", color="0.6")
axes[0, 0].set(xlabel="meta-training step", ylabel="return", title="Training")
axes[0, 0].legend(frameon=False)
ksm.visualization.plot_adaptation_curve(curves, ax=axes[1, 0])
axes[1, 0].axhline(straight.mean(), color="0.6", linestyle="--")
axes[1, 0].set_title("Unseen goals (dashed: the straight way)")
shown = np.arange(min(6, len(goals)))
for row, name in zip(axes[:, 1:], ("MAML", strongest), strict=True):
    for ax, k, title in zip(row, (0, 1), ("before", "after one step"), strict=True):
        for i in shown:
            for path in paths[name][k][i][:3]:
                ax.plot(*path.T, color=f"C{i}", linewidth=0.8, alpha=0.8)
            ax.plot(*goals[i], color=f"C{i}", marker="*", markersize=15, markeredgecolor="0.2")
        ax.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), aspect="equal", title=f"{name}: {title}")
        ax.set(xticks=(-0.5, 0, 0.5), yticks=(-0.5, 0, 0.5))
picture.savefig("meta_rl_navigation.png", dpi=110)

# ----------------------------------------------------------------------------------- figures
seconds = {"maml": round(maml_seconds, 1), "joint": round(joint_seconds, 1)}
record = {
    "settings": vars(arguments),
    "test": {
        name: [
            [round(float(m), 2), round(float(h), 2)]
            for m, h in zip(curve.mean, curve.half_interval, strict=True)
        ]
        for name, curve in curves.items()
    },
    "difference": [
        [round(float(m), 2), round(float(h), 2)] for m, h in zip(difference, half, strict=True)
    ],
    "best_rate_of_joint": best,
    "straight_way": round(float(straight.mean()), 2),
    "training": {"maml": maml_history, "joint": joint_history},
    "seconds": seconds,
}
with open("meta_rl_navigation.json", "w") as file:
    json.dump(record, file, indent=2)

print(f"\nReturn on {len(goals)} unseen goals by steps of adaptation, 95% intervals over goals")
print(
    f"{'':26s}" + "".join(f"{title:>15s}" for title in ("before", "1 step", "2 steps", "3 steps"))
)
rows = {**record["test"], f"MAML less {strongest}": record["difference"]}
for name, row in rows.items():
    print(f"{name:26s}" + "".join(f"{f'{m:.1f} ± {h:.1f}':>15s}" for m, h in row))
print(f"{'the straight way':26s}{straight.mean():>9.1f}")
print(
    f"\n{seconds['maml']:.0f} and {seconds['joint']:.0f} seconds of training; meta_rl_navigation.png "
    f"and .json are in {os.getcwd()}"
)
