"""Whether the representation spreads or collapses, after every epoch."""

import math
import warnings
from typing import Any

import keras
import numpy as np

from keras_sslmeta.callbacks.encoder_probe import EncoderProbe, check_name
from keras_sslmeta.callbacks.repeated_views import RepeatedViews
from keras_sslmeta.evaluation.features import encode
from keras_sslmeta.evaluation.representation_health import representation_health
from keras_sslmeta.evaluation.representation_health_result import RepresentationHealthResult
from keras_sslmeta.mechanisms import arguments, augmented_views, encoder_shapes, sample_nest


class RepresentationHealth(EncoderProbe):
    """Measures, without labels, how the representation spreads, and warns when it collapses.

    At the end of an epoch it encodes views of samples of its own and writes `rankme`, `lidar`,
    `alignment`, `uniformity` and `feature_std` of `evaluation.representation_health` into the epoch's
    logs, where `History`, `CSVLogger`, `TensorBoard` and others find them; put it before callbacks
    that read them. Where the model has a projector, `projection_rankme` and `projection_std` tell of
    its output, which the loss compares and which collapses first: an encoder with batch normalisation
    may look well long after. Without views of the samples, `lidar` and `alignment` are left out.

    The alarm is one warning a kind and `fit`, for encoder and projections alike, of what was measured
    and what to try:

    - complete collapse, all features nearly equal: `feature_std` below `least_std`, or below
      `least_share` times the largest that was seen, from before the first step on;
    - dimensional collapse, few directions left: `rankme − 1` below `least_share` times its largest;
    - features that are not finite.

    The views are the same at every measurement, so that a change is the encoder's. The model's own
    augmentation draws them, without its random state moving on: the training is the same to the bit
    with the probe and without; under XLA, but for what `tf.random` draws, whose state nothing there can set
    back. A measurement costs the encoding of `n · views` samples and, on the CPU,
    eigenvalues of matrices of `dim × dim`, which count from a thousand dimensions on. Bound it by
    `every` and by the samples that you pass; RankMe and LiDAR reach their whole range where these are
    several times as many as the dimensions.

    Args:
        samples: `(n, …)` as the encoder takes them, some hundred, for encoders of several inputs a
            dictionary or tuple of such arrays; or ready-made views of them, `(n, views, …)`.
        augmentation: what makes the views, as our models take it. Default: `model.augmentation`; where
            there is none, the samples are measured as they are.
        views: views a sample. Defaults to 4; LiDAR's authors take 50, of a thousand samples.
        every: epochs from one measurement to the next. Defaults to 1.
        encoder: a `keras.Model` that shares its layers with the model in training (or another
            callable from samples to features). Default: `model.encoder` where the model has one,
            as ours have, else the model itself.
        projector: a layer, model or function of the features, for the projections. Default:
            `model.projector` where the model has one; False for none.
        least_std: of the alarm. Defaults to 0.01: an untrained encoder thirty layers deep has 0.05, a
            healthy SimSiam near 1.
        least_share: of the alarm. Defaults to 0.1. Training that tells few classes apart leaves few
            directions by right; lower it there.
        alarm: whether there is one. Defaults to True. It costs one more measurement, before the first
            step.
        batch_size: samples encoded at a time. Defaults to 256.
        name: what to put in front of the keys, for a second probe of other samples or another encoder:
            `f"{name}_rankme"`, and so on. Defaults to None, for nothing.

    Raises:
        ValueError: if an argument is out of range or (when `fit` starts) the encoder takes inputs
            of another shape.

    Example:
    >>> import keras, keras_sslmeta as ksm
    >>> x = np.random.default_rng(0).uniform(size=(64, 8, 8, 1)).astype("float32")
    >>> encoder = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(16)])
    >>> model = ksm.SimCLR(encoder, augmentation=keras.layers.RandomTranslation(0.2, 0.2))
    >>> model.compile(keras.optimizers.Adam(1e-3))
    >>> history = model.fit(x, verbose=0, callbacks=[RepresentationHealth(x)])
    >>> list(history.history)[1:6]
    ['rankme', 'lidar', 'alignment', 'uniformity', 'feature_std']

    Reference:
        - Garrido et al. 2023, RankMe. https://arxiv.org/abs/2210.02885
        - Thilak et al. 2024, LiDAR. https://arxiv.org/abs/2312.04000
        - Jing et al. 2022, Understanding Dimensional Collapse in Contrastive Self-supervised Learning.
          https://arxiv.org/abs/2110.09348
    """

    def __init__(
        self,
        samples: Any,
        augmentation: Any = None,
        views: int = 4,
        every: int = 1,
        encoder: Any = None,
        projector: Any = None,
        least_std: float = 0.01,
        least_share: float = 0.1,
        alarm: bool = True,
        batch_size: int = 256,
        name: str | None = None,
    ):
        x = sample_nest.as_arrays(samples)
        if sample_nest.length(x) < 2:
            raise ValueError(
                "`samples` must be samples (n, …), two at least, or a nest of such arrays. "
                f"Received: shapes {sample_nest.described(x)}"
            )
        if augmentation is not None:
            augmented_views.check(augmentation, views)
        if projector not in (None, False) and not callable(projector):
            raise ValueError(
                "`projector` must be a layer, a model or another callable, or False for none. "
                f"Received: {projector!r}"
            )
        super().__init__({"samples": x}, [], every, encoder, batch_size)
        self.augmentation = augmentation
        self.views = arguments.count("views", views)
        self.projector = projector
        self.least_std = arguments.number_from_zero("least_std", least_std)
        self.least_share = arguments.number_from_zero("least_share", least_share)
        self.alarm = alarm
        self.prefix = "" if name is None else f"{check_name(name)}_"

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        source, self._repeated = self._augmentation(), None
        x = self.samples["samples"]
        if source is not None and not self._are_views(x):
            augmented_views.check(source, self.views)
            self._repeated = RepeatedViews(x, source, self.views, self._encoder())
        keys = ["rankme", "lidar", "alignment", "uniformity", "feature_std"]
        if self._count() < 2:
            keys = ["rankme", "uniformity", "feature_std"]
        if self._projector() is not None:
            keys += ["projection_rankme", "projection_std"]
        self.keys = [self.prefix + key for key in keys]
        self._said: set[str] = set()
        self._largest: dict[str, tuple[float, float]] = {}  # RankMe and feature_std so far.
        if self.alarm:
            self._watch(self._found(), "before training")

    def on_epoch_end(self, epoch, logs=None):
        self._epoch = epoch + 1
        super().on_epoch_end(epoch, logs)

    def measure(self) -> RepresentationHealthResult:
        """The health of the encoder's features as they are now."""
        return representation_health(self._features())

    def _values(self):
        found = self._found()
        if self.alarm:
            self._watch(found, f"after epoch {self._epoch}")
        health = found["features"]
        values = [health.rankme, health.uniformity, health.feature_std]
        if self._count() > 1:
            values[1:1] = [health.lidar, health.alignment]
        if "projections" in found:
            values += [found["projections"].rankme, found["projections"].feature_std]
        return values

    def _found(self) -> dict[str, RepresentationHealthResult]:
        features = self._features()
        found = {"features": representation_health(features)}
        projector = self._projector()
        if projector is not None:
            rows = features.reshape(-1, features.shape[-1])
            projections = encode(projector, rows, self.batch_size)
            found["projections"] = representation_health(
                projections.reshape(*features.shape[:2], -1)
            )
        return found

    def _features(self) -> np.ndarray:
        """`(n, views, dim)`."""
        x = self.samples["samples"]
        if self._repeated is not None:
            batches = self._repeated(self.batch_size)
        elif self._are_views(x):
            batches = iter([keras.tree.map_structure(lambda v: v.reshape(-1, *v.shape[2:]), x)])
        else:
            batches = iter([x])
        features = [encode(self._encoder(), batch, self.batch_size) for batch in batches]
        return np.concatenate(features).reshape(sample_nest.count(x), self._count(), -1)

    def _count(self) -> int:
        if self._repeated is not None:
            return self.views
        x = self.samples["samples"]
        return encoder_shapes.paired(self._encoder(), x)[0][2].shape[1] if self._are_views(x) else 1

    def _are_views(self, x):
        """Told by rank: one axis more than the encoder's samples have."""
        encoder = self._encoder()
        is_known = isinstance(encoder, keras.Model) and encoder.built
        inputs = encoder_shapes.paired(encoder, x) if is_known else []
        if not inputs or any(len(wanted) + 1 != held.ndim for _, wanted, held in inputs):
            return False
        counts = {held.shape[1] for _, _, held in inputs}
        if len(counts) > 1:
            raise ValueError(
                "`samples` must hold as many views of each input, on axis 1. "
                f"Received: shapes {sample_nest.described(x)}"
            )
        return True

    def _augmentation(self):
        if self.augmentation is not None:
            return self.augmentation
        return getattr(self.model, "augmentation", None)

    def _projector(self):
        if self.projector is not None:
            return self.projector or None
        # An encoder of the user's own need not be what the model's projector takes.
        projector = None if self.encoder is not None else getattr(self.model, "projector", None)
        return projector if callable(projector) else None

    def _watch(self, found: dict[str, RepresentationHealthResult], when: str) -> None:
        for part, health in found.items():
            rank, std = self._largest.get(part, (0.0, 0.0))
            # In this order, a NaN leaves what was.
            rank, std = max(rank, health.rankme), max(std, health.feature_std)
            self._largest[part] = rank, std
            kind = self._kind(health, rank, std)
            if kind is None or kind in self._said:
                continue
            self._said.add(kind)
            warnings.warn(
                f"{kind} of the {part} {when}: {_SIGNS[kind]}. Measured: feature_std "
                f"{health.feature_std:.2g} (0 where all are equal, 1 where spread evenly; the largest "
                f"so far {std:.2g}), RankMe {health.rankme:.3g} of {health.singular_values.size} "
                f"(the largest so far {rank:.3g}). Try: {'; '.join(_remedies(self.model, kind))}.",
                stacklevel=2,
            )

    def _kind(self, health: RepresentationHealthResult, rank: float, std: float) -> str | None:
        if math.isnan(health.rankme):
            return "Divergence"
        if health.feature_std < max(self.least_std, self.least_share * std):
            return "Complete collapse"
        if health.rankme - 1 < self.least_share * (rank - 1):
            return "Dimensional collapse"
        return None


