"""Sentence embeddings from 15,000 short sentences without labels, for intents that have one example or five.

    python examples/simcse_text.py --data_dir FOLDER             # holds data_full.json of CLINC150
    python examples/simcse_text.py --download                    # or fetches it: 2.5 MB

What people ask of an assistant ("freeze my account please") has an intent (freeze_account). Few sentences
have a label, many have none. SimCSE learns an embedding from the latter: two views of a sentence are to find
each other among the sentences of the batch. In the paper the views differ by dropout alone, in a language
model that has read the web. This encoder starts from nothing, a vector for each word and their mean, and
dropout alone teaches it little: the views share every word, and are too easy to tell. With half of the words
deleted in each view, words that occur in the same sentences have to move together.

Then thirty intents are asked for, in sentences that no training has read: by nearest class means from
one labelled sentence each or five, and by nearest neighbours: in bags of words, in tf-idf, in tf-idf reduced
to 128 dimensions (latent semantic analysis), in the untrained encoder, and in SimCSE's embeddings. The last
row is of an encoder that has read no sentence of those thirty intents at all, labelled or not; the others
have read unlabelled training sentences of them. What is out of every intent's scope ("oos") is left out.

Settings were chosen by `--validation`, on twenty other intents. Writes simcse_text.png and simcse_text.json
into the current folder.
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
parser.add_argument(
    "--data_dir", default="~/.keras/datasets/clinc150", help="the folder of data_full.json"
)
parser.add_argument(
    "--download", action="store_true", help="fetch data_full.json if it isn't there"
)
parser.add_argument(
    "--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run for each (0 1 2)"
)
parser.add_argument("--epochs", type=positive, default=6, help="of each training (6)")
parser.add_argument("--width", type=positive, default=512, help="dimensions of the embedding (512)")
parser.add_argument("--rate", type=float, default=0.5, help="part of the words to delete (0.5)")
parser.add_argument("--temperature", type=float, default=0.1, help="of the loss (0.1)")
parser.add_argument("--episodes", type=positive, default=200, help="for each seed (200)")
parser.add_argument(
    "--validation", action="store_true", help="judge by twenty other intents, to choose settings"
)
arguments = parser.parse_args()

# After the arguments, so that --help answers at once.
import keras
import matplotlib.figure
import numpy as np
import scipy.stats
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

import keras_sslmeta as ksm

started, cpu_started = time.perf_counter(), time.process_time()

# ---------------------------------------------------------------------------------------- data
folder = pathlib.Path(arguments.data_dir).expanduser()
if arguments.download:
    keras.utils.get_file(
        "data_full.json",
        "https://raw.githubusercontent.com/clinc/oos-eval/"
        "828f8093932c8fe6ca7936c3d2e52903b1c523de/data/data_full.json",
        cache_dir=folder,
        cache_subdir="",
        file_hash="36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
    )
if not (folder / "data_full.json").exists():
    raise SystemExit(f"{folder} holds no data_full.json of CLINC150.\nAdd --download to fetch it.")
splits = json.loads((folder / "data_full.json").read_text())  # {"train": [[text, intent], …], …}
intents = np.random.default_rng(0).permutation(sorted({intent for _, intent in splits["train"]}))
asked_intents = intents[100:120] if arguments.validation else intents[120:]


def sentences(split, chosen=None):
    """Sentences and their intents, all 150 or the chosen ones."""
    kept = [pair for pair in splits[split] if chosen is None or pair[1] in chosen]
    return np.array([text for text, _ in kept]), np.array([intent for _, intent in kept])


unlabelled, unlabelled_intents = sentences("train")  # The intents only say what to leave out below.
known = sentences("train", asked_intents)
asked = sentences("val" if arguments.validation else "test", asked_intents)
print(
    f"{len(unlabelled)} sentences without labels; {len(asked[0])} others, of {len(asked_intents)} "
    f"intents, to be recognised"
)

# ------------------------------------------------------------------------------- model and views
LENGTH = 16  # 98% of the sentences have no more words.
BATCH_SIZE = 256


def untrained(texts):
    """An encoder of token ids, and the layer that makes them, whose words are those of the texts."""
    tokenize = keras.layers.TextVectorization(output_sequence_length=LENGTH)
    tokenize.adapt(texts)
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(tokenize.vocabulary_size(), arguments.width)(tokens)
    x = keras.layers.Dropout(0.1)(x)
    # Unknown words (1) count no more than padding (0): their one vector would stand for all of them, and
    # every training sentence consists of known words, so that it is never trained.
    is_word = keras.ops.cast(tokens > 1, "float32")[..., None]
    words = keras.ops.maximum(keras.ops.sum(is_word, axis=1), 1.0)
    mean = keras.ops.sum(x * is_word, axis=1) / words
    return tokenize, keras.Model(tokens, mean, name="encoder")


def pretrained(texts, rate, title):
    """The same after SimCSE on the texts, with so much of each sentence deleted; also the last loss."""
    tokenize, encoder = untrained(texts)
    tokens = tokenize(texts).numpy()
    # The paper's head, Dense with tanh, which is thrown away afterwards, and a higher temperature.
    simcse = ksm.SimCSE(encoder, augmentation=ksm.layers.TokenDropout(rate) if rate else None)
    steps = arguments.epochs * math.ceil(len(tokens) / BATCH_SIZE)
    simcse.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(5e-3, steps)),
        loss=ksm.losses.InfoNCE(temperature=arguments.temperature),
        jit_compile=False,
    )
    print(f"\n{title}: {len(texts)} sentences")
    bar = keras.utils.Progbar(steps, unit_name="step", stateful_metrics=["loss"])
    progress = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: bar.add(1, values=[("loss", logs["loss"])])
    )
    history = simcse.fit(
        tokens,
        batch_size=BATCH_SIZE,
        epochs=arguments.epochs,
        verbose=0,
        callbacks=[progress],
    )
    return tokenize, encoder, history.history["loss"][-1]


# ------------------------------------------------------------------------------------ evaluation
SETTINGS = [(5, 1), (5, 5), (10, 1), (10, 5)]  # Ways and shots.
NEIGHBOURS = [10, 100]  # Labelled sentences an intent.


def judged(embed, seed):
    """Results by column: few-shot episodes, and whether each sentence's nearest neighbours are right."""
    known_x, asked_x = embed(known[0]), embed(asked[0])
    occurs = asked_x.any(axis=0) | known_x.any(axis=0)  # Columns of zeros change no cosine.
    known_x, asked_x = known_x[:, occurs], asked_x[:, occurs]
    results = {
        f"{ways}-way {shots}-shot": ksm.evaluation.few_shot(
            None,
            (asked_x, asked[1]),
            ways=ways,
            shots=shots,
            queries=15,
            episodes=arguments.episodes,
            seed=seed,
        ).per_episode
        for ways, shots in SETTINGS
    }
    for count in NEIGHBOURS:
        random = np.random.default_rng(seed)
        few = np.concatenate(
            [random.permutation(np.flatnonzero(known[1] == c))[:count] for c in asked_intents]
        )
        found = ksm.evaluation.knn_predict(known_x[few], known[1][few], asked_x, k=5)
        results[f"kNN, {count} each"] = (found == asked[1]).astype("float64")
    return results


