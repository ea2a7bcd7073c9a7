"""Self-supervised and contrastive losses, each a `keras.losses.Loss`."""

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.losses.nt_xent import NTXent

__all__ = ["BatchLoss", "NTXent"]
