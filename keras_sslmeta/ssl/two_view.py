"""`TwoViewModel`: what methods that compare views of a sample share."""

import numbers

import keras
import numpy as np
import tensorflow as tf

from keras_sslmeta.mechanisms import augmented_views, byte_images, view_axis
from keras_sslmeta.mechanisms.custom_compile import CustomCompile
from keras_sslmeta.mechanisms.multi_worker import MultiWorkerFit
from keras_sslmeta.mechanisms.nested_config import NestedConfig
from keras_sslmeta.mechanisms.random_state import SavedRandomState


class TwoViewModel(SavedRandomState, CustomCompile, NestedConfig, MultiWorkerFit):
    """Parent of the methods that pretrain an encoder by comparing views of each sample.

    It makes the views, refuses what is not one, saves and loads, gives the encoder's features from
    `predict`, and fits on any number of replicas and workers. A method adds `default_loss` and `call`:

    ```python
    class Method(TwoViewModel):
        def default_loss(self):
            return NTXent()

        def call(self, inputs):
            return self.head(self.encode_views(inputs))     # (batch, views, dim)
    ```

    Data: with an `augmentation`, plain samples `(batch, …)`, labelled or not, of which `views` views are
    made anew in every step; ready-made views `(batch, views, …)` are always welcome, and without an
    `augmentation` they are what is required. A batch axis of samples is what `tf.distribute` can share out.

    Args:
        encoder: a `keras.Model` from a sample to a feature vector, `(batch, …) → (batch, features)`.
            It is trained in place; its inputs may be a structure.
        augmentation: a Keras layer (or another callable) that draws random views, called once a
            view on the batch, or a list of them, one a view (to chain layers, use
            `keras.Sequential`). It works in evaluation too, since the loss is defined on views. A
            function must draw by TensorFlow or `keras.random`: NumPy's numbers would be drawn once,
            when the step is traced. Images of bytes (uint8) arrive as floats of the same values.
            Defaults to None: views come ready-made.
        views: number of views that `augmentation` makes. Defaults to 2.
        **kwargs: of `keras.Model`.

    Raises:
        ValueError: if `encoder` is not a model or its output not one vector a sample, if `views` is below
            two or not the number of augmentations; on the first call, if plain samples come where
            views are expected.
    """

    def __init__(self, encoder, augmentation=None, views: int = 2, **kwargs):
        super().__init__(**kwargs)
        _check_encoder(encoder)
        _check_views(views, augmentation)
        self.encoder = encoder
        self.augmentation = augmentation
        self.views = int(views)

    # ------------------------------------------------------------------ for the methods

    def default_loss(self) -> keras.losses.Loss:
        """The loss of the paper, used where `compile` is given none."""
        raise TypeError(f"{type(self).__name__} has no default loss: pass `loss` to `compile`.")

    def encode_views(self, inputs) -> tf.Tensor:
        """Views, made or ready, through the encoder: `(batch, views, features)`."""
        views = self.views_of(inputs)
        features = self.encoder(view_axis.merge(views))
        check_features(features)
        return view_axis.split(features, view_axis.count(views))

    def views_of(self, inputs):
        """The views `(batch, views, …)`: `inputs` themselves, or what `augmentation` makes of them."""
        inputs = byte_images.as_the_model_takes_them(self.encoder, inputs)
        if self._are_views(inputs):
            count = view_axis.count(inputs)
            if count < 2:
                raise ValueError(
                    f"{type(self).__name__} compares views of a sample and needs at least two, on "
                    f"axis 1. Received: shape={_shapes(inputs)}"
                )
            return inputs
        if self.augmentation is None:
            raise ValueError(
                f"{type(self).__name__} without `augmentation` expects ready-made views "
                "(batch, views, …) and got plain samples: pass an augmentation, such as "
                f"`{type(self).__name__}(encoder, augmentation=SimCLRAugmentation((32, 32)))`, or "
                f"stack the views on axis 1 (`tf.stack([view_1, view_2], axis=1)`). "
                f"Received: shape={_shapes(inputs)}"
            )
        return augmented_views.make(inputs, self.augmentation, self.views)

    def _are_views(self, inputs):
        """Told by rank: one axis more than the encoder's samples have."""
        if any(x.shape.rank is None for x in keras.tree.flatten(inputs)):
            raise ValueError(
                f"{type(self).__name__} tells samples from views by their rank, which is unknown here. "
                "If the model has been used with inputs of another rank before, call `compile` again; "
                "in a dataset, give the tensors a shape (`tf.ensure_shape`)."
            )
        samples = _sample_shapes(self.encoder)
        if samples is None:  # An encoder that has seen no data yet.
            return self.augmentation is None
        ranks = [x.shape.rank for x in keras.tree.flatten(inputs)]
        if ranks == [len(shape) for shape in samples]:
            return False
        if ranks == [len(shape) + 1 for shape in samples]:
            return True
        raise ValueError(
            f"{type(self).__name__} takes samples as the encoder does, {_listed(samples)}, or views "
            "of them, (batch, views, …): one axis more. A missing axis of channels is added by "
            f"`x[..., None]`. Received: shape={_shapes(inputs)}"
        )

    def build_where_known(self):
        """Builds at once if the encoder is built, the last line of a method's constructor: so that
        `summary`, `BackupAndRestore` and the like need no call first."""
        if self.encoder.built and _sample_shapes(self.encoder) is not None:
            views = () if self.augmentation is not None else (self.views,)
            # What `export` takes for the inputs' shapes.
            self.build(
                keras.tree.map_shape_structure(
                    lambda shape: (shape[0], *views, *shape[1:]), _input_structure(self.encoder)
                )
            )

    # ------------------------------------------------------------------------- for Keras

    def build(self, input_shape):
        if _sample_shapes(self.encoder) is None:
            shapes = keras.tree.map_shape_structure(tuple, input_shape)
            # A symbolic call builds any encoder, subclassed ones too.
            self.encoder(self._first_samples(shapes))
        (features,) = _output_shapes(self.encoder)
        self.build_heads(features[-1])
        self.built = True

    def _first_samples(self, shapes):
        """Symbolic samples as the encoder will get them: single views of what comes with `shapes`."""
        floats = keras.config.floatx()
        if self.augmentation is not None:
            specs = keras.tree.map_shape_structure(lambda s: tf.TensorSpec(s, floats), shapes)
            make = tf.function(
                lambda x: augmented_views.make(x, self.augmentation, self.views), autograph=False
            )
            made = make.get_concrete_function(specs).structured_outputs
            shapes = keras.tree.map_structure(lambda x: tuple(x.shape), made)
        for shape in _flat_shapes(shapes):
            if len(shape) < 2 or shape[1] != self.views:
                raise ValueError(
                    f"`encoder` has seen no data yet, so views are told by their number on axis 1, "
                    f"`views={self.views}`: pass plain samples with an `augmentation`, begin the encoder "
                    f"with a keras.Input, or set `views`. Received: shape={shape}"
                )
        return keras.tree.map_shape_structure(
            lambda s: keras.KerasTensor((None, *s[2:]), dtype=floats), shapes
        )

    def build_heads(self, features: int):
        """Builds what a method puts on the `(batch, views, features)` of the encoder."""

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """As `keras.Model.compile`, with Adam and the method's own loss as defaults."""
        super().compile(optimizer, self.default_loss() if loss is None else loss, **kwargs)

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`; `sample_weight` works without labels too."""
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # It orders itself; Keras would warn otherwise.
        y = _placeholder_labels(x, y, kwargs.get("sample_weight"))
        validation = kwargs.get("validation_data")
        if isinstance(validation, (list, tuple)) and len(validation) == 3:
            held, labels, weights = validation
            labels = _placeholder_labels(held, labels, weights)
            kwargs["validation_data"] = (held, labels, weights)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`: the loss on views; `sample_weight` works without labels too."""
        y = _placeholder_labels(x, y, kwargs.get("sample_weight"))
        return super().evaluate(x, y, *args, **kwargs)

    def train_step(self, data):
        """As Keras's; a pair of views, which would pass as samples and labels, is refused."""
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        are_tensors = tf.is_tensor(x) and tf.is_tensor(y)
        if (
            are_tensors
            and (y.shape.rank or 0) > 2
            and y.shape[1:].as_list() == x.shape[1:].as_list()
        ):
            raise ValueError(
                "A dataset of (view_1, view_2) is read as samples and labels: stack the views on "
                "axis 1, `tf.stack([view_1, view_2], axis=1)`. "
                f"Received: x.shape={tuple(x.shape)}, y.shape={tuple(y.shape)}"
            )
        return super().train_step(data)

    def predict_step(self, data):
        """The encoder's features of plain samples."""
        samples, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self.encoder(
            byte_images.as_the_model_takes_them(self.encoder, samples), training=False
        )

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "augmentation": keras.saving.serialize_keras_object(self.augmentation),
            "views": self.views,
        }


