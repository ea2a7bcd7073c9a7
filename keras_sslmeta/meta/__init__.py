"""Meta-learners: models that learn to learn, from episodes."""

from keras_sslmeta.meta.episodic import EpisodicModel
from keras_sslmeta.meta.maml import MAML

__all__ = ["MAML", "EpisodicModel"]
