"""Spoken digits of speakers that training has never heard: SimCLR on 1,500 clips without labels.

    python examples/simclr_speech.py --data_dir DIR           # where TFDS keeps spoken_digit
    python examples/simclr_speech.py --download               # or fetches it: 12 MB

The Free Spoken Digit Dataset: five speakers, ten digits, fifty times each. SimCLR is trained on the clips of
three speakers. Its two views of a clip are the same word, faster or slower, higher or lower, through
another microphone, with stretches of time and bands of frequency missing.

Then come two other speakers, and what is asked is which digit they say: by nearest class means from one
labelled clip of theirs each or five (a device that a new owner teaches its commands), and by nearest
neighbours and a linear classifier from labelled clips of the training speakers. Compared are the
log-mel spectrograms themselves, the encoder before training, and after. They are what makes this hard or
easy: silence is cut off, all clips are brought to one length, and each band's mean is taken away, and with it
much of what a microphone and a voice do to all sounds alike.

Settings were chosen by `--validation`: each training speaker asked in turn, after training on the other two.
Writes simclr_speech.png and simclr_speech.json into the current folder.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import math
import pathlib
import time


def positive(text):
    """A positive whole number of the command line."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, not {text}")
    return int(text)


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--data_dir", help="where TFDS keeps its data sets (~/tensorflow_datasets)")
parser.add_argument("--download", action="store_true", help="let TFDS fetch spoken_digit")
parser.add_argument(
    "--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run for each (0 1 2)"
)
parser.add_argument("--epochs", type=positive, default=60, help="of training (60)")
parser.add_argument("--width", type=positive, default=32, help="of the first convolution (32)")
parser.add_argument("--temperature", type=float, default=0.2, help="of the loss (0.2)")
parser.add_argument("--warp", type=float, default=0.4, help="deviation of log-speed (0.4)")
parser.add_argument("--episodes", type=positive, default=200, help="for each speaker (200)")
parser.add_argument(
    "--validation", action="store_true", help="ask the training speakers, to choose settings"
)
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np
import scipy.stats
import tensorflow as tf
import tensorflow_datasets as tfds

import keras_sslmeta as ksm

started, cpu_started = time.perf_counter(), time.process_time()

# ---------------------------------------------------------------------------------------- data
TRAINING_SPEAKERS = ("george", "jackson", "nicolas")
TEST_SPEAKERS = ("theo", "yweweler")
STEPS, BANDS = 48, 40  # Of a spectrogram.
RANGE = 43.0  # Decibels below the loudest that count.

builder = tfds.builder("spoken_digit", data_dir=arguments.data_dir, try_gcs=False)
if not builder.is_prepared():
    if not arguments.download:
        raise SystemExit(f"spoken_digit is not in {builder.data_dir}.\nAdd --download to fetch it.")
    builder.download_and_prepare()
examples = list(tfds.as_numpy(builder.as_dataset(split="train")))
digits = np.array([int(example["label"]) for example in examples])
# Files are named digit_speaker_number.
speakers = np.array([example["audio/filename"].decode().split("_")[1] for example in examples])


def spectrograms_of(waves):
    """Log-mel spectrograms `(n, STEPS, BANDS, 1)` of waves of any length, 8,000 numbers a second."""
    stride = 80  # 10 ms, of windows of 25 ms.
    to_mel = keras.layers.MelSpectrogram(
        256, stride, 200, sampling_rate=8000, num_mel_bins=BANDS, min_freq=80, max_freq=3800
    )
    to_mel.top_db = math.inf  # It would count from the loudest of a whole batch.
    waves = [wave / np.abs(wave).max() for wave in waves]
    padded = keras.utils.pad_sequences(waves, dtype="float32", padding="post")
    mel = keras.Sequential([keras.Input(padded.shape[1:]), to_mel])
    clips = []
    for wave, decibels in zip(waves, mel.predict(padded, batch_size=100, verbose=0), strict=True):
        clip = decibels.T[: 1 + len(wave) // stride]
        loudness = 10 * np.log10((10 ** (clip / 10)).sum(axis=1))
        heard = np.flatnonzero(loudness > loudness.max() - 30)
        clip = clip[heard[0] : heard[-1] + 1]  # Without silence before and after.
        clip = np.maximum(clip, clip.max() - RANGE)
        clip = clip - clip.mean(axis=0)
        clips.append(tf.image.resize(clip[..., None] / clip.std(), (STEPS, BANDS)).numpy())
    return np.stack(clips)


spectrograms = spectrograms_of([example["audio"].astype("float32") for example in examples])

# ------------------------------------------------------------------------------- model and views
BATCH_SIZE = 125


class RandomFilter(keras.layers.Layer):
    """Adds a random curve, smooth over the bands, to each spectrogram: another microphone or voice."""

    def __init__(self, amount, waves=4, **kwargs):
        super().__init__(**kwargs)
        waves = np.arange(1, waves + 1)
        bands = (np.arange(BANDS) + 0.5) / BANDS
        self.curves = amount * np.cos(np.pi * waves[:, None] * bands) / np.sqrt(waves)[:, None]
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs):
        shape = (keras.ops.shape(inputs)[0], len(self.curves))
        drawn = keras.random.normal(shape, seed=self.seed_generator)
        return inputs + (drawn @ self.curves.astype("float32"))[:, None, :, None]


