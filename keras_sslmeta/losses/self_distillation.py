"""SelfDistillation, the loss of DINO (Caron et al. 2021)."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.mechanisms import arguments


@keras.saving.register_keras_serializable(package="keras_sslmeta.losses")
class SelfDistillation(BatchLoss):
    r"""Cross-entropy of a student's views with a teacher's distributions on the other views.

    With g_it the teacher's centred logits on view t of sample i and f_is the student's on view s, the
    value of sample i is the mean over the pairs of different views

    ```
    l_i = − mean_{t, s≠t} Σ_k softmax(g_it / T_t)_k · log softmax(f_is / T_s)_k
    ```

    The teacher sees the first views of the student (the two large crops, where the student sees small
    ones too). Its low temperature sharpens and its centre (`keras_sslmeta.layers.Centering`, applied to
    its logits before they come here) levels; together they keep the student from collapsing. No gradient
    flows into the teacher. Samples are not compared with each other.

    DINO warms the teacher's temperature up in its first epochs: for a schedule, divide the teacher's
    logits by it yourself and set `teacher_temperature=1.0`.

    Args:
        student_temperature: T_s, a positive number. Defaults to 0.1 (DINO).
        teacher_temperature: T_t, a positive number. Defaults to 0.04 (DINO's start).
        reduction: as in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: name of the loss.
        dtype: dtype of the result; half-precision logits are computed in float32 in any case.

    Call arguments:
        y_true: the teacher's centred logits `(batch, teacher_views, outputs)`.
        y_pred: the student's logits `(batch, student_views, outputs)`, whose first views are the
            teacher's.
        sample_weight: optional, `(batch,)`.

    Returns:
        The reduced loss; `(batch,)` with `reduction=None`.

    Raises:
        ValueError: if a temperature is not a positive number; if logits are of another rank, hold
            integers or differ in samples or outputs; if the student has fewer views than the teacher; if both
            have one view only, which leaves no pair of different views.

    Example:

    >>> import numpy as np, keras_sslmeta as ksm
    >>> teacher = np.zeros((8, 2, 16), "float32")
    >>> student = np.zeros((8, 5, 16), "float32")    # all outputs equal: log K
    >>> bool(np.isclose(ksm.losses.SelfDistillation()(teacher, student), np.log(16)))
    True

    Reference:
        Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin, "Emerging Properties in Self-Supervised
        Vision Transformers", ICCV 2021, Eq. 1 to 3 and Algorithm 1. https://arxiv.org/abs/2104.14294
    """

    def __init__(
        self,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        reduction: str | None = "sum_over_batch_size",
        name: str = "self_distillation",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.student_temperature = arguments.positive_number(
            "student_temperature", student_temperature
        )
        self.teacher_temperature = arguments.positive_number(
            "teacher_temperature", teacher_temperature
        )

    def targets(self, y_true, y_pred):
        """The teacher's logits."""
        if y_true is None:
            raise ValueError(
                "`y_true` must hold the teacher's logits, (batch, views, outputs). "
                "Received: y_true=None"
            )
        y_true = tf.convert_to_tensor(y_true)
        if not y_true.dtype.is_floating:
            raise ValueError(
                "`y_true` must hold the teacher's floating-point logits. "
                f"Received: dtype={y_true.dtype.name}"
            )
        return y_true

    def call(self, y_true, y_pred):
        _check_logits(y_true, y_pred)
        student = y_pred if y_pred.dtype == tf.float64 else tf.cast(y_pred, tf.float32)
        teacher = tf.stop_gradient(tf.cast(y_true, student.dtype))
        p = tf.nn.softmax(teacher / self.teacher_temperature)
        log_q = tf.nn.log_softmax(student / self.student_temperature)
        losses, pairs = [], 0
        for view in range(student.shape[1]):
            others = [p[:, t] for t in range(teacher.shape[1]) if t != view]
            if others:  # A single teacher's view has nothing to say to itself.
                losses.append(-tf.reduce_sum(tf.add_n(others) * log_q[:, view], axis=-1))
                pairs += len(others)
        return tf.cast(tf.add_n(losses) / pairs, y_pred.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "student_temperature": self.student_temperature,
            "teacher_temperature": self.teacher_temperature,
        }


def _check_logits(y_true, y_pred):
    shapes = [tuple(y_true.shape), tuple(y_pred.shape)]
    if any(len(shape) != 3 or None in shape[1:] for shape in shapes):
        raise ValueError(
            "`y_true` and `y_pred` must hold logits (batch, views, outputs), with a static number of "
            f"views and outputs. Received: shapes={shapes[0]}, {shapes[1]}"
        )
    (batch, teacher_views, outputs), (student_batch, student_views, student_outputs) = shapes
    if None not in (batch, student_batch) and batch != student_batch:
        raise ValueError(
            "`y_true` and `y_pred` must hold the same samples. "
            f"Received: shapes={shapes[0]}, {shapes[1]}"
        )
    if outputs != student_outputs:
        raise ValueError(
            "`y_true` and `y_pred` must have as many outputs. "
            f"Received: shapes={shapes[0]}, {shapes[1]}"
        )
    if student_views < max(teacher_views, 2):
        raise ValueError(
            "`y_pred` must hold the teacher's views and at least two in all, since each view learns "
            f"from the others. Received: shapes={shapes[0]}, {shapes[1]}"
        )
