"""How good a representation is, or a meta-learner: on nearest neighbours, few samples, few steps."""

from keras_sslmeta.evaluation import heads
from keras_sslmeta.evaluation.adaptation_curve import adaptation_curve
from keras_sslmeta.evaluation.adaptation_curve_result import AdaptationCurve
from keras_sslmeta.evaluation.few_shot import few_shot
from keras_sslmeta.evaluation.few_shot_result import FewShotResult
from keras_sslmeta.evaluation.few_shot_table import few_shot_table
from keras_sslmeta.evaluation.knn import knn_accuracy, knn_predict

__all__ = [
    "AdaptationCurve",
    "FewShotResult",
    "adaptation_curve",
    "few_shot",
    "few_shot_table",
    "heads",
    "knn_accuracy",
    "knn_predict",
]
