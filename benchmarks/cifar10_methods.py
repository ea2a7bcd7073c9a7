"""How `benchmarks/cifar10_ssl.py` and `ssl_step.py` build each method: the settings of the comparison."""

import dataclasses
from collections.abc import Callable

import keras
from ssl_networks import ENCODERS, HEADS

import keras_sslmeta as ksm


@dataclasses.dataclass
class Setting:
    """What all methods share.

    Attributes:
        recipe: "short", for two cores, or "long", that of lightly's CIFAR-10 benchmark.
        encoder: "conv4" or "resnet18".
        epochs, batch: of pretraining.
        train_size: images an epoch.
    """

    recipe: str = "short"
    encoder: str = "conv4"
    epochs: int = 12
    batch: int = 256
    train_size: int = 50_000

    def steps(self):
        """Batches in all; an epoch leaves out what does not fill one."""
        return self.epochs * (self.train_size // self.batch)


RECIPES = {
    "short": Setting(),
    "long": Setting("long", "resnet18", epochs=200, batch=128),
}


@dataclasses.dataclass
class Method:
    """A method: its class, what it is given beside the networks, its loss and its learning rate.

    Attributes:
        model: class of `keras_sslmeta`.
        arguments: of it.
        loss: from a setting to a loss; None for the method's own.
        rate: AdamW's peak at batch 256 of the short recipe.
        scales: whether the long recipe's rate, 0.06 at batch 128, grows with the batch.
    """

    model: type
    arguments: dict = dataclasses.field(default_factory=dict)
    loss: Callable = lambda setting: None
    rate: float = 2e-3
    scales: bool = True


def at(short, long):
    """A temperature of each recipe."""
    return {"short": short, "long": long}


def contrast(loss, temperatures, **arguments):
    return lambda setting: loss(temperatures[setting.recipe], **arguments)


# The temperatures of the long recipe are lightly's, where it has the method.
METHODS = {
    "SimCLR": Method(ksm.SimCLR, loss=contrast(ksm.losses.NTXent, at(0.2, 0.5))),
    "SupCon": Method(ksm.SupCon, loss=contrast(ksm.losses.SupervisedContrastive, at(0.1, 0.1))),
    "DCL": Method(ksm.DCL, loss=contrast(ksm.losses.DecoupledContrastive, at(0.2, 0.1))),
    "MoCo": Method(
        ksm.MoCo,
        {"momentum": 0.99, "queue_size": 4096},
        contrast(ksm.losses.InfoNCE, at(0.1, 0.1), in_batch_negatives=False),
    ),
    "MoCoV3": Method(ksm.MoCoV3, {"momentum": 0.99}, contrast(ksm.losses.InfoNCE, at(0.2, 0.2))),
    "BYOL": Method(ksm.BYOL, {"momentum": 0.99}),
    "SimSiam": Method(ksm.SimSiam, scales=False),
    "NNCLR": Method(ksm.NNCLR, {"queue_size": 4096}, contrast(ksm.losses.InfoNCE, at(0.2, 0.5))),
    "BarlowTwins": Method(ksm.BarlowTwins),
    "VICReg": Method(ksm.VICReg),
    "LeJEPA": Method(ksm.LeJEPA),
}


def encoder(name):
    """From pixels 0 to 255 to features."""
    x = inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(x)
    for block in ENCODERS[name]:
        before = x
        for i, convolution in enumerate(block.main):
            x = _convolved(convolution, keras.layers.ReLU()(x) if i else x)
        if block.is_residual:
            before = _convolved(block.shortcut, before) if block.shortcut else before
            x = keras.layers.Add()([x, before])
        x = keras.layers.ReLU()(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name=name)


def _convolved(convolution, x):
    """Strides count from the first pixel, as in PyTorch, where padding is explicit."""
    padding = "same"
    if convolution.stride > 1:
        padding = "valid"
        if convolution.size > 1:
            x = keras.layers.ZeroPadding2D(convolution.size // 2)(x)
    x = keras.layers.Conv2D(
        convolution.filters,
        convolution.size,
        convolution.stride,
        padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=convolution.name,
    )(x)
    return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)


def augmentation():
    """SimCLR's for CIFAR-10: jitter of half the strength, and no blur."""
    return ksm.layers.SimCLRAugmentation((32, 32), strength=0.5, blur_probability=0.0)


def build(name, setting, augmentation=None):
    """The method on a new encoder, with the heads of the recipe."""
    method = METHODS[name]
    heads = [
        ksm.layers.ProjectionHead(**dataclasses.asdict(head), name=part)
        for head, part in zip(HEADS[setting.recipe][name], ("projector", "predictor"), strict=False)
    ]
    return method.model(encoder(setting.encoder), augmentation, *heads, **method.arguments)


def optimizer(name, setting):
    """AdamW after a tenth of warm-up (short), or SGD with momentum 0.9 (long); along a cosine to 0.

    PyTorch's decay of 5e-4 goes through the momentum, which makes ten times as much of it; ours does not.
    """
    method, steps = METHODS[name], max(1, setting.steps())
    if setting.recipe == "long":
        rate = 0.06 * (setting.batch / 128 if method.scales else 1)
        cosine = keras.optimizers.schedules.CosineDecay(rate, steps)
        return ksm.optimizers.SGD(cosine, momentum=0.9, weight_decay=5e-4 / (1 - 0.9))
    warm = max(1, steps // 10)
    rate = method.rate * setting.batch / 256
    cosine = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm), warmup_target=rate, warmup_steps=warm
    )
    return ksm.optimizers.AdamW(cosine, weight_decay=1e-2, exclude=ksm.optimizers.is_bias_or_norm)


def compiled(name, setting):
    """The method on augmented images, ready to fit."""
    model = build(name, setting, augmentation())
    model.compile(optimizer(name, setting), METHODS[name].loss(setting))
    return model
