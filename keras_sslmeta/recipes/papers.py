"""The training settings of the papers, one call each: optimizer, schedules, augmentation.

A learning rate is in proportion to the batch, as in the papers, and schedules run over the epochs that
are asked for; a warm-up takes at most a tenth of them (MoCo v3's: 40 of 300). The decay of SGD in the
papers goes through its momentum of 0.9; ours does not, and is ten times the number named here, which is as
strong. What a paper sets for ImageNet and a ResNet-50 is a start for other data, and no more. Settings that
belong to a method's class (temperature, queue, heads) are its defaults there.
"""

from collections.abc import Sequence

from keras_sslmeta import layers
from keras_sslmeta.optimizers import LARS, SGD, AdamW, CosineSchedule
from keras_sslmeta.recipes.recipe import Recipe, Run

Size = int | Sequence[int]


def _blur(size: Size, *probabilities: float) -> dict:
    """The blur of one view or of two; none for small images."""
    is_small = max([size] if isinstance(size, int) else size) <= 64
    values = tuple(0.0 if is_small else p for p in probabilities)
    return {"blur_probability": values[0] if len(values) == 1 else values}


def _sgd(rate, decay: float) -> SGD:
    """SGD with momentum 0.9, whose decay is as strong as `decay` is in PyTorch.

    There it goes through the momentum, which makes 1 / (1 − 0.9) times as much of it; here it does not.
    """
    return SGD(rate, momentum=0.9, weight_decay=decay / (1 - 0.9))


def sim_clr(
    samples: int,
    batch_size: int = 4096,
    epochs: int = 100,
    image_size: Size = 224,
    **augmentation,
) -> Recipe:
    """SimCLR's: LARS at 0.3 per 256 samples, decay 1e-6, 10 epochs of warm-up, cosine.

    DCL (Yeh et al.) and NNCLR (Dwibedi et al.) train as SimCLR does, as far as known; of NNCLR's queue
    and heads see the class. The decay is the paper's; the authors' code has 1e-4.

    Args:
        samples: number of training samples.
        batch_size: samples a step, over all replicas. Defaults to 4,096 (the paper).
        epochs: passes over the samples. Defaults to 100 (the paper).
        image_size: size of the views in pixels, an integer or (height, width). Defaults to 224. Views of at
            most 64 pixels are not blurred, as SimCLR has it for CIFAR-10.
        **augmentation: further arguments of the augmentation, such as `value_range` or `flip`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if a number is not a positive integer, or an argument of the augmentation is refused.

    Example:

    >>> import keras_sslmeta as ksm
    >>> recipe = ksm.recipes.sim_clr(samples=50_000, batch_size=512, epochs=100, image_size=32)
    >>> recipe.steps, type(recipe.model["augmentation"]).__name__
    (9800, 'SimCLRAugmentation')

    Reference:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
        Sec. 2.2, 2.3 and App. B.9. https://arxiv.org/abs/2002.05709
    """
    run = Run(samples, batch_size, epochs)
    blur = _blur(image_size, 0.5)
    return run.recipe(
        LARS(run.cosine(0.3, warmup_epochs=10), weight_decay=1e-6),
        augmentation=layers.SimCLRAugmentation(image_size, **(blur | augmentation)),
    )