def views():
    """Draws a view: a stretch of the clip at another speed, moved in pitch, filtered, masked, with noise."""
    return keras.Sequential(
        [
            ksm.layers.RandomTimeCrop(scale=(0.5, 1.0)),
            ksm.layers.RandomTimeWarp(stddev=arguments.warp, knots=2),
            keras.layers.RandomTranslation(0.0, 0.05, fill_mode="nearest"),
            RandomFilter(0.15),
            ksm.layers.SpecAugment(1, 8, 1, 6),
            keras.layers.GaussianNoise(0.2),
        ]
    )


def untrained():
    """An encoder that keeps its last map, since what is said when and at which pitch is the word."""
    layers = [keras.Input((STEPS, BANDS, 1))]
    for factor in (1, 2, 4):
        layers += [
            keras.layers.Conv2D(
                factor * arguments.width, 3, strides=2, padding="same", use_bias=False
            ),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    return keras.Sequential([*layers, keras.layers.Flatten()], name="encoder")


def pretrained(clips):
    """The same after SimCLR on the clips, and the last loss."""
    encoder = untrained()
    projector = ksm.layers.ProjectionHead(64, hidden_dim=256, batch_normalization=True)
    simclr = ksm.SimCLR(encoder, augmentation=views(), projector=projector)
    steps = arguments.epochs * (len(clips) // BATCH_SIZE)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    simclr.compile(
        keras.optimizers.AdamW(schedule, weight_decay=1e-3),
        loss=ksm.losses.NTXent(temperature=arguments.temperature),
    )
    print(f"SimCLR on {len(clips)} clips")
    bar = keras.utils.Progbar(steps, unit_name="step", stateful_metrics=["loss"])
    progress = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: bar.add(1, values=[("loss", logs["loss"])])
    )
    history = simclr.fit(
        clips,
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        verbose=0,
        callbacks=[progress],
    )
    return encoder, history.history["loss"][-1]


# ------------------------------------------------------------------------------------ evaluation
SHOTS = (1, 5)


def judged(features, training, testing, seed):
    """Results by speaker and column: few-shot episodes, and whether each clip is recognised."""
    known, asked = np.isin(speakers, training), np.isin(speakers, testing)
    labelled, others = (features[known], digits[known]), (features[asked], digits[asked])
    nearest = ksm.evaluation.knn_predict(*labelled, others[0], k=20)
    probe = ksm.evaluation.linear_probe(None, labelled, others, seed=seed)
    results = {}
    for speaker in testing:
        own = speakers[asked] == speaker
        results[speaker] = {
            f"10-way {shots}-shot": ksm.evaluation.few_shot(
                None,
                (others[0][own], others[1][own]),
                ways=10,
                shots=shots,
                queries=15,
                episodes=arguments.episodes,
                seed=seed,
            ).per_episode
            for shots in SHOTS
        }
        results[speaker]["kNN"] = (nearest == others[1])[own].astype("float64")
        results[speaker]["linear"] = (probe.ranks == 0)[own].astype("float64")
    return results


if arguments.validation:
    folds = [
        (tuple(other for other in TRAINING_SPEAKERS if other != asked), (asked,))
        for asked in TRAINING_SPEAKERS
    ]
else:
    folds = [(TRAINING_SPEAKERS, TEST_SPEAKERS)]

