"""Pictures of views, training and embeddings, drawn on matplotlib figures without pyplot."""

from keras_sslmeta.visualization.embedding_map import plot_embedding
from keras_sslmeta.visualization.learning_curve import plot_learning_curve
from keras_sslmeta.visualization.views import plot_views

__all__ = ["plot_embedding", "plot_learning_curve", "plot_views"]
