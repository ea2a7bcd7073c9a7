"""How good a representation is: nearest neighbours, and classes told apart from a few samples."""

from keras_sslmeta.evaluation.few_shot import few_shot
from keras_sslmeta.evaluation.few_shot_result import FewShotResult
from keras_sslmeta.evaluation.knn import knn_accuracy, knn_predict

__all__ = ["FewShotResult", "few_shot", "knn_accuracy", "knn_predict"]
