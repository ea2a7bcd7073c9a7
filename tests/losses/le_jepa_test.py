import numpy as np
import pytest

from keras_sslmeta.losses import LeJEPA, SIGReg

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(9, 4, 5)).astype("float32")


def by_hand(z, weight, global_views=None, step=0):
    """The formula in NumPy; the regulariser by the class that has tests of its own."""
    z = z.astype("float64")
    center = z[:, :global_views].mean(axis=1, keepdims=True)
    invariance = np.mean((z - center) ** 2)
    regulariser = float(SIGReg(7, dtype="float64")(step, z))
    return (1 - weight) * invariance + weight * regulariser


@pytest.mark.parametrize("weight", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("global_views", [None, 1, 2])
def test_the_formula(weight, global_views):
    loss = LeJEPA(weight, global_views, directions=7)
    np.testing.assert_allclose(loss(None, Z), by_hand(Z, weight, global_views), rtol=1e-5)
    np.testing.assert_allclose(loss(3, Z), by_hand(Z, weight, global_views, 3), rtol=1e-5)


def test_without_global_views_the_center_is_that_of_all():
    assert float(LeJEPA(0.0)(None, Z)) < float(LeJEPA(0.0, global_views=1)(None, Z))


def test_gradient(check_gradient):
    """Also of the centre, which nothing stops."""
    check_gradient(LeJEPA(0.3, 2, directions=5, dtype="float64"), None, Z[:4])


def test_refused():
    with pytest.raises(ValueError, match=r"`weight` must .* weight=-1"):
        LeJEPA(-1)
    with pytest.raises(ValueError, match=r"`global_views` must be at most .* global_views=5 and 4"):
        LeJEPA(global_views=5)(None, Z)
    with pytest.raises(ValueError, match="at least 2 views"):
        LeJEPA()(None, Z[:, :1])


def test_config():
    loss = LeJEPA(0.3, 2, directions=5, knots=9, limit=3.0, seed=4, gather=False, name="mine")
    assert LeJEPA.from_config(loss.get_config()).get_config() == loss.get_config()
