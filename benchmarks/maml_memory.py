"""MAML, second order: peak memory, trace time and step time against the number of inner steps.

    python benchmarks/maml_memory.py [--steps 1 5 20 100] [--plain]

One meta-training step of a Conv4 of 32 filters on one task, 5-way 5-shot, 15 queries, 28×28. Each run is a
process of its own, and medians of three are shown. Memory is the process's peak above what it was before
the first step, with TensorFlow, model and data in place. `--plain` adds the textbook way for comparison,
nested gradient tapes around an unrolled loop (slow: it traces every step).
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import statistics
import subprocess
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from peak_memory import PeakMemory

import keras_sslmeta as ksm

WAYS, SHOTS, QUERIES, WIDTH = 5, 5, 15, 32


def conv4():
    layers = [keras.Input((28, 28, 1))]
    for _ in range(4):
        layers += [
            keras.layers.Conv2D(WIDTH, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(WAYS)])


def batch():
    rng = np.random.default_rng(0)
    samples = {"support": WAYS * SHOTS, "query": WAYS * QUERIES}
    parts = {}
    for name, n in samples.items():
        parts[f"{name}_x"] = tf.constant(rng.uniform(size=(1, n, 28, 28, 1)).astype("float32"))
        parts[f"{name}_y"] = tf.constant(np.repeat(np.arange(WAYS), n // WAYS)[None])
    query_y = parts.pop("query_y")
    return parts, query_y


def our_step(steps):
    maml = ksm.MAML(conv4(), inner_steps=steps, inner_learning_rate=0.01)
    maml.compile(
        keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    maml.optimizer.build(maml.trainable_variables)
    return tf.function(maml.train_step, autograph=False)


def plain_step(steps):
    """Nested tapes around an unrolled loop."""
    model = conv4()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)

    def run(weights, x):
        others = [v.value for v in model.non_trainable_variables]
        return model.stateless_call(weights, others, x, training=True)[0]

    @tf.function(autograph=False)
    def step(data):
        episode, query_y = data
        with tf.GradientTape() as outer:
            weights = [tf.convert_to_tensor(v.value) for v in model.trainable_variables]
            outer.watch(weights)
            adapted = weights
            for _ in range(steps):
                with tf.GradientTape() as inner:
                    inner.watch(adapted)
                    value = loss(episode["support_y"][0], run(adapted, episode["support_x"][0]))
                gradients = inner.gradient(value, adapted)
                adapted = [w - 0.01 * g for w, g in zip(adapted, gradients, strict=True)]
            value = loss(query_y[0], run(adapted, episode["query_x"][0]))
        gradients = outer.gradient(value, weights)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return {"loss": value}

    return step


def measure(kind, steps):
    data = batch()
    # Libraries load their kernels on first use: that is not the step's memory.
    warm_up = conv4()
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(warm_up(data[0]["support_x"][0], training=True))
    tape.gradient(value, warm_up.trainable_variables)
    step = (our_step if kind == "ours" else plain_step)(steps)
    began = time.perf_counter()
    step.get_concrete_function(data)
    trace = time.perf_counter() - began
    with PeakMemory() as memory:
        for _ in range(3):
            step(data)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        step(data)
        times.append(time.perf_counter() - began)
    return {"trace_s": trace, "step_ms": 1e3 * sorted(times)[1], "peak_mb": memory.megabytes}


def process(kind, steps):
    """`measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", kind, str(steps)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().split("\n")[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 20, 100])
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--repeats", type=int, default=3, help="processes each; medians are shown")
    parser.add_argument("--plain_steps", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    print(
        f"second-order MAML, Conv4 of {WIDTH}, {WAYS}-way {SHOTS}-shot, one task, {os.cpu_count()} cores"
    )
    print(
        f"\n{'':16s}{'inner steps':>12s}{'trace s':>10s}{'step ms':>10s}{'peak MB':>10s}{'of 1 step':>11s}"
    )
    runs = [("ours", n) for n in arguments.steps]
    runs += [("plain", n) for n in arguments.plain_steps] if arguments.plain else []
    first = {}
    for kind, steps in runs:
        got = [process(kind, steps) for _ in range(arguments.repeats)]
        got = {name: statistics.median(one[name] for one in got) for name in got[0]}
        base = first.setdefault(kind, got["peak_mb"])
        title = {"ours": "keras_sslmeta", "plain": "nested tapes"}[kind]
        print(
            f"{title:16s}{steps:12d}{got['trace_s']:10.1f}{got['step_ms']:10.0f}{got['peak_mb']:10.0f}"
            f"{got['peak_mb'] / base:11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
