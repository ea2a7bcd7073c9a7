"""`Recipe`: what one paper sets, as arguments of the constructor, of `compile` and of `fit`."""

import dataclasses
from typing import Any

import keras

from keras_sslmeta.mechanisms import arguments


@dataclasses.dataclass
class Recipe:
    """The settings of one paper for a number of samples, a batch size and a number of epochs.

    ```python
    recipe = keras_sslmeta.recipes.byol(len(images), batch_size=256, epochs=100, image_size=32)
    model = keras_sslmeta.BYOL(encoder, **recipe.model)
    model.compile(**recipe.compile)
    model.fit(images, **recipe.fit)
    ```

    Attributes:
        model: arguments of the method's constructor: augmentation, momentum.
        compile: arguments of `compile`: the optimizer. Losses are the methods' own.
        fit: arguments of `fit`: batch size and epochs.
        steps: number of steps in all, over which schedules run.

    A recipe is for one model: its optimizer keeps that model's state, and its augmentation a random one.
    """

    model: dict[str, Any]
    compile: dict[str, Any]
    fit: dict[str, Any]
    steps: int


@dataclasses.dataclass
class Run:
    """How long a run is: what a recipe makes schedules and rates from.

    Attributes:
        samples: number of training samples.
        batch_size: samples a step, over all replicas.
        epochs: passes over the samples.
    """

    samples: int
    batch_size: int
    epochs: int

    def __post_init__(self):
        for name in ("samples", "batch_size", "epochs"):
            setattr(self, name, arguments.count(name, getattr(self, name)))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, a last one of fewer samples included."""
        return -(-self.samples // self.batch_size)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def cosine(
        self,
        rate: float,
        per: int = 256,
        warmup_epochs: int = 0,
        end: float = 0.0,
        longest: float = 0.1,
    ) -> keras.optimizers.schedules.LearningRateSchedule:
        """A rate in proportion to the batch, after a linear warm-up, along half a cosine.

        Args:
            rate: for a batch of `per`.
            per: that batch. Defaults to 256.
            warmup_epochs: cut in short runs. Defaults to 0.
            end: the last rate, as a part of the largest. Defaults to 0.
            longest: largest part of all steps that warm-up may take. Defaults to a tenth.
        """
        largest = rate * self.batch_size / per
        warmup = min(warmup_epochs * self.steps_per_epoch, max(1, int(self.steps * longest)))
        if not warmup_epochs:
            return keras.optimizers.schedules.CosineDecay(largest, self.steps, alpha=end)
        return keras.optimizers.schedules.CosineDecay(
            0.0, max(1, self.steps - warmup), alpha=end, warmup_target=largest, warmup_steps=warmup
        )

    def recipe(self, optimizer: keras.optimizers.Optimizer, **model) -> Recipe:
        """The recipe of an optimizer, and the constructor's arguments."""
        fit = {"batch_size": self.batch_size, "epochs": self.epochs}
        return Recipe(model, {"optimizer": optimizer}, fit, self.steps)
