"""Pictures of views, training, adaptation and embeddings, drawn on matplotlib figures without pyplot."""

from keras_sslmeta.visualization.adaptation_curve import plot_adaptation_curve
from keras_sslmeta.visualization.adapted_functions import plot_adapted_functions
from keras_sslmeta.visualization.embedding_map import plot_embedding
from keras_sslmeta.visualization.few_shot_table import plot_few_shot
from keras_sslmeta.visualization.learning_curve import plot_learning_curve
from keras_sslmeta.visualization.representation_health import plot_spectrum
from keras_sslmeta.visualization.views import plot_views

__all__ = [
    "plot_adaptation_curve",
    "plot_adapted_functions",
    "plot_embedding",
    "plot_few_shot",
    "plot_learning_curve",
    "plot_spectrum",
    "plot_views",
]
