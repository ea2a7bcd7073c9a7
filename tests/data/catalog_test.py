import os
import pathlib
import socket

import numpy as np
import pytest
import tensorflow as tf

from keras_sslmeta.data import catalog, download_report, load

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "tfds"
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason="no prepared data in ../shared/data/tfds"
)


def store(folder, name, features, **splits):
    """Writes a set in tensorflow-datasets' own format, without the network."""
    import tensorflow_datasets as tfds

    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={split: list(enumerate(rows)) for split, rows in splits.items()},
        data_dir=folder,
        disable_shuffling=True,
    )


def image_rows(count, size=lambda i: (9, 8, 3)):
    random = np.random.default_rng(count)
    return [
        {"image": random.integers(0, 256, size(i), dtype="uint8"), "label": i % 2}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of small sets, one for each kind that a user may meet."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    image = tfds.features.Image(shape=(9, 8, 3))
    label = tfds.features.ClassLabel(names=["cat", "dog"])
    rows = image_rows(10)
    store(folder, "tiny_pair", {"image": image, "label": label}, train=rows, test=rows[:4])
    store(folder, "tiny_train", {"image": image, "label": np.int64}, train=rows)
    store(folder, "tiny_val", {"image": image, "label": label}, train=rows[:6], validation=rows[6:])
    store(
        folder,
        "tiny_sizes",
        {"image": tfds.features.Image(shape=(None, None, 3)), "label": label},
        train=image_rows(6, lambda i: (8 + i, 8, 3)),
        test=image_rows(4, lambda i: (8, 8 + i, 3)),
    )
    store(folder, "tiny_text", {"text": tfds.features.Text()}, train=[{"text": "a"}] * 3)
    store(
        folder,
        "tiny_floats",
        {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.float32), "label": label},
        train=[{"image": np.ones((4, 4, 1), "float32"), "label": 0}] * 3,
    )
    return folder


def test_digits_are_scikit_learns_with_a_fixed_split():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    seen = dict.fromkeys(range(10), 0)
    train, test = [], []
    for i, label in enumerate(bunch.target):  # The third, eighth, … of each class is for testing.
        (test if seen[label] % 5 == 2 else train).append(i)
        seen[label] += 1
    np.random.seed(1)
    digits = load("digits")
    expected = np.array([[round(v * 255 / 16) for v in row] for row in bunch.data])
    np.testing.assert_array_equal(digits.train_x.reshape(-1, 64), expected[train])
    np.testing.assert_array_equal(digits.test_x.reshape(-1, 64), expected[test])
    np.testing.assert_array_equal(digits.train_y, bunch.target[train])
    np.testing.assert_array_equal(digits.test_y, bunch.target[test])
    assert digits.train_x.dtype == np.uint8
    assert digits.train_y.dtype == digits.test_y.dtype == np.int64
    assert digits.class_names == tuple("0123456789")
    shares = np.bincount(digits.test_y) / np.bincount(bunch.target)
    assert shares.min() > 0.19 and shares.max() < 0.21
    np.random.seed(2)
    np.testing.assert_array_equal(load("digits").test_x, digits.test_x)


def test_digits_resize():
    digits = load("digits", image_size=(4, 16))
    assert digits.test_x.shape == (359, 4, 16, 1)
    # Antialiased: halving takes in every pixel, so a picture keeps its mean.
    halved = load("digits", image_size=4).test_x.astype(float)
    full = load("digits").test_x.astype(float)
    inner = np.abs(halved.mean((1, 2, 3)) - full.mean((1, 2, 3)))
    assert inner.max() < 8


def test_reads_what_was_stored(prepared):
    rows = image_rows(10)
    tiny = load("tiny_pair", prepared)
    np.testing.assert_array_equal(tiny.train_x, [row["image"] for row in rows])
    np.testing.assert_array_equal(tiny.train_y, [0, 1] * 5)
    np.testing.assert_array_equal(tiny.test_x, tiny.train_x[:4])
    assert tiny.class_names == ("cat", "dog")
    assert tiny.train_x.dtype == np.uint8 and tiny.train_y.dtype == np.int64


def test_reads_across_batches(prepared, monkeypatch):
    whole = load("tiny_pair", str(prepared))
    monkeypatch.setattr(catalog, "_BATCH", 3)
    np.testing.assert_array_equal(load("tiny_pair", str(prepared)).train_x, whole.train_x)


def test_missing_test_split(prepared):
    only_train = load("tiny_train", prepared)
    assert only_train.train_x.shape[0] == 8 and only_train.test_x.shape[0] == 2
    stacked = np.concatenate([only_train.train_x, only_train.test_x])
    np.testing.assert_array_equal(stacked, [row["image"] for row in image_rows(10)])
    assert only_train.class_names == ("0", "1")
    assert load("tiny_val", prepared).test_x.shape[0] == 4