def sup_con(
    samples: int,
    batch_size: int = 1024,
    epochs: int = 1000,
    image_size: Size = 224,
    **augmentation,
) -> Recipe:
    """SupCon's for CIFAR: SGD at 0.5 per 1,024 samples, decay 1e-4, 10 epochs of warm-up, cosine.

    From 0 and to 0, where the authors' code begins the warm-up at 0.01 and ends at a thousandth. It blurs
    nothing; larger views are blurred here as in SimCLR.

    Args:
        samples: number of training samples.
        batch_size: samples a step, over all replicas. Defaults to 1,024 (the authors' code).
        epochs: passes over the samples. Defaults to 1,000 (the authors' code).
        image_size: size of the views in pixels, an integer or (height, width). Defaults to 224. Views of at
            most 64 pixels are not blurred, as SimCLR has it for CIFAR-10.
        **augmentation: further arguments of the augmentation, such as `value_range` or `flip`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if a number is not a positive integer, or an argument of the augmentation is refused.

    Reference:
        Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, and the authors' code.
        https://arxiv.org/abs/2004.11362
    """
    run = Run(samples, batch_size, epochs)
    blur = _blur(image_size, 0.5)
    settings = {"crop_scale": (0.2, 1.0), "strength": 0.5} | blur | augmentation
    optimizer = _sgd(run.cosine(0.5, 1024, warmup_epochs=10), 1e-4)
    return run.recipe(optimizer, augmentation=layers.SimCLRAugmentation(image_size, **settings))


def moco(
    samples: int,
    batch_size: int = 256,
    epochs: int = 200,
    image_size: Size = 224,
    **augmentation,
) -> Recipe:
    """MoCo v2's: SGD at 0.03 per 256 samples, momentum 0.9, decay 1e-4, cosine.

    Args:
        samples: number of training samples.
        batch_size: samples a step, over all replicas. Defaults to 256 (the paper).
        epochs: passes over the samples. Defaults to 200 (the paper).
        image_size: size of the views in pixels, an integer or (height, width). Defaults to 224. Views of at
            most 64 pixels are not blurred, as SimCLR has it for CIFAR-10.
        **augmentation: further arguments of the augmentation, such as `value_range` or `flip`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if a number is not a positive integer, or an argument of the augmentation is refused.

    Reference:
        Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020, and the
        authors' code. https://arxiv.org/abs/2003.04297
    """
    run = Run(samples, batch_size, epochs)
    blur = _blur(image_size, 0.5)
    return run.recipe(
        _sgd(run.cosine(0.03), 1e-4),
        augmentation=layers.MoCoV2Augmentation(image_size, **(blur | augmentation)),
        momentum=0.999,
    )


def moco_v3(
    samples: int,
    batch_size: int = 4096,
    epochs: int = 300,
    image_size: Size = 224,
    **augmentation,
) -> Recipe:
    """MoCo v3's for transformers: AdamW at 1.5e-4 per 256, decay 0.1, 40 epochs of warm-up, cosine.

    The momentum goes from 0.99 to 1. These are the authors' code's; the paper searched the rate and decay of
    each network. (For a ResNet-50 the paper has LARS at 0.3, decay 1.5e-6, a momentum from 0.996 and
    temperature 1; the code 1e-6 and 0.99 for 300 epochs, and crops from 0.2.)

    Args:
        samples: number of training samples.
        batch_size: samples a step, over all replicas. Defaults to 4,096 (the paper).
        epochs: passes over the samples. Defaults to 300 (the paper).
        image_size: size of the views in pixels, an integer or (height, width). Defaults to 224. Views of at
            most 64 pixels are not blurred, as SimCLR has it for CIFAR-10.
        **augmentation: further arguments of the augmentation, such as `value_range` or `flip`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if a number is not a positive integer, or an argument of the augmentation is refused.

    Reference:
        Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021,
        Sec. 5 and App. A, and the authors' code. https://arxiv.org/abs/2104.02057
    """
    run = Run(samples, batch_size, epochs)
    settings = {"crop_scale": (0.08, 1.0)} | _blur(image_size, 1.0, 0.1) | augmentation
    return run.recipe(
        AdamW(run.cosine(1.5e-4, warmup_epochs=40, longest=40 / 300), weight_decay=0.1),
        augmentation=layers.BYOLAugmentation.pair(image_size, **settings),
        momentum=CosineSchedule(0.99, 1.0, run.steps),
    )


