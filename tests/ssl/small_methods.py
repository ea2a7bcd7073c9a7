"""Small models of every method, which several test files use."""

import keras
import numpy as np
from keras import layers

import keras_sslmeta as ksm

RNG = np.random.default_rng(0)
VIEWS = RNG.normal(size=(12, 2, 6)).astype("float32")
SAMPLES = RNG.normal(size=(12, 6)).astype("float32")
LABELS = np.arange(12) % 3


def encoder(*between, seed=0):
    initializer = keras.initializers.GlorotUniform(seed)
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, "tanh", kernel_initializer=initializer), *between]
    )


def head(width=5, seed=1):
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(width, kernel_initializer=keras.initializers.GlorotUniform(seed)),
        ]
    )


def predictor(seed=2):
    initializer = keras.initializers.GlorotUniform(seed)
    return keras.Sequential([keras.Input((5,)), layers.Dense(5, kernel_initializer=initializer)])


def identity():
    return layers.Identity()


METHODS = {
    "SimCLR": lambda **k: ksm.SimCLR(encoder(), projector=head(), **k),
    "SupCon": lambda **k: ksm.SupCon(encoder(), projector=head(), **k),
    "DCL": lambda **k: ksm.DCL(encoder(), projector=head(), **k),
    "BarlowTwins": lambda **k: ksm.BarlowTwins(encoder(), projector=head(), **k),
    "VICReg": lambda **k: ksm.VICReg(encoder(), projector=head(), **k),
    "LeJEPA": lambda **k: ksm.LeJEPA(encoder(), projector=head(), **k),
    "SimSiam": lambda **k: ksm.SimSiam(encoder(), projector=head(), predictor=predictor(), **k),
    "BYOL": lambda **k: ksm.BYOL(encoder(), projector=head(), predictor=predictor(), **k),
    "MoCo": lambda **k: ksm.MoCo(encoder(), projector=head(), queue_size=16, **k),
    "MoCoV3": lambda **k: ksm.MoCoV3(encoder(), projector=head(), predictor=predictor(), **k),
    "NNCLR": lambda **k: ksm.NNCLR(
        encoder(), projector=head(), predictor=predictor(), queue_size=16, **k
    ),
    "Distillation": lambda **k: ksm.Distillation(
        encoder(), encoder(layers.Dense(7), seed=5), projector=head(7), **k
    ),
    "SimCSE": lambda **k: ksm.SimCSE(encoder(), projector=head(), **k),
}
