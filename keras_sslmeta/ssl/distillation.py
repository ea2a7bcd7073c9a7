"""Distillation of a frozen teacher's features into a student."""

import keras
import tensorflow as tf

from keras_sslmeta.losses.negative_cosine import NegativeCosine
from keras_sslmeta.mechanisms import byte_images, encoder_shapes, view_axis
from keras_sslmeta.ssl.two_view import TwoViewModel


@keras.saving.register_keras_serializable(package="keras_sslmeta.ssl")
class Distillation(TwoViewModel):
    """A student that learns to give a frozen teacher's features, from unlabelled samples.

    ```
    loss = mean over views v of loss(teacher(view v), projector(student(view v)))
    ```

    with the negative cosine as loss unless `compile` is given another, such as
    `keras.losses.MeanSquaredError()` for features whose lengths count. Teacher and student see the same
    views.

    **When to choose it**: to make a large pretrained encoder small, to move one into another
    architecture, or to go on from one where labels are missing. It cannot collapse, since the teacher
    stands still; it learns what the teacher knows of these samples. One step costs the student's forward
    and backward pass and the teacher's forward pass, on one view unless there are more.

    Args:
        encoder: the student, a `keras.Model`, `(batch, …) → (batch, features)`; trained in place.
        teacher: a built `keras.Model` that takes the same samples, to `(batch, dim)`. It runs in inference
            mode and is **frozen**: its `trainable` becomes False. It is saved with the model.
        augmentation: layer, callable or list of one a view, that turns plain samples into views. Defaults
            to None: samples come as they are to be shown, `(batch, …)`, or views of them, `(batch, views,
                …)`.
        projector: a Keras layer or model on the student's features, to the teacher's dimensions. Defaults to
            None: Dense to these dimensions, or nothing where they are the student's.
        views: number of views that `augmentation` makes. Defaults to 1.
        **kwargs: `micro_batch_size` of `TwoViewModel`, and those of `keras.Model`.

    Call arguments:
        inputs: samples `(batch, …)` or views `(batch, views, …)`.
        training: whether the student is in training mode.

    Returns:
        `call`: the student's projection of each view, and then the teacher's features of each, `(batch, 2
        · views, dim)`. `predict`: the student's features `(samples, features)`. `evaluate`: the loss.

    Raises:
        ValueError: as in `TwoViewModel`; if `teacher` is not a built model with one vector a sample, or
            is the student; if `projector` gives other dimensions than the teacher.

    Example:

    >>> import keras, numpy as np, keras_sslmeta as ksm
    >>> def encoder(width):
    ...     layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(width)]
    ...     return keras.Sequential(layers)
    >>> model = ksm.Distillation(encoder(8), teacher=encoder(32))
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> images = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
    >>> history = model.fit(images, batch_size=32, verbose=0)
    >>> model.predict(images, verbose=0).shape
    (64, 8)

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
        https://arxiv.org/abs/1503.02531
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015, Eq. 3
        (a regressor on the student's features). https://arxiv.org/abs/1412.6550
    """

    least_views = 1
    takes_any_loss = True

    def __init__(
        self, encoder, teacher, augmentation=None, projector=None, views: int = 1, **kwargs
    ):
        _check_teacher(teacher, encoder)
        augmentation = keras.layers.Identity(name="as_is") if augmentation is None else augmentation
        self.teacher_dim = int(encoder_shapes.output_shapes(teacher)[0][-1])
        super().__init__(encoder, augmentation, projector, views, **kwargs)
        teacher.trainable = False
        self.teacher = teacher
        self.build_where_known()

    def default_loss(self) -> keras.losses.Loss:
        """The negative cosine."""
        return NegativeCosine()

    def default_projector(self) -> keras.layers.Layer:
        """Dense to the teacher's dimensions, where the student has others."""
        shape = (
            encoder_shapes.output_shapes(self.encoder)[0] if self.encoder.built else (None, None)
        )
        if shape[-1] == self.teacher_dim:
            return keras.layers.Identity(name="projector")
        return keras.layers.Dense(self.teacher_dim, name="projector")

    def build_heads(self, features):
        dim = super().build_heads(features)
        if dim != self.teacher_dim:
            raise ValueError(
                "`projector` must give as many dimensions as `teacher`. "
                f"Received: {dim} and {self.teacher_dim} dimensions"
            )
        return dim

    def call(self, inputs, training=None):
        views = self.views_of(inputs)
        count, samples = view_axis.count(views), view_axis.merge(views)
        ours = self.projector(self.encode(samples))
        theirs = self.teacher(
            byte_images.as_the_model_takes_them(self.teacher, samples), training=False
        )
        theirs = tf.stop_gradient(tf.cast(theirs, ours.dtype))
        return tf.concat([view_axis.split(z, count) for z in (ours, theirs)], axis=1)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`, with the teacher's features as `y`."""
        ours, theirs = tf.split(y_pred, 2, axis=1)
        return super().compute_loss(x, theirs, ours, sample_weight, training)

    def get_config(self):
        teacher = keras.saving.serialize_keras_object(self.teacher)
        return {**super().get_config(), "teacher": teacher}


def _check_teacher(teacher, encoder):
    if isinstance(teacher, TwoViewModel):
        raise ValueError(
            "`teacher` must be an encoder: pass the model's own, `teacher=model.encoder`. "
            f"Received: {teacher!r}"
        )
    if not isinstance(teacher, keras.Model):
        raise ValueError(
            "`teacher` must be a keras.Model from a sample to a feature vector. "
            f"Received: {teacher!r} (of type {type(teacher).__name__})"
        )
    if teacher is encoder:
        raise ValueError("`teacher` must be another model than `encoder`. Received: one for both")
    if not teacher.built:
        raise ValueError(f"`teacher` must be built: call it once. Received: {teacher!r}")
    encoder_shapes.check(teacher, "teacher")