def byol(
    samples: int,
    batch_size: int = 4096,
    epochs: int = 1000,
    image_size: Size = 224,
    **augmentation,
) -> Recipe:
    """BYOL's: LARS, 10 epochs of warm-up, cosine; rate, decay and momentum by the number of epochs.

    As the authors' code has it: 0.2 per 256 samples, decay 1.5e-6 and a momentum from 0.996 for runs of
    1,000 epochs; 0.3, 1e-6 and 0.99 for 300; 0.45, 1e-6 and 0.99 for 100; 0.45, 1e-6 and 0.97 below. The
    momentum goes to 1. (For batches of 512 the paper has 0.4 and a momentum from 0.9995, App. G.)

    Args:
        samples: number of training samples.
        batch_size: samples a step, over all replicas. Defaults to 4,096 (the paper).
        epochs: passes over the samples. Defaults to 1,000 (the paper).
        image_size: size of the views in pixels, an integer or (height, width). Defaults to 224. Views of at
            most 64 pixels are not blurred, as SimCLR has it for CIFAR-10.
        **augmentation: further arguments of the augmentation, such as `value_range` or `flip`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if a number is not a positive integer, or an argument of the augmentation is refused.

    Reference:
        Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, Sec. 3.3, App. B and J, and the authors'
        code. https://arxiv.org/abs/2006.07733
    """
    run = Run(samples, batch_size, epochs)
    rate, decay, momentum = 0.45, 1e-6, 0.97
    if epochs >= 1000:
        rate, decay, momentum = 0.2, 1.5e-6, 0.996
    elif epochs >= 300:
        rate, decay, momentum = 0.3, 1e-6, 0.99
    elif epochs >= 100:
        rate, decay, momentum = 0.45, 1e-6, 0.99
    return run.recipe(
        LARS(run.cosine(rate, warmup_epochs=10), weight_decay=decay),
        augmentation=layers.BYOLAugmentation.pair(
            image_size, **(_blur(image_size, 1.0, 0.1) | augmentation)
        ),
        momentum=CosineSchedule(momentum, 1.0, run.steps),
    )


def sim_siam(
    samples: int,
    batch_size: int = 512,
    epochs: int = 100,
    image_size: Size = 224,
    **augmentation,
) -> Recipe:
    """SimSiam's: SGD at 0.05 per 256 samples, momentum 0.9, decay 1e-4, cosine.

    The paper keeps the predictor's rate constant from Sec. 4.3 on. One optimizer has one schedule here, so it
    falls too: 67.7 percent in the paper, against 68.1 with a constant rate (Tab. 1).

    Args:
        samples: number of training samples.
        batch_size: samples a step, over all replicas. Defaults to 512 (the paper).
        epochs: passes over the samples. Defaults to 100 (the paper).
        image_size: size of the views in pixels, an integer or (height, width). Defaults to 224. Views of at
            most 64 pixels are not blurred, as SimCLR has it for CIFAR-10.
        **augmentation: further arguments of the augmentation, such as `value_range` or `flip`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if a number is not a positive integer, or an argument of the augmentation is refused.

    Reference:
        Chen, He, "Exploring Simple Siamese Representation Learning", CVPR 2021,
        Sec. 3, 4.2 and App. A. https://arxiv.org/abs/2011.10566
    """
    run = Run(samples, batch_size, epochs)
    blur = _blur(image_size, 0.5)
    return run.recipe(
        _sgd(run.cosine(0.05), 1e-4),
        augmentation=layers.MoCoV2Augmentation(image_size, **(blur | augmentation)),
    )