def dense(vectorizer):
    """A function from sentences to what a vectorizer of scikit-learn makes of them."""
    return lambda texts: vectorizer.transform(texts).toarray().astype("float32")


def embedder(tokenize, encoder):
    """A function from sentences to embeddings."""
    return lambda texts: encoder.predict(tokenize(texts).numpy(), batch_size=256, verbose=0)


tfidf = TfidfVectorizer(token_pattern=r"\S+").fit(unlabelled)
lsa = TruncatedSVD(128, random_state=0).fit(tfidf.transform(unlabelled))
fixed = {
    "bag of words": dense(CountVectorizer(token_pattern=r"\S+").fit(unlabelled)),
    "tf-idf": dense(tfidf),
    "tf-idf, LSA": lambda texts: lsa.transform(tfidf.transform(texts)).astype("float32"),
}
is_elsewhere = ~np.isin(unlabelled_intents, asked_intents)
runs, losses = [], {}
for seed in arguments.seeds:
    print(f"\nseed {seed}")
    keras.utils.set_random_seed(seed)
    embedders = {**fixed, "untrained encoder": embedder(*untrained(unlabelled))}
    for title, texts, rate in (
        ("SimCSE, dropout alone", unlabelled, 0.0),
        ("SimCSE, words deleted", unlabelled, arguments.rate),
        ("  the same, intents unread", unlabelled[is_elsewhere], arguments.rate),
    ):
        tokenize, encoder, loss = pretrained(texts, rate, title.strip())
        embedders[title] = embedder(tokenize, encoder)
        losses.setdefault(title.strip(), []).append(round(float(loss), 4))
    runs.append({title: judged(embed, seed) for title, embed in embedders.items()})

