"""What tests of optimisers share: Keras's fit of a linear model, and the same in NumPy."""

import keras
import numpy as np
import pytest

BATCHES, BATCH = 8, 4


def cosine(start, end, steps):
    """Of the step, in double precision."""
    return lambda k: end - (end - start) * (np.cos(np.pi * min(k, steps) / steps) + 1) / 2


class NumpyAdamW:
    """Decoupled decay, then Adam with Keras's ε outside the bias correction."""

    def __init__(self, rate, decay):
        self.rate, self.decay, self.m, self.v, self.t = rate, decay, 0.0, 0.0, 0

    def step(self, k, w, g, is_spared):
        w = w - (0 if is_spared else self.rate(k) * self.decay(k)) * w
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        corrected = self.rate(k) * np.sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        return w - corrected * self.m / (np.sqrt(self.v) + 1e-7)


class NumpySGD:
    """Decoupled decay, then momentum 0.8 with the rate inside."""

    def __init__(self, rate, decay):
        self.rate, self.decay, self.v = rate, decay, 0.0

    def step(self, k, w, g, is_spared):
        w = w - (0 if is_spared else self.rate(k) * self.decay(k)) * w
        self.v = 0.8 * self.v - self.rate(k) * g
        return w + self.v


class NumpyLARS:
    """Decay in the gradient, momentum with the rate inside; coefficient 0.02."""

    def __init__(self, rate, decay, momentum=0.9, nesterov=False, coefficient=0.02):
        self.rate, self.decay, self.v = rate, decay, 0.0
        self.momentum, self.nesterov, self.coefficient = momentum, nesterov, coefficient

    def step(self, k, w, g, is_spared):
        ratio = 1.0
        if not is_spared:
            g = g + self.decay(k) * w
            norms = np.sqrt(np.sum(w**2)), np.sqrt(np.sum(g**2))
            if min(norms) > 0:
                ratio = self.coefficient * norms[0] / norms[1]
        move = self.rate(k) * ratio * g
        self.v = self.momentum * self.v + move
        return w - (self.momentum * self.v + move if self.nesterov else self.v)


@pytest.fixture
def numpy_optimizers():
    return {"AdamW": NumpyAdamW, "SGD": NumpySGD, "LARS": NumpyLARS}


@pytest.fixture
def numpy_cosine():
    return cosine


class Regression:
    """A kernel (3, 2) and a bias (2,), eight batches of four, mean squared error."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(BATCHES * BATCH, 3)).astype("float32")
        self.y = rng.normal(size=(BATCHES * BATCH, 2)).astype("float32")
        self.start = [rng.normal(size=(3, 2)), 3 + rng.normal(size=2)]

    def model(self, optimizer, **settings):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.set_weights(self.start)
        model.compile(optimizer, "mse", **{"jit_compile": False, **settings})
        return model

    def fit(self, model, epochs=1):
        return model.fit(self.x, self.y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)

    def numpy_weights(self, make, steps=BATCHES, accumulated=1, clipnorm=None, ema=None):
        """After some steps; `make` builds the optimiser of a variable, each has its own."""
        weights, optimizers = list(self.start), [make(), make()]
        total, averages = [0.0, 0.0], [0.0, 0.0]
        for k in range(steps):
            rows = slice(k % BATCHES * BATCH, (k % BATCHES + 1) * BATCH)
            x, y = self.x[rows].astype("float64"), self.y[rows]
            slope = 2 * (x @ weights[0] + weights[1] - y) / y.size
            gradients = [x.T @ slope, slope.sum(axis=0)]
            total = [t + g / accumulated for t, g in zip(total, gradients, strict=True)]
            if (k + 1) % accumulated:
                continue
            for i, g in enumerate(total):
                if clipnorm:
                    g = g * min(1, clipnorm / np.sqrt(np.sum(g**2)))
                weights[i] = optimizers[i].step(k, weights[i], g, is_spared=i == 1)
                share = (ema or 0) if k else 0
                averages[i] = share * averages[i] + (1 - share) * weights[i]
            total = [0.0, 0.0]
        return averages if ema else weights


@pytest.fixture
def regression():
    return Regression()


@pytest.fixture
def policy(request):
    """A global dtype policy, for the length of a test that is parametrised with it."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)
