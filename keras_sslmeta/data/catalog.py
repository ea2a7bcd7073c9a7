"""Image sets by name: the digits that scikit-learn ships, and whatever tensorflow-datasets knows."""

import contextlib
import dataclasses
import difflib
import glob
import os
import re

import numpy as np
import tensorflow as tf

_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A labelled image set in memory.

    Attributes:
        name: the name it was loaded by.
        train_x: uint8 images `(n, height, width, channels)`.
        train_y: int64 labels `(n,)`.
        test_x: uint8 images `(m, height, width, channels)`.
        test_y: int64 labels `(m,)`.
        class_names: a name for each label, so `class_names[train_y[0]]` is the first image's.
    """

    name: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        return (
            f"ImageData({self.name!r}, train_x={self.train_x.shape}, test_x={self.test_x.shape}, "
            f"{len(self.class_names)} classes)"
        )


def load(
    name: str,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    *,
    image_size: int | tuple[int, int] | None = None,
    splits: tuple[str, str] | None = None,
) -> ImageData:
    """Loads an image set into memory, by name.

    `"digits"` are the 1,797 handwritten digits of 8×8 pixels that scikit-learn ships, scaled from
    0..16 to 0..255. The test set is the third, eighth, thirteenth … digit of each class in
    scikit-learn's order: 359 digits, a fifth of every class, always the same ones.

    Every other name is one of tensorflow-datasets (`"cifar10"`, `"mnist"`, `"omniglot"`,
    `"imagenette/160px-v2"` …) whose examples have an `image` of 8 bits and an integer `label`.
    Nothing is downloaded unless `download=True`. Labels stay as they are: the test set of Omniglot
    has other classes than its training set. Images are decoded a batch at a time, straight to
    `image_size`, so the peak is little more than the result (Omniglot: 1.1 GB at its own
    105×105×3, 76 MB at 28×28).

    Args:
        name: `"digits"`, or a name of tensorflow-datasets, with a `/config` and a `:version` if
            you like.
        data_dir: the folder that holds the sets of tensorflow-datasets. Defaults to theirs,
            `~/tensorflow_datasets`. `"digits"` needs none.
        download: whether tensorflow-datasets may download and prepare a set that isn't there.
        image_size: side, or (height, width), to resize to, bilinear and antialiased. Default:
            no resizing, which needs a set whose images all have one size.
        splits: the two splits to load, as tensorflow-datasets writes them
            (`("small1", "small2")`, `("train[:80%]", "train[80%:]")`). Default: `train` and
            `test`; `validation` where there is no `test`; where there is `train` alone, its last
            fifth for testing.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: if the name is unknown (the error lists near ones), the set isn't under
            `data_dir` and `download` is False (it says what would be downloaded, and how large it
            is), it lacks images, labels or one of the splits, or its images differ in size and no
            `image_size` is given.

    Example:
    >>> digits = load("digits")
    >>> digits
    ImageData('digits', train_x=(1438, 8, 8, 1), test_x=(359, 8, 8, 1), 10 classes)
    >>> digits.train_x.dtype, int(digits.train_x.max())
    (dtype('uint8'), 255)

    Reference:
        - Lake, Salakhutdinov and Tenenbaum 2015 (Omniglot), Krizhevsky 2009 (CIFAR-10), and
          https://www.tensorflow.org/datasets/catalog for the other sets.
    """
    size = _checked_size(image_size)
    if name == "digits":
        if splits is not None:
            raise ValueError(f"`splits` must be None for 'digits'. Received: splits={splits}")
        return _digits(size)
    with _quiet_tfds():
        builder = _builder(name, data_dir)
        if not builder.is_prepared():
            if not download:
                raise ValueError(_refusal(name, data_dir, _report(name, builder)))
            builder.download_and_prepare()
        return _read(name, builder, size, splits)


def download_report(name: str, data_dir: str | os.PathLike | None = None) -> str | None:
    """Says what `load(name, data_dir, download=True)` would download, and how large it is.

    Args:
        name: as in `load`.
        data_dir: as in `load`.

    Returns:
        A sentence for the user, or None where nothing would be downloaded. The size is that of
        every file listed with the set in tensorflow-datasets, so for one of several configs it is
        an upper bound.

    Raises:
        ValueError: if the name is unknown.

    Example:
    >>> download_report("digits") is None
    True
    """
    if name == "digits":
        return None
    with _quiet_tfds():
        builder = _builder(name, data_dir)
        return None if builder.is_prepared() else _report(name, builder)


def _digits(size: tuple[int, int] | None) -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype("uint8")[..., np.newaxis]
    labels = bunch.target.astype("int64")
    # The rank of each digit within its class: the middle one of every five is a test digit.
    rank = np.zeros_like(labels)
    for label in np.unique(labels):
        members = labels == label
        rank[members] = np.arange(np.count_nonzero(members))
    is_test = rank % 5 == 2
    if size is not None:
        images = _resize(tf.constant(images), size).numpy()
    return ImageData(
        "digits",
        images[~is_test],
        labels[~is_test],
        images[is_test],
        labels[is_test],
        tuple(str(name) for name in bunch.target_names),
    )


@contextlib.contextmanager
def _quiet_tfds():
    """Keeps tensorflow-datasets' own notes (missing metadata, deprecations) off the terminal."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _builder(name: str, data_dir):
    """The builder of a set, from its code or from its files, without asking the network."""
    import tensorflow_datasets as tfds

    if not isinstance(name, str) or not name:
        raise ValueError(f"`name` must be the name of an image set. Received: {name!r}")
    folder = None if data_dir is None else os.path.expanduser(os.fspath(data_dir))
    try:
        return tfds.builder(name, data_dir=folder, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.5)
        hint = f"Near names: {', '.join(near)}. " if near else ""
        raise ValueError(
            "`name` must be 'digits' or one of tensorflow-datasets "
            f"(https://www.tensorflow.org/datasets/catalog). {hint}Received: {name!r}"
        ) from None
    except ValueError as error:
        reason = re.sub(r"\s+", " ", str(error))[:400]
        raise ValueError(
            f"`name` must be a name, config and version of tensorflow-datasets: {reason}. "
            f"Received: {name!r}"
        ) from error


