"""The networks of the self-supervised benchmarks as numbers, for whichever framework builds them.

Two encoders of 32×32 images: `resnet18`, with a 3×3 convolution of stride 1 first and no max-pooling (the
CIFAR form), and `conv4`, four 3×3 convolutions with strides 2, 2, 2, 1, which two cores can train. Heads:
`short`, 512 wide, and `long`, those of lightly's CIFAR-10 benchmark where it has the method.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Convolution:
    """Without bias, followed by batch normalisation."""

    name: str
    channels: int
    filters: int
    size: int = 3
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Block:
    """Convolutions with ReLU between and after them; a residual one adds its inputs before the last ReLU."""

    main: tuple[Convolution, ...]
    is_residual: bool = False
    shortcut: Convolution | None = None

    def convolutions(self):
        return (*self.main, *([self.shortcut] if self.shortcut else []))


def _conv4():
    widths, strides = (3, 32, 64, 128, 256), (2, 2, 2, 1)
    return [
        Block((Convolution(f"conv_{i}", widths[i], widths[i + 1], stride=strides[i]),))
        for i in range(4)
    ]


def _resnet18():
    blocks, channels = [Block((Convolution("stem", 3, 64),))], 64
    for stage, filters in enumerate((64, 128, 256, 512)):
        for i in range(2):
            name, stride = f"stage_{stage}_{i}", 2 if stage and not i else 1
            main = (
                Convolution(f"{name}_a", channels, filters, stride=stride),
                Convolution(f"{name}_b", filters, filters),
            )
            shortcut = None
            if channels != filters:
                shortcut = Convolution(f"{name}_shortcut", channels, filters, 1, stride)
            blocks.append(Block(main, True, shortcut))
            channels = filters
    return blocks


ENCODERS = {"conv4": _conv4(), "resnet18": _resnet18()}


@dataclasses.dataclass(frozen=True)
class Head:
    """Arguments of `keras_sslmeta.layers.ProjectionHead`."""

    output_dim: int
    hidden_dim: int
    hidden_layers: int = 1
    batch_normalization: bool = True
    output_normalization: bool | str = False

    def layers(self, features):
        """Inputs, outputs, normalisation and whether there is a ReLU, layer by layer."""
        widths = [features, *[self.hidden_dim] * self.hidden_layers, self.output_dim]
        inner = [self.batch_normalization] * self.hidden_layers
        norms = [*inner, self.output_normalization]
        is_hidden = [True] * self.hidden_layers + [False]
        return list(zip(widths, widths[1:], norms, is_hidden, strict=False))


def _contrastive(width):
    return Head(128, width, output_normalization=True)


# Recipe → method → its projector, and its predictor if it has one.
HEADS = {
    "short": {
        "SimCLR": (_contrastive(512),),
        "SupCon": (_contrastive(512),),
        "DCL": (_contrastive(512),),
        "MoCo": (Head(128, 512, batch_normalization=False),),
        "MoCoV3": (
            Head(256, 512, output_normalization="plain"),
            Head(256, 512, output_normalization="plain"),
        ),
        "BYOL": (Head(256, 512), Head(256, 512)),
        "SimSiam": (Head(512, 512, output_normalization="plain"), Head(512, 128)),
        "NNCLR": (Head(256, 512, output_normalization=True), Head(256, 512)),
        "BarlowTwins": (Head(512, 512),),
        "VICReg": (Head(512, 512),),
        "LeJEPA": (Head(64, 512, 2),),
    },
    "long": {
        "SimCLR": (_contrastive(512),),
        "SupCon": (_contrastive(512),),
        "DCL": (_contrastive(512),),
        "MoCo": (Head(128, 512, batch_normalization=False),),
        "MoCoV3": (
            Head(256, 2048, output_normalization="plain"),
            Head(256, 2048, output_normalization="plain"),
        ),
        "BYOL": (Head(256, 1024), Head(256, 1024)),
        "SimSiam": (Head(2048, 2048, output_normalization=True), Head(2048, 512)),
        "NNCLR": (Head(256, 2048, output_normalization=True), Head(256, 4096)),
        "BarlowTwins": (Head(2048, 2048),),
        "VICReg": (Head(2048, 2048),),
        "LeJEPA": (Head(64, 2048, 2),),
    },
}


def features_of(encoder):
    return ENCODERS[encoder][-1].main[-1].filters


def kernels(encoder, heads):
    """Kernels of the encoder, `(height, width, in, out)` by name, and of each head in order, `(in, out)`."""
    rng = np.random.default_rng(0)

    def kernel(*shape):
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        return (scale * rng.standard_normal(shape)).astype("float32")

    convolutions = {
        c.name: kernel(c.size, c.size, c.channels, c.filters)
        for block in ENCODERS[encoder]
        for c in block.convolutions()
    }
    dense, features = [], features_of(encoder)
    for head in heads:
        dense.append([kernel(inputs, outputs) for inputs, outputs, _, _ in head.layers(features)])
        features = head.output_dim
    return convolutions, dense
