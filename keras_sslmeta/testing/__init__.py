"""What users check their own losses and models with."""

from keras_sslmeta.testing.assert_batch_invariant import assert_batch_invariant
from keras_sslmeta.testing.configure_replicas import configure_replicas

__all__ = ["assert_batch_invariant", "configure_replicas"]