def _report(name: str, builder) -> str:
    listed = sum(int(info.size or 0) for info in (builder.url_infos or {}).values())
    known = int(builder.info.download_size)  # In metadata only, so usually 0 here.
    if known or listed:
        size = _size(known) if known else f"up to {_size(listed)}"
    else:
        size = "files of unknown size"
    prepared = int(builder.info.dataset_size)
    afterwards = _size(prepared) if prepared else "not known beforehand"
    report = (
        f"TFDS would download {size} for {name!r} ({builder.name} {builder.version}) into "
        f"{builder.data_path} (size once prepared: {afterwards})."
    )
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        manual = re.sub(r"\s+", " ", builder.MANUAL_DOWNLOAD_INSTRUCTIONS).strip()
        report += f" Some of its files have to be fetched by hand: {manual}"
    return report


def _size(number_of_bytes: int) -> str:
    size = float(number_of_bytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _refusal(name: str, data_dir, report: str) -> str:
    if data_dir is None:
        return f"`download` must be True to allow this: {report} Received: download=False"
    folder = os.path.expanduser(os.fspath(data_dir))
    held = sorted({path.split(os.sep)[0] for path in _info_files(folder)})
    if not os.path.isdir(folder):
        lack = "is not an existing folder"
    else:
        lack = f"holds {', '.join(held) if held else 'no sets'}"
    return (
        f"`data_dir` must hold {name!r} as TFDS prepares it, or `download` must be True. {report} "
        f"Received: data_dir={folder!r}, which {lack}, and download=False"
    )


def _info_files(folder: str) -> list[str]:
    """The descriptions of the sets in a folder, `name[/config]/version/dataset_info.json`."""
    patterns = (os.path.join(*["*"] * depth, "dataset_info.json") for depth in (2, 3))
    return [path for pattern in patterns for path in glob.glob(pattern, root_dir=folder)]


def _read(name: str, builder, size: tuple[int, int] | None, splits) -> ImageData:
    features = builder.info.features
    shape = _image_shape(name, features, size)
    train, test = _splits(name, builder, splits)
    train_x, train_y = _read_split(builder, train, shape, size)
    test_x, test_y = _read_split(builder, test, shape, size)
    names = getattr(features["label"], "names", None)
    if not names:
        count = int(max(train_y.max(), test_y.max())) + 1
        names = [str(label) for label in range(count)]
    return ImageData(name, train_x, train_y, test_x, test_y, tuple(names))


def _image_shape(name: str, features, size) -> tuple[int, int, int]:
    """The shape of every image to be read, once it is sure that this is a labelled image set."""
    import tensorflow_datasets as tfds

    held = list(features) if hasattr(features, "keys") else []
    image = features["image"] if "image" in held else None
    label = features["label"] if "label" in held else None
    if (
        not isinstance(image, tfds.features.Image)
        or image.np_dtype != np.uint8
        or label is None
        or label.shape != ()
        or not np.issubdtype(label.np_dtype, np.integer)
    ):
        raise ValueError(
            "`name` must be an image set: examples with an 8-bit `image` and one integer `label`. "
            f"Received: {name!r}, with the features {', '.join(held) or features}"
        )
    height, width, channels = image.shape
    if size is None and (height is None or width is None):
        raise ValueError(
            f"`image_size` must be given for {name!r}, whose images differ in size. Received: None"
        )
    return (*(size or (height, width)), channels)


def _splits(name: str, builder, splits) -> tuple[str, str]:
    held = list(builder.info.splits)
    if splits is None:
        if "train" in held:
            test = next((split for split in ("test", "validation") if split in held), None)
            return ("train", test) if test else ("train[:80%]", "train[80%:]")
        splits = ("train", "test")
    if isinstance(splits, str) or len(splits) != 2:
        raise ValueError(f"`splits` must be a pair, (train, test). Received: {splits!r}")
    for split in splits:
        if not isinstance(split, str) or re.split(r"[\[+]", split)[0] not in held:
            raise ValueError(
                f"`splits` must name splits that {name!r} has: {', '.join(held)}. "
                f"Received: {tuple(splits)}"
            )
    return tuple(splits)


def _read_split(builder, split: str, shape, size) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        decoders=tfds.decode.PartialDecoding({"image": True, "label": True}),
        read_config=tfds.ReadConfig(try_autocache=False),  # It would hold the set a second time.
    )
    if size is not None:
        dataset = dataset.map(
            lambda example: {**example, "image": _resize(example["image"], size)},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    count = builder.info.splits[split].num_examples
    images = np.empty((count, *shape), "uint8")
    labels = np.empty(count, "int64")
    start = 0
    for batch in dataset.batch(_BATCH).prefetch(2).as_numpy_iterator():
        stop = start + len(batch["label"])
        images[start:stop] = batch["image"]
        labels[start:stop] = batch["label"]
        start = stop
    return images, labels


def _resize(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    resized = tf.image.resize(images, size, method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _checked_size(image_size) -> tuple[int, int] | None:
    if image_size is None:
        return None
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size,) * 2
    if len(sides) != 2 or not all(
        isinstance(side, (int, np.integer)) and not isinstance(side, bool) and side > 0
        for side in sides
    ):
        raise ValueError(
            f"`image_size` must be a positive integer, or (height, width). Received: {image_size!r}"
        )
    return int(sides[0]), int(sides[1])