def test_splits_by_name(prepared):
    tiny = load("tiny_pair", prepared, splits=("test", "train[:30%]+test[:1]"))
    assert len(tiny.train_x) == 4 and len(tiny.test_x) == 4


def test_images_of_many_sizes(prepared):
    with pytest.raises(ValueError, match="`image_size` must be given for 'tiny_sizes'"):
        load("tiny_sizes", prepared)
    tiny = load("tiny_sizes", prepared, image_size=5)
    assert tiny.train_x.shape == (6, 5, 5, 3)
    first = image_rows(6, lambda i: (8 + i, 8, 3))[0]["image"]
    expected = tf.image.resize(first, (5, 5), antialias=True).numpy()
    assert np.abs(tiny.train_x[0] - expected).max() <= 0.5 + 1e-4  # Rounded, not truncated.


def test_prepared_data_needs_no_network_and_prints_nothing(prepared, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("tensorflow_datasets.core.utils.gcs_utils.gcs_listdir", refuse)
    capfd.readouterr()
    load("tiny_pair", prepared, image_size=4)
    assert download_report("tiny_pair", prepared) is None
    assert capfd.readouterr() == ("", "")


def test_download_only_when_allowed(tmp_path):
    import tensorflow_datasets as tfds

    class KsmLocalImages(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(9, 8, 3)), "label": np.int64}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(image_rows(5))

    folder = tmp_path / "later"
    with pytest.raises(ValueError, match="not an existing folder, and download=False"):
        load("ksm_local_images", folder)
    assert not folder.exists()
    report = download_report("ksm_local_images", folder)
    assert report is not None and "unknown size" in report and str(folder) in report
    assert load("ksm_local_images", folder, download=True).train_x.shape == (5, 9, 8, 3)
    assert download_report("ksm_local_images", folder) is None
    assert load("ksm_local_images", folder).test_x.shape == (5, 9, 8, 3)


def test_refusal_says_what_would_be_downloaded(prepared, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"TFDS would download .*1\.58 GB") as refused:
        load("svhn_cropped", prepared)
    assert "tiny_pair, tiny_sizes" in str(refused.value)
    assert "download=False" in str(refused.value)
    with pytest.raises(ValueError, match="which holds no sets"):
        load("svhn_cropped", tmp_path)
    report = download_report("svhn_cropped", tmp_path)
    assert report is not None and os.fspath(tmp_path) in report
    with pytest.raises(ValueError, match="`download` must be True") as refused:
        load("imagenet2012")
    assert "fetched by hand" in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar11",), "Near names: .*cifar10.*Received: 'cifar11'"),
        (("digit",), "Near names: digits"),
        (("CIFAR1O",), "Near names: .*cifar10"),
        (("cifar10/nope",), "config and version.*Received: 'cifar10/nope'"),
        (("",), "`name` must be the name"),
        ((3,), "`name` must be the name"),
        (("../digits",), "`name` must be"),
    ],
)
def test_unknown_names(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(*arguments)
    with pytest.raises(ValueError, match="`name` must be"):
        download_report(*arguments)


@pytest.mark.parametrize("size", [0, -3, 2.5, (8,), (8, 8, 8), "8", True, (8, 0)])
def test_bad_image_size(size):
    with pytest.raises(ValueError, match="`image_size` must be"):
        load("digits", image_size=size)


def test_sets_without_images_or_splits(prepared):
    with pytest.raises(ValueError, match="must be an image set.*'tiny_text', with the features"):
        load("tiny_text", prepared)
    with pytest.raises(ValueError, match="8-bit `image`"):
        load("tiny_floats", prepared)
    with pytest.raises(ValueError, match="splits that 'tiny_pair' has: train, test"):
        load("tiny_pair", prepared, splits=("train", "validation"))
    with pytest.raises(ValueError, match="`splits` must be a pair"):
        load("tiny_pair", prepared, splits="train")
    with pytest.raises(ValueError, match="`splits` must be None"):
        load("digits", splits=("train", "test"))


@needs_real_data
@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (28, 28, 1), 10), ("cifar10", (32, 32, 3), 10), ("omniglot", (105, 105, 3), 1623)],
)
def test_real_sets(name, shape, classes):
    data = load(name, REAL, splits=("train[:2%]", "test[:1%]"))
    assert data.train_x.shape[1:] == data.test_x.shape[1:] == shape
    assert data.train_x.dtype == np.uint8 and data.train_x.max() == 255
    assert len(data.class_names) == classes


@needs_real_data
def test_omniglot_at_28_pixels_tests_on_other_classes():
    data = load("omniglot", REAL, image_size=28, splits=("train[:20%]", "test[:10%]"))
    assert data.train_x.shape == (3856, 28, 28, 3) and data.test_x.shape == (1318, 28, 28, 3)
    assert not set(data.train_y) & set(data.test_y)
    assert len({data.class_names[label] for label in data.test_y}) > 300
    # Ink stays dark on white: no pixel wrapped round when it was resized.
    assert data.train_x.mean() > 200
