"""How good a representation is, or a meta-learner: by probes, spread, few samples, few steps."""

from keras_sslmeta.evaluation import heads
from keras_sslmeta.evaluation.adaptation_curve import adaptation_curve
from keras_sslmeta.evaluation.adaptation_curve_result import AdaptationCurve
from keras_sslmeta.evaluation.few_shot import few_shot
from keras_sslmeta.evaluation.few_shot_result import FewShotResult
from keras_sslmeta.evaluation.few_shot_table import few_shot_table
from keras_sslmeta.evaluation.knn import knn_accuracy, knn_predict
from keras_sslmeta.evaluation.linear_probe import linear_probe
from keras_sslmeta.evaluation.linear_probe_result import LinearProbeResult
from keras_sslmeta.evaluation.representation_health import representation_health
from keras_sslmeta.evaluation.representation_health_result import RepresentationHealthResult

__all__ = [
    "AdaptationCurve",
    "FewShotResult",
    "LinearProbeResult",
    "RepresentationHealthResult",
    "adaptation_curve",
    "few_shot",
    "few_shot_table",
    "heads",
    "knn_accuracy",
    "knn_predict",
    "linear_probe",
    "representation_health",
]
