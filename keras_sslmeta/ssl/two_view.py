"""`TwoViewModel`: what methods that compare views of a sample share."""

import keras
import tensorflow as tf

from keras_sslmeta.layers.projection_head import ProjectionHead
from keras_sslmeta.layers.random_augmentation import RandomAugmentation
from keras_sslmeta.mechanisms import (
    arguments,
    augmented_views,
    batch_size,
    byte_images,
    cross_replica,
    encoder_shapes,
    fused_normalization,
    view_axis,
)
from keras_sslmeta.mechanisms.gradient_cache import GradientCache
from keras_sslmeta.mechanisms.multi_worker import reducible
from keras_sslmeta.mechanisms.trained_model import TrainedModel
from keras_sslmeta.ssl import two_view_inputs


class TwoViewModel(TrainedModel):
    """Parent of the methods that pretrain an encoder by comparing views of each sample.

    It makes the views, refuses what is not one, puts a projector on the encoder, takes batches larger than
    memory, saves and loads, gives the encoder's features from `predict`, and fits on any number of
    replicas and workers. A method adds what is its own:

    ```python
    class Method(TwoViewModel):
        def default_loss(self):
            return NTXent()

        def default_projector(self):
            return ProjectionHead(64)

        def call(self, inputs, training=None):      # the default: (batch, views, dim)
            return self.project_views(inputs)
    ```

    `call` gives all that the loss compares, embeddings `(batch, …, dim)` with a row a sample; what to hand to
    the compiled loss is `compute_loss`'s to say, and what moves after a step `after_step`'s.

    Data: with an `augmentation`, plain samples `(batch, …)`, labelled or not, of which `views` views are
    made anew in every step; ready-made views `(batch, views, …)` are always welcome, and without an
    `augmentation` they are what is required. A batch axis of samples is what `tf.distribute` can share out.

    **Batches larger than memory.** With a `micro_batch_size`, the model runs over the batch in parts:
    once for the embeddings, which the loss compares all at once, and once more for the gradients
    (gradient caching, Gao et al. 2021). Loss and gradients are those of the whole batch, what was drawn
    at random included, for one more forward pass. The exception is batch normalisation, which takes the
    statistics of each part, synchronised or not, and moves once a part. Replicas add up their gradients
    once a step.

    Args:
        encoder: a `keras.Model` from a sample to a feature vector, `(batch, …) → (batch, features)`.
            It is trained in place; its inputs may be a structure.
        augmentation: a Keras layer (or another callable) that draws random views, called once a
            view on the batch, or a list of them, one a view (to chain layers, use
            `keras.Sequential`). It works in evaluation too, since the loss is defined on views. A
            function must draw by TensorFlow or `keras.random`: NumPy's numbers would be drawn once,
            when the step is traced. Images of bytes (uint8) arrive as floats of the same values.
            Defaults to None: views come ready-made.
        projector: a Keras layer or model on the features, `(n, features) → (n, dim)`, which `predict` leaves
            out; `keras.layers.Identity()` for none. Defaults to None, the method's own.
        views: number of views that `augmentation` makes. Defaults to 2.
        micro_batch_size: samples that go through the model at once, a positive integer of at most the
            batch (of a replica). Views of an augmentation that is a function are made beforehand, of
            all samples at once. XLA (`jit_compile=True`) takes parts only that divide a batch of known
            size, as `drop_remainder=True` gives; by default it stays off. Defaults to None, all of them.
        **kwargs: of `keras.Model`.

    Raises:
        ValueError: if `encoder` is not a model or its output not one vector a sample, if `projector` is not a
            layer, if `views` is below two or not the number of augmentations, if `micro_batch_size` is not
            a positive integer; in `fit`, if it is more than a batch; on the first call, if plain samples
            come where views are expected.
    """

    # The fewest views of a sample that the method can use.
    least_views = 2
    # Whether it trains by Keras's losses too.
    takes_any_loss = False

    def __init__(
        self,
        encoder,
        augmentation=None,
        projector=None,
        views: int = 2,
        micro_batch_size: int | None = None,
        **kwargs,
    ):
        if "temperature" in kwargs:
            raise ValueError(
                "`temperature` belongs to the loss: `compile(loss=keras_sslmeta.losses.NTXent("
                f"temperature=…))`. Received: temperature={kwargs['temperature']!r}"
            )
        super().__init__(**kwargs)
        encoder_shapes.check(encoder)
        two_view_inputs.check_views(views, augmentation, self.least_views)
        two_view_inputs.check_layers(projector=projector)
        self.encoder = encoder
        self.augmentation = augmentation
        self.projector = self.default_projector() if projector is None else projector
        self.views = int(views)
        self.micro_batch_size = (
            None
            if micro_batch_size is None
            else arguments.count("micro_batch_size", micro_batch_size)
        )

    # ------------------------------------------------------------------ for the methods

    def default_loss(self) -> keras.losses.Loss:
        """The loss of the paper, used where `compile` is given none."""
        raise TypeError(f"{type(self).__name__} has no default loss: pass `loss` to `compile`.")

    def default_projector(self) -> keras.layers.Layer:
        """The head of the paper, used where the constructor is given none."""
        return ProjectionHead(name="projector")

    def encode_views(self, inputs) -> tf.Tensor:
        """Views, made or ready, through the encoder: `(batch, views, features)`."""
        views = self.views_of(inputs)
        return view_axis.split(self.encode(view_axis.merge(views)), view_axis.count(views))

    def project_views(self, inputs) -> tf.Tensor:
        """Views, made or ready, through encoder and projector: `(batch, views, dim)`."""
        views = self.views_of(inputs)
        projections = self.projector(self.encode(view_axis.merge(views)))
        return view_axis.split(projections, view_axis.count(views))

    def encode(self, samples) -> tf.Tensor:
        """Samples, or views without an axis of their own, through the encoder: `(n, features)`."""
        features = self.encoder(samples)
        encoder_shapes.check_features(features)
        return features

    def after_step(self, moved: tf.Tensor) -> None:
        """What follows a step of training, in the same compiled function.

        Args:
            moved: scalar boolean, whether the optimizer has moved the weights: with
                `gradient_accumulation_steps`, it does in the last of so many steps alone.
        """

    def views_of(self, inputs):
        """The views `(batch, views, …)`: `inputs` themselves, or what `augmentation` makes of them."""
        inputs = byte_images.as_the_model_takes_them(self.encoder, inputs)
        if self._are_views(inputs):
            count = view_axis.count(inputs)
            if count < self.least_views:
                raise ValueError(
                    f"{type(self).__name__} compares views of a sample and needs at least two, on "
                    f"axis 1. Received: shape={two_view_inputs.shapes_of(inputs)}"
                )
            return inputs
        if self.augmentation is None:
            raise ValueError(
                f"{type(self).__name__} without `augmentation` expects ready-made views "
                "(batch, views, …) and got plain samples: pass an augmentation, such as "
                f"`{type(self).__name__}(encoder, augmentation=SimCLRAugmentation((32, 32)))`, or "
                f"stack the views on axis 1 (`tf.stack([view_1, view_2], axis=1)`). "
                f"Received: shape={two_view_inputs.shapes_of(inputs)}"
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
        samples = encoder_shapes.sample_shapes(self.encoder)
        if samples is None:  # An encoder that has seen no data yet.
            return self.augmentation is None
        added = {
            x.shape.rank - len(shape) for _, shape, x in encoder_shapes.paired(self.encoder, inputs)
        }
        if added in ({0}, {1}):
            return added == {1}
        raise ValueError(
            f"{type(self).__name__} takes samples as the encoder does, "
            f"{two_view_inputs.listed(samples)}, or views of them, (batch, views, …): one "
            "axis more. A missing axis of channels is added by `x[..., None]`. "
            f"Received: shape={two_view_inputs.shapes_of(inputs)}"
        )

    def build_where_known(self):
        """Builds at once if the encoder is built, the last line of a method's constructor: so that
        `summary`, `BackupAndRestore` and the like need no call first."""
        if self.encoder.built and encoder_shapes.sample_shapes(self.encoder) is not None:
            views = () if self.augmentation is not None else (self.views,)
            # What `export` takes for the inputs' shapes.
            self.build(
                keras.tree.map_shape_structure(
                    lambda shape: (shape[0], *views, *shape[1:]),
                    encoder_shapes.input_structure(self.encoder),
                )
            )

    # ------------------------------------------------------------------------- for Keras

    def build(self, input_shape):
        if encoder_shapes.sample_shapes(self.encoder) is None:
            shapes = keras.tree.map_shape_structure(tuple, input_shape)
            # A symbolic call builds any encoder, subclassed ones too.
            self.encoder(self._first_samples(shapes))
        (features,) = encoder_shapes.output_shapes(self.encoder)
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
        for shape in encoder_shapes.flat_shapes(shapes):
            if len(shape) < 2 or shape[1] != self.views:
                raise ValueError(
                    f"`encoder` has seen no data yet, so views are told by their number on axis 1, "
                    f"`views={self.views}`: pass plain samples with an `augmentation`, begin the encoder "
                    f"with a keras.Input, or set `views`. Received: shape={shape}"
                )
        return keras.tree.map_shape_structure(
            lambda s: keras.KerasTensor((None, *s[2:]), dtype=floats), shapes
        )

    def build_heads(self, features: int) -> int:
        """Builds what a method puts on the `(n, features)` of the encoder; gives the projector's width."""
        return built_on(self.projector, features)

    def may_make_weights(self, layer):
        return super().may_make_weights(layer) and not isinstance(layer, RandomAugmentation)

    def call(self, inputs, training=None):
        return self.project_views(inputs)

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """As `keras.Model.compile`, with Adam and the method's own loss as defaults."""
        if isinstance(loss, str) and not self.takes_any_loss:
            raise ValueError(
                f"`loss` of {type(self).__name__} compares embeddings: leave it out, or pass one of "
                f"`keras_sslmeta.losses`. Received: loss={loss!r}"
            )
        two_view_inputs.refuse_metrics_of_labels(kwargs.get("metrics"))
        if self.micro_batch_size is not None and kwargs.get("jit_compile", "auto") == "auto":
            kwargs["jit_compile"] = False  # XLA cannot take parts that do not divide the batch.
        super().compile(optimizer, self.default_loss() if loss is None else loss, **kwargs)

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`; `sample_weight` works without labels too."""
        if isinstance(x, tf.data.Dataset):
            kwargs.setdefault("shuffle", False)  # It orders itself; Keras would warn otherwise.
        self.check_batch(batch_size.known(x, args[0] if args else kwargs.get("batch_size")))
        two_view_inputs.warn_of_value_range(x, self.augmentation)
        y = two_view_inputs.placeholder_labels(x, y, kwargs.get("sample_weight"))
        validation = kwargs.get("validation_data")
        if isinstance(validation, (list, tuple)) and len(validation) == 3:
            held, labels, weights = validation
            labels = two_view_inputs.placeholder_labels(held, labels, weights)
            kwargs["validation_data"] = (held, labels, weights)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.evaluate`: the loss on views; `sample_weight` works without labels too."""
        y = two_view_inputs.placeholder_labels(x, y, kwargs.get("sample_weight"))
        return super().evaluate(x, y, *args, **kwargs)

    def loss_of_pairs(self, pairs, sample_weight=None, factor: float = 1.0) -> tf.Tensor:
        """For `compute_loss`: the mean of the compiled loss over several `(y_true, y_pred)`, times a factor,
        and the losses of the model's layers once."""
        if not isinstance(self.loss, keras.losses.Loss):
            raise ValueError(
                f"{type(self).__name__} must be compiled with a loss of `keras_sslmeta.losses`, or another "
                f"keras.losses.Loss. Received: loss={self.loss!r}"
            )
        values = [self.loss(y_true, y_pred, sample_weight) for y_true, y_pred in pairs]
        total = tf.add_n(values) * tf.cast(factor / len(pairs), values[0].dtype)
        for more in self.losses:
            total += tf.cast(tf.reduce_sum(more), total.dtype) / cross_replica.count()
        return total

    def check_batch(self, samples: "int | None") -> None:
        """Refuses a global batch of so many samples, where the number is known, None where it is not."""
        if samples is None or self.micro_batch_size is None:
            return
        replicas = self.distribute_strategy.num_replicas_in_sync
        if self.micro_batch_size * replicas > max(samples, replicas):
            of_replicas = f" on {replicas} replicas" if replicas > 1 else ""
            raise ValueError(
                "`micro_batch_size` must be at most the batch, or a replica's share of it: make it smaller, "
                "or `batch_size` of `fit` larger. Received: "
                f"micro_batch_size={self.micro_batch_size} and batches of {samples}{of_replicas}"
            )

    def train_step(self, data):
        """As Keras's, in parts where there is a `micro_batch_size`; then `after_step`."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        two_view_inputs.refuse_a_pair_of_views(x, y)
        before = tf.convert_to_tensor(self.optimizer.iterations)
        with fused_normalization.of(self):
            if self.micro_batch_size is None:
                logs = super().train_step(data)
            else:
                logs = reducible(self._step_in_parts(x, y, sample_weight, self.micro_batch_size))
        self.after_step(tf.convert_to_tensor(self.optimizer.iterations) > before)
        return logs

    def _step_in_parts(self, x, y, sample_weight, size):
        """Keras's step by gradient caching."""
        x = keras.tree.map_structure(tf.convert_to_tensor, x)  # Run eagerly, it may be NumPy's.
        samples = tf.shape(keras.tree.flatten(x)[0])[0]
        if not self._can_be_made_again(x):
            x = self.views_of(x)
        parts = GradientCache(self, lambda x: self(x, training=True), x, size)
        if self.jit_compile and not parts.are_equal:
            raise ValueError(
                "`micro_batch_size` under `jit_compile=True` must divide batches whose size is known: use a "
                "dataset with `batch(..., drop_remainder=True)`, or leave `jit_compile` out. "
                f"Received: micro_batch_size={size} and batches of {parts.known_rows} samples"
            )
        embeddings, added = parts.forward()
        trained = parts.trained
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            loss = self._compute_loss(x, y, embeddings, sample_weight, training=True)
            added = tf.cast(added, loss.dtype) / cross_replica.count()
            self._loss_tracker.update_state(
                (loss + added) * cross_replica.count(), sample_weight=samples
            )
            scaled = self.optimizer.scale_loss(loss)
        # Weight decay and the loss's own weights, which see no part of the batch.
        cotangent, *direct = tape.gradient(scaled, [embeddings, *trained])
        of_added = tf.cast(self.optimizer.scale_loss(tf.ones([])), tf.float32)
        gradients = parts.backward(cotangent, of_added / cross_replica.count())
        gradients = [
            g if d is None else g + tf.convert_to_tensor(d)
            for g, d in zip(gradients, direct, strict=True)
        ]
        self.optimizer.apply_gradients(zip(gradients, trained, strict=True))
        return self.compute_metrics(x, y, embeddings, sample_weight=sample_weight)

    def _can_be_made_again(self, x):
        """Whether views are made within a part's pass, and once more in its second: at a part's memory."""
        x = byte_images.as_the_model_takes_them(self.encoder, x)
        return self._are_views(x) or augmented_views.can_be_drawn_again(
            self.augmentation, x, self.views
        )

    def predict_step(self, data):
        """The encoder's features of plain samples."""
        samples, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        samples = byte_images.as_the_model_takes_them(self.encoder, samples)
        if encoder_shapes.sample_shapes(self.encoder) is not None and self._are_views(samples):
            raise ValueError(
                "`predict` gives the features of plain samples: pass one view of each, `views[:, 0]`. "
                f"Received: shape={two_view_inputs.shapes_of(samples)}"
            )
        return self.encoder(samples, training=False)

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "augmentation": keras.saving.serialize_keras_object(self.augmentation),
            "projector": keras.saving.serialize_keras_object(self.projector),
            "views": self.views,
            "micro_batch_size": self.micro_batch_size,
        }


def built_on(head: keras.layers.Layer, dim: int) -> int:
    """Builds a head on vectors of so many dimensions, and gives the number of its outputs'."""
    if not head.built:
        head.build((None, dim))
    return int(head.compute_output_shape((None, dim))[-1])