def _check_encoder(encoder):
    if not isinstance(encoder, keras.Model):
        raise ValueError(
            "`encoder` must be a keras.Model from a sample to a feature vector. "
            f"Received: {encoder!r} (of type {type(encoder).__name__})"
        )
    if encoder.built and _sample_shapes(encoder) is not None:
        for shape in _output_shapes(encoder):
            _check_vector(shape)


def check_features(features):
    """Refuses features that are not one vector a sample."""
    if isinstance(features, (list, tuple, dict)):
        shapes = [tuple(x.shape) for x in keras.tree.flatten(features)]
        raise ValueError(
            "`encoder` must have one output, a feature vector for each sample. "
            f"Received: {len(shapes)} outputs, shapes={shapes}"
        )
    _check_vector(tuple(features.shape))


def _check_vector(shape):
    axes = len(shape) - 2
    if axes == 0:
        return
    remedy = (
        f"Add keras.layers.GlobalAveragePooling{axes}D() at its end."
        if 1 <= axes <= 3
        else "Let it end in one vector a sample."
    )
    raise ValueError(
        "`encoder` must give a feature vector for each sample, (batch, features). "
        f"{remedy} Received: output shape={(None, *shape[1:])}"
    )


def _placeholder_labels(x, y, sample_weight):
    """Zeros where weights come without labels: Keras would drop the weights without a word."""
    if y is not None or sample_weight is None:
        return y
    (first, *_) = keras.tree.flatten(x)
    # Data that brings its own weights, a generator for instance, is Keras's to refuse.
    return np.zeros(len(first), "float32") if hasattr(first, "__len__") else y