TITLES = ("log-mel", "untrained encoder", "SimCLR")
runs, losses, seen = [], [], {}
for seed in arguments.seeds:
    run = {title: {} for title in TITLES}
    for training, testing in folds:
        print(
            f"\nseed {seed}: {', '.join(training)} for training, {', '.join(testing)} for testing"
        )
        known = np.isin(speakers, training)
        keras.utils.set_random_seed(seed)
        encoders = {"untrained encoder": untrained()}
        keras.utils.set_random_seed(seed)
        encoders["SimCLR"], loss = pretrained(spectrograms[known])
        losses.append(round(float(loss), 4))
        features = {"log-mel": spectrograms.reshape(len(spectrograms), -1)}
        for title, encoder in encoders.items():
            features[title] = encoder.predict(spectrograms, batch_size=250, verbose=0)
        for title in TITLES:
            run[title] |= judged(features[title], training, testing, seed)
        seen = seen or features
    runs.append(run)

# ---------------------------------------------------------------------------------------- figures
columns = list(runs[0]["SimCLR"][folds[0][1][0]])
asked_speakers = list(runs[0]["SimCLR"])


def interval(values):
    """Mean and half the 95% interval in percent, by Student's t."""
    values = 100 * np.asarray(values)
    spread = values.std(ddof=1) / math.sqrt(len(values))
    return [
        round(float(values.mean()), 2),
        round(float(scipy.stats.t.ppf(0.975, len(values) - 1) * spread), 2),
    ]


def summary(title, column, who, less=None):
    """Mean and half interval over seeds, or over the tests of the one seed; less another row, paired."""
    values = [
        np.concatenate(
            [run[title][s][column] - (run[less][s][column] if less else 0.0) for s in who]
        )
        for run in runs
    ]
    return interval([np.mean(v) for v in values] if len(runs) > 1 else values[0])


figures = {
    title: {
        who: {c: summary(title, c, asked_speakers if who == "all" else [who]) for c in columns}
        for who in ("all", *asked_speakers)
    }
    for title in TITLES
}
gains = {
    f"over {less}": {c: summary("SimCLR", c, asked_speakers, less) for c in columns}
    for less in TITLES[:-1]
}
over = f"{len(runs)} seeds" if len(runs) > 1 else "episodes or clips"
print(f"\nAccuracy in percent, means and 95% intervals over {over}")
print(f"{'':28s}" + "".join(f"{column:>16s}" for column in columns))
for who in ("all", *asked_speakers):
    for title in TITLES:
        cells = "".join(f"{f'{m:.1f} ± {h:.1f}':>16s}" for m, h in figures[title][who].values())
        print(f"{title if who == 'all' else f'  {who}, {title}':28s}{cells}")
print("SimCLR, on the same episodes and clips")
for title, row in gains.items():
    print(f"{title:28s}" + "".join(f"{f'{m:+.1f} ± {h:.1f}':>16s}" for m, h in row.values()))

# --------------------------------------------------------------------------------------- picture
picture = matplotlib.figure.Figure(figsize=(15, 5.2), layout="constrained")
left, middle, right = picture.subfigures(1, 3, width_ratios=[1, 0.9, 1])
known = np.flatnonzero(speakers == folds[0][0][0])
shown = np.array([known[digits[known] == digit][0] for digit in range(5)])
draw = views()
two = tf.stack([draw(spectrograms[shown], training=True) for _ in range(2)], axis=1).numpy()


def upright(maps):
    """Time to the right, pitch upwards."""
    return np.swapaxes(maps, -3, -2)[..., ::-1, :, :]


ksm.visualization.plot_views(upright(spectrograms[shown]), upright(two), figure=left)
left.suptitle("Clips of five digits, and two views of each")
ax = middle.subplots()
bars = {
    title: {
        column: ksm.evaluation.FewShotResult(
            np.concatenate([runs[0][title][s][column] for s in asked_speakers])
        )
        for column in columns[:2]
    }
    for title in TITLES
}
ksm.visualization.plot_few_shot(bars, ax=ax)
ax.set_title(f"Speakers never heard, seed {arguments.seeds[0]}")
ax = right.subplots()
first = speakers == folds[0][1][0]
ksm.visualization.plot_embedding(seen["SimCLR"][first], digits[first], ax=ax)
ax.set_title(f"SimCLR: the digits of {folds[0][1][0]}")
picture.savefig("simclr_speech.png", dpi=110)

seconds = round(time.perf_counter() - started, 1)
record = {
    "settings": {k: v for k, v in vars(arguments).items() if k not in ("data_dir", "download")},
    "accuracy": figures,
    "simclr": gains,
    "last_loss": losses,
    "seconds": seconds,
    "cpu_seconds": round(time.process_time() - cpu_started, 1),
}
pathlib.Path("simclr_speech.json").write_text(json.dumps(record, indent=2))
print(f"\nsimclr_speech.png and simclr_speech.json are in {os.getcwd()} ({seconds:.0f} seconds)")