# ---------------------------------------------------------------------------------------- figures
titles, columns = list(runs[0]), list(runs[0]["tf-idf"])


def interval(values):
    """Mean and half the 95% interval in percent, by Student's t."""
    values = 100 * np.asarray(values)
    spread = values.std(ddof=1) / math.sqrt(len(values))
    return [
        round(float(values.mean()), 2),
        round(float(scipy.stats.t.ppf(0.975, len(values) - 1) * spread), 2),
    ]


def summary(title, column, less=None):
    """Mean and half interval over seeds, or over the tests of the one seed; less another row, paired."""
    values = [run[title][column] - (0 if less is None else run[less][column]) for run in runs]
    return interval([np.mean(v) for v in values] if len(runs) > 1 else values[0])


figures = {title.strip(): {c: summary(title, c) for c in columns} for title in titles}
gains = {
    f"over {less}": {c: summary("SimCSE, words deleted", c, less) for c in columns}
    for less in ("tf-idf", "untrained encoder")
}
over = f"{len(runs)} seeds" if len(runs) > 1 else "test episodes or sentences"
print(f"\nAccuracy in percent, means and 95% intervals over {over}")
print(f"{'':28s}" + "".join(f"{column:>16s}" for column in columns))
for title in titles:
    cells = (figures[title.strip()][c] for c in columns)
    print(f"{title:28s}" + "".join(f"{f'{m:.1f} ± {h:.1f}':>16s}" for m, h in cells))
print("SimCSE with words deleted, on the same episodes and sentences")
for title, row in gains.items():
    print(f"{title:28s}" + "".join(f"{f'{m:+.1f} ± {h:.1f}':>16s}" for m, h in row.values()))

print("\nSentences, and the nearest other one by tf-idf and by SimCSE")
embed = embedders["SimCSE, words deleted"]
for place in np.random.default_rng(1).choice(len(asked[0]), 4, replace=False):
    print(f"  {asked[0][place]}  ({asked[1][place]})")
    for title, features in (("tf-idf", fixed["tf-idf"](asked[0])), ("SimCSE", embed(asked[0]))):
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
        cosines = features @ features[place]
        cosines[place] = -1
        nearest = int(np.argmax(cosines))
        print(f"    {title}: {asked[0][nearest]}  ({asked[1][nearest]})")

# --------------------------------------------------------------------------------------- picture
picture = matplotlib.figure.Figure(figsize=(13, 5.5), layout="constrained")
left, right = picture.subplots(1, 2, width_ratios=[1, 1])
shown = {
    title.strip(): {
        column: ksm.evaluation.FewShotResult(runs[0][title][column])
        for column in ("10-way 1-shot", "10-way 5-shot")
    }
    for title in titles
}
ksm.visualization.plot_few_shot(shown, ax=left)
left.set_title(f"Intents, seed {arguments.seeds[0]}: {arguments.episodes} episodes")
ten = np.isin(asked[1], asked_intents[:10])
ksm.visualization.plot_embedding(embed(asked[0][ten]), asked[1][ten], ax=right)
right.set_title("SimCSE: test sentences of ten intents")
picture.savefig("simcse_text.png", dpi=110)

seconds = round(time.perf_counter() - started, 1)
record = {
    "settings": {k: v for k, v in vars(arguments).items() if k not in ("data_dir", "download")},
    "accuracy": figures,
    "simcse": gains,
    "last_loss": losses,
    "seconds": seconds,
    "cpu_seconds": round(time.process_time() - cpu_started, 1),
}
pathlib.Path("simcse_text.json").write_text(json.dumps(record, indent=2))
print(f"\nsimcse_text.png and simcse_text.json are in {os.getcwd()} ({seconds:.0f} seconds)")