_SIGNS = {
    "Divergence": "some are not finite",
    "Complete collapse": "those of different samples are nearly equal",
    "Dimensional collapse": "few directions are left of those that there were",
}


def _remedies(model: Any, kind: str) -> list[str]:
    """What to try, by what model and loss have."""
    loss = getattr(model, "loss", None)
    remedies = ["a lower learning rate, or a warm-up"]
    if kind == "Divergence":
        return remedies + ["gradient clipping (`clipnorm` of the optimizer)", "float32"]
    if hasattr(model, "predictor"):
        remedies.append("a stop-gradient on the targets, and a larger rate of the predictor alone")
    if hasattr(model, "momentum"):
        remedies.append("a momentum of the target nearer to 1")
    temperatures = [name for name in dir(loss) if name.endswith("temperature")]
    if temperatures:
        remedies.append(f"another {' and '.join(f'`{name}`' for name in temperatures)} of the loss")
    weights = [name for name in dir(loss) if name in _SPREADING]
    if weights:
        remedies.append(f"a larger {' and '.join(f'`{name}`' for name in weights)} of the loss")
    if not (hasattr(model, "predictor") or hasattr(model, "momentum") or temperatures or weights):
        remedies.append(
            "what keeps samples apart, if the loss only pulls views together: negatives, a variance "
            "or decorrelation term, or a predictor with a stop-gradient or a momentum target"
        )
    else:
        remedies.append("a larger batch")
    if kind == "Dimensional collapse":
        remedies.append("a weaker augmentation, which hides less of the samples")
        if not hasattr(model, "projector"):
            remedies.append("a projector between encoder and loss")
    else:
        remedies.append("batch normalisation in the projector")
    return remedies


# Names of the weights that losses give the terms which spread features.
_SPREADING = (
    "variance_weight",
    "covariance_weight",
    "uniformity_weight",
    "redundancy_weight",
    "weight",
)