def _check_views(views, augmentation):
    if not isinstance(views, numbers.Integral) or isinstance(views, bool) or views < 2:
        raise ValueError(f"`views` must be an integer of at least 2. Received: views={views!r}")
    if augmentation is not None:
        augmented_views.check(augmentation, views)


def _input_structure(encoder):
    """Shapes of the encoder's inputs, as nested as they are; None before it has been built."""
    if getattr(encoder, "inputs", None):
        return encoder.input_shape
    return (encoder.get_build_config() or {}).get("input_shape")


def _sample_shapes(encoder):
    """The same, as a list."""
    shapes = _input_structure(encoder)
    return None if shapes is None else _flat_shapes(shapes)


def _output_shapes(encoder):
    """Shapes of the built encoder's outputs; more or fewer than one are refused."""
    if getattr(encoder, "inputs", None):
        shapes = [tuple(x.shape) for x in encoder.outputs]
    else:
        samples = keras.tree.map_shape_structure(
            keras.KerasTensor, encoder.get_build_config()["input_shape"]
        )
        shapes = [tuple(x.shape) for x in keras.tree.flatten(encoder(samples))]
    if len(shapes) != 1:
        raise ValueError(
            "`encoder` must have one output, a feature vector for each sample. "
            f"Received: {len(shapes)} outputs, shapes={shapes}"
        )
    return shapes


def _flat_shapes(shapes):
    if isinstance(shapes, dict):
        return [flat for shape in shapes.values() for flat in _flat_shapes(shape)]
    if all(n is None or isinstance(n, int) for n in shapes):
        return [tuple(shapes)]
    return [flat for shape in shapes for flat in _flat_shapes(shape)]


def _listed(shapes):
    return ", ".join(map(str, shapes))


def _shapes(inputs):
    return keras.tree.map_structure(lambda x: tuple(x.shape), inputs)
