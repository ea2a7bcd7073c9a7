import numpy as np
import tensorflow as tf

from keras_sslmeta.losses.triplet_all import TripletAll
from keras_sslmeta.losses.triplet_hard import TripletHard
from keras_sslmeta.losses.triplet_semi_hard import TripletSemiHard


def test_examples_of_tensorflow_addons():
    """From the docstrings of its functions: two samples of one label, no negatives."""
    labels, z = np.array([0, 0]), np.array([[0.0, 1.0], [1.0, 0.0]], "float32")
    np.testing.assert_allclose(TripletSemiHard()(labels, z), 2.4142137, rtol=1e-6)
    np.testing.assert_allclose(TripletHard()(labels, z), 1.0, rtol=1e-6)

    def products(z):
        return tf.linalg.matmul(z, z, transpose_b=True)

    assert TripletSemiHard(distance_metric=products)(labels, z) == 1.0
    assert TripletHard(distance_metric=products)(labels, z) == 0.0


def test_semi_hard_takes_the_next_negative_and_else_the_farthest():
    z = np.array([[0.0], [1.0], [1.5], [9.0]], "float32")
    labels = np.array([0, 0, 1, 1])
    got = TripletSemiHard(reduction=None)(labels, z)
    # Pairs (0, 1): 1.5; (1, 0): of 0.5 and 8 the latter; (2, 3): neither of 1.5 and 0.5; (3, 2): 8.
    np.testing.assert_allclose(got, [0.5, 0.0, 7.0, 0.5], rtol=1e-6)


def test_a_negative_as_far_as_the_positive_is_not_farther():
    z = np.array([[0.0], [2.0], [-2.0], [3.0]], "float32")
    labels = np.array([0, 0, 1, 2])
    got = TripletSemiHard(margin=0.5, reduction=None)(labels, z)
    # Anchor 0: of 2 and 3 the latter; anchor 1: of 4 and 1 the former. Two pairs, four samples.
    np.testing.assert_allclose(got, [0, 0, 0, 0], atol=1e-6)
    got = TripletSemiHard(margin=1.5, reduction=None)(labels, z)
    np.testing.assert_allclose(got, [0.5 * 2, 0, 0, 0], rtol=1e-6)


def test_sums_of_many_triplets_stay_exact():
    """Near convergence small hinges stand against sums of many large distances."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    z = 100.0 * labels[:, None] + rng.normal(size=(400, 1)) * 0.5
    z = z.astype("float32")
    d = np.abs(z.astype("float64") - z[:, 0].astype("float64"))
    margin = 98.0
    got = TripletAll(margin=margin)(labels, z)
    same = labels[:, None] == labels
    total = above = 0.0
    for a in range(400):
        others = same[a].copy()
        others[a] = False
        terms = np.maximum(d[a][others][:, None] - d[a][~same[a]] + margin, 0)
        total, above = total + terms.sum(), above + (terms > 0).sum()
    assert above > 1000
    np.testing.assert_allclose(got, total / (400 * 199 * 200), rtol=1e-3)
    got = TripletAll(margin=margin, nonzero_only=True)(labels, z)
    np.testing.assert_allclose(got, total / above, rtol=1e-3)
