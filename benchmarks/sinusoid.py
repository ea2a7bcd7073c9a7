"""Sine-wave regression of Finn et al. 2017, Section 5.1, at the paper's settings, against its figures.

    python benchmarks/sinusoid.py [--steps 70000] [--seeds 0 1 2]

A network of two hidden layers of 40 ReLUs, 25 tasks a step, 10 points each for adaptation and for the
meta-loss, one inner step at 0.01, second order and first order, Adam at 0.001, 70,000 steps. The baseline is
the same network trained jointly on all waves for as many steps, and adapted in the same way. Tested on 600
unseen waves, by the mean squared error on 100 points over the whole range; where a wave's error runs away,
the mean without it is shown too. Prints tables, and writes sinusoid.json and sinusoid.png into the
current folder.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import time

import keras
import matplotlib.figure
import numpy as np

import keras_sslmeta as ksm

STEPS = (0, 1, 5, 10)
# A squared error that only gradient steps that ran away reach: waves are within ±5.
DIVERGED = 1000.0
# Finn et al. 2017, Table 2 of the appendix: 5-shot, after 1, 5 and 10 steps.
PAPER = {"MAML": (0.67, 0.38, 0.35), "joint training": (2.41, 2.23, 2.19)}
# Inner steps in training, and whether gradients go through them.
METHODS = {"MAML": (1, True), "first-order MAML": (1, False), "joint training": (0, True)}


def train(inner_steps, second_order, steps, seed):
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(40, activation="relu"),
            keras.layers.Dense(40, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    maml = ksm.MAML(
        network,
        inner_steps=inner_steps,
        inner_learning_rate=0.01,
        second_order=second_order,
    )
    maml.compile(keras.optimizers.Adam(1e-3), loss="mse", jit_compile=True, steps_per_execution=100)
    waves = ksm.data.sinusoids(shots=10, queries=10, seed=1000 + seed).batch(25)
    began = time.perf_counter()
    history = maml.fit(waves, epochs=steps // 1000, steps_per_epoch=1000, verbose=0).history
    return maml, history["loss"], time.perf_counter() - began


def test(maml, shots):
    waves = ksm.data.sinusoids(shots=shots, queries=100, query_grid=True, episodes=600, seed=7)
    return ksm.evaluation.adaptation_curve(maml, waves.batch(100), steps=10, verbose=0)


def show(title, cells):
    print(f"{title:28s}" + "".join(f"{f'{m:.3f} ± {h:.3f}':>18s}" for m, h in cells), flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=70_000, help="a multiple of 1,000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    result = {"steps": arguments.steps, "runs": []}
    picture = matplotlib.figure.Figure(figsize=(14, 4), layout="constrained")
    axes = picture.subplots(1, 3)
    for seed in arguments.seeds:
        print(
            f"\nseed {seed}, {arguments.steps} steps; mean squared error on 600 waves, 95% intervals"
        )
        print(f"{'':28s}" + "".join(f"{f'{k} steps':>18s}" for k in STEPS))
        curves = {}
        for name, form in METHODS.items():
            maml, losses, seconds = train(*form, arguments.steps, seed)
            run = {"seed": seed, "name": name, "seconds": round(seconds), "loss": losses}
            for shots in (5, 10):
                curve = curves[f"{name}, {shots} points"] = test(maml, shots)
                cells = [(float(curve.mean[k]), float(curve.half_interval[k])) for k in STEPS]
                run[f"{shots}_shot"] = dict(zip(map(str, STEPS), cells, strict=True))
                show(f"{name}, {shots} points", cells)
                stays = np.nanmax(curve.per_episode, axis=1) < DIVERGED
                stays &= np.isfinite(curve.per_episode).all(axis=1)
                run[f"{shots}_shot_diverged"] = int((~stays).sum())
                if not stays.all():
                    rest = curve.per_episode[stays]
                    halves = 1.96 * rest.std(axis=0, ddof=1) / len(rest) ** 0.5
                    cells = [(float(rest.mean(axis=0)[k]), float(halves[k])) for k in STEPS]
                    run[f"{shots}_shot_others"] = dict(zip(map(str, STEPS), cells, strict=True))
                    show(f"  without {(~stays).sum()} that diverged", cells)
            if name in PAPER:
                cells = "".join(f"{m:>18.2f}" for m in PAPER[name])
                print(f"{'  the paper, 5 points':46s}{cells}")
            print(f"  trained in {seconds:.0f} s, {1e3 * seconds / arguments.steps:.2f} ms a step")
            result["runs"].append(run)
            if seed == arguments.seeds[0]:
                axes[0].plot(1000 * np.arange(1, len(losses) + 1), losses, label=name)
                if name == "MAML":
                    wave = next(
                        iter(ksm.data.sinusoids(shots=5, queries=100, query_grid=True, seed=8))
                    )
                    ksm.visualization.plot_adapted_functions(maml, wave, ax=axes[2])
        if seed == arguments.seeds[0]:
            ksm.visualization.plot_adaptation_curve(curves, ax=axes[1])
            axes[1].set_ylim(0, 6)  # Whatever a wave that ran away does.
    axes[0].set(
        xlabel="meta-training step", ylabel="query loss", title="Meta-training", yscale="log"
    )
    axes[0].legend()
    picture.savefig("sinusoid.png", dpi=110)
    with open("sinusoid.json", "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
