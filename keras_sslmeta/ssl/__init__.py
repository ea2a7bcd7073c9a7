"""Self-supervised pretraining, each method a `keras.Model`."""

from keras_sslmeta.ssl.sim_clr import SimCLR
from keras_sslmeta.ssl.two_view import TwoViewModel

__all__ = ["SimCLR", "TwoViewModel"]