def barlow_twins(
    samples: int,
    batch_size: int = 2048,
    epochs: int = 1000,
    image_size: Size = 224,
    **augmentation,
) -> Recipe:
    """Barlow Twins': LARS at 0.2 per 256 samples, decay 1e-6, 10 epochs of warm-up, cosine to a thousandth.

    The decay is that of the authors' code; the paper has 1.5e-6. In both, biases and batch normalisation have
    a rate of 0.0048 instead. One optimizer has one rate here: theirs is that of the weights, without LARS's
    ratio.

    Args:
        samples: number of training samples.
        batch_size: samples a step, over all replicas. Defaults to 2,048 (the paper).
        epochs: passes over the samples. Defaults to 1,000 (the paper).
        image_size: size of the views in pixels, an integer or (height, width). Defaults to 224. Views of at
            most 64 pixels are not blurred, as SimCLR has it for CIFAR-10.
        **augmentation: further arguments of the augmentation, such as `value_range` or `flip`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if a number is not a positive integer, or an argument of the augmentation is refused.

    Reference:
        Zbontar et al., "Barlow Twins", ICML 2021, Sec. 2.2, and the authors' code.
        https://arxiv.org/abs/2103.03230
    """
    run = Run(samples, batch_size, epochs)
    return run.recipe(
        LARS(run.cosine(0.2, warmup_epochs=10, end=1e-3), weight_decay=1e-6),
        augmentation=layers.BYOLAugmentation.pair(
            image_size, **(_blur(image_size, 1.0, 0.1) | augmentation)
        ),
    )


def vic_reg(
    samples: int,
    batch_size: int = 2048,
    epochs: int = 1000,
    image_size: Size = 224,
    **augmentation,
) -> Recipe:
    """VICReg's: LARS at 0.2 per 256 samples, decay 1e-6, 10 epochs of warm-up, cosine to a thousandth.

    A thousandth is the authors' code's; the paper ends at 0.002.

    Args:
        samples: number of training samples.
        batch_size: samples a step, over all replicas. Defaults to 2,048 (the paper).
        epochs: passes over the samples. Defaults to 1,000 (the paper).
        image_size: size of the views in pixels, an integer or (height, width). Defaults to 224. Views of at
            most 64 pixels are not blurred, as SimCLR has it for CIFAR-10.
        **augmentation: further arguments of the augmentation, such as `value_range` or `flip`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if a number is not a positive integer, or an argument of the augmentation is refused.

    Reference:
        Bardes, Ponce, LeCun, "VICReg", ICLR 2022, Sec. 4.2 and App. C.1 (whose augmentation is another
        than that of the authors' code: see `VICRegAugmentation`), and the authors' code.
        https://arxiv.org/abs/2105.04906
    """
    run = Run(samples, batch_size, epochs)
    blur = _blur(image_size, 0.5)
    return run.recipe(
        LARS(run.cosine(0.2, warmup_epochs=10, end=1e-3), weight_decay=1e-6),
        augmentation=layers.VICRegAugmentation(image_size, **(blur | augmentation)),
    )


def small_images(
    samples: int,
    batch_size: int = 128,
    epochs: int = 200,
    image_size: Size = 32,
    **augmentation,
) -> Recipe:
    """A ResNet-18 on images as small as CIFAR's, for any method of two views: lightly's benchmark.

    SGD at 0.06 per 128 samples, momentum 0.9, decay 5e-4, cosine; crops, flips, colours and grey, no
    blur: its augmentation for SimCLR, MoCo, NNCLR and DCL (BYOL and Barlow Twins have BYOL's pair without
    blur there, SimSiam one of its own). There SimCLR has a temperature of 0.5, MoCo one of 0.1, BYOL and
    MoCo a constant momentum of 0.99.

    Args:
        samples: number of training samples.
        batch_size: samples a step, over all replicas. Defaults to 128 (theirs).
        epochs: passes over the samples. Defaults to 200 (theirs).
        image_size: size of the views in pixels, an integer or (height, width). Defaults to 32.
        **augmentation: further arguments of the augmentation, such as `value_range` or `flip`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: if a number is not a positive integer, or an argument of the augmentation is refused.

    Reference:
        lightly, "Benchmarks", CIFAR-10. https://docs.lightly.ai/self-supervised-learning/getting_started/benchmarks.html
    """
    run = Run(samples, batch_size, epochs)
    settings = {"strength": 0.5, "blur_probability": 0.0} | augmentation
    optimizer = _sgd(run.cosine(0.06, 128), 5e-4)
    return run.recipe(optimizer, augmentation=layers.SimCLRAugmentation(image_size, **settings))
