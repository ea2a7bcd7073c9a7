"""The contestant of ssl_step.py in PyTorch: lightly's heads, losses and memory banks on the same networks."""

import copy

import numpy as np
import torch
from lightly import loss as losses
from lightly.models import utils
from lightly.models.modules import NNMemoryBankModule, heads
from ssl_networks import ENCODERS, features_of, kernels
from ssl_step import MOMENTUM, QUEUE, RATE, answering, timed_loop
from torch import nn
from torch.nn import functional
from worker import serve


class ResidualBlock(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.main = nn.Sequential(*_stacked(block.main, last_relu=False))
        self.shortcut = nn.Sequential(*_convolved(block.shortcut)) if block.shortcut else None

    def forward(self, x):
        before = x if self.shortcut is None else self.shortcut(x)
        return functional.relu(self.main(x) + before)


def _convolved(convolution):
    c = convolution
    kernel = nn.Conv2d(c.channels, c.filters, c.size, c.stride, c.size // 2, bias=False)
    kernel.name = c.name
    return [kernel, nn.BatchNorm2d(c.filters)]


def _stacked(convolutions, last_relu):
    layers = []
    for convolution in convolutions:
        layers += [*_convolved(convolution), nn.ReLU(inplace=True)]
    return layers if last_relu else layers[:-1]


def encoder_of(name):
    layers = []
    for block in ENCODERS[name]:
        layers += [ResidualBlock(block)] if block.is_residual else _stacked(block.main, True)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def head_of(head, features):
    blocks = []
    for inputs, outputs, norm, is_hidden in head.layers(features):
        # Keras's epsilon.
        norm = nn.BatchNorm1d(outputs, eps=1e-3, affine=norm != "plain") if norm else None
        blocks.append((inputs, outputs, norm, nn.ReLU() if is_hidden else None))
    return heads.ProjectionHead(blocks)


def networks_of(setting):
    """Encoder and heads with the weights that our side has."""
    encoder, modules, features = encoder_of(setting.encoder), [], features_of(setting.encoder)
    convolutions, dense = kernels(setting.encoder, setting.heads())
    for head in setting.heads():
        modules.append(head_of(head, features))
        features = head.output_dim
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                kernel = convolutions[module.name].transpose(3, 2, 0, 1)
                module.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
        for module, values in zip(modules, dense, strict=True):
            linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
            for layer, kernel in zip(linear, values, strict=True):
                layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel.T)))
                if layer.bias is not None:
                    layer.bias.zero_()
    return encoder, modules


class Networks:
    """Projections and predictions of both views, and the moving averages where the method has them.

    `merged` sends both views through at once, as our side does, so that batch normalisation is the same.
    """

    def __init__(self, setting):
        self.merged = True
        self.encoder, self.heads = networks_of(setting)
        self.targets = []
        if setting.method in ("MoCo", "MoCoV3", "BYOL"):
            self.followed = [self.encoder, self.heads[0]]
            self.targets = [copy.deepcopy(module) for module in self.followed]
            for module in self.targets:
                utils.deactivate_requires_grad(module)

    def each(self, function, pair):
        """The function of each of two batches."""
        if self.merged:
            return function(torch.cat(list(pair))).chunk(2)
        return [function(x) for x in pair]

    def projections(self, views):
        return self.each(self.project, views)

    def predictions(self, projections):
        return self.each(self.heads[1], projections)

    def parameters(self):
        return [p for module in (self.encoder, *self.heads) for p in module.parameters()]

    def project(self, x):
        return self.heads[0](self.encoder(x))

    @torch.no_grad()
    def target(self, x):
        for module in self.targets:
            x = module(x)
        return x

    def follow(self):
        for module, target in zip(getattr(self, "followed", []), self.targets, strict=True):
            utils.update_momentum(module, target, MOMENTUM)


def of_projections(make):
    """The loss of both views' projections."""

    def build(setting):
        criterion = make()
        return lambda net, views, labels: criterion(*net.projections(views))

    return build


def sup_con(setting):
    from pytorch_metric_learning.losses import SupConLoss

    criterion = SupConLoss(0.1)
    return lambda net, views, labels: criterion(
        torch.cat(list(net.projections(views))), labels.repeat(2)
    )


def le_jepa(setting):
    criterion = losses.LeJEPALoss()

    def loss(net, views, labels):
        # Without small crops: the loss asks for one at least.
        z = torch.stack(list(net.projections(views)))
        regularizer = criterion.sigreg(z)
        invariance = (z.mean(0) - z).square().mean()
        return criterion.lambda_param * regularizer + (1 - criterion.lambda_param) * invariance

    return loss


def moco(setting):
    criterion = losses.NTXentLoss(0.1, memory_bank_size=(QUEUE, setting.heads()[0].output_dim))
    criterion.memory_bank.bank = torch.from_numpy(setting.queue())
    return lambda net, views, labels: criterion(net.project(views[0]), net.target(views[1]))


def moco_v3(setting):
    temperature = 0.2

    def loss(net, views, labels):
        predictions = net.predictions(net.projections(views))
        total = 0
        for p, k in zip(predictions, reversed(net.each(net.target, views)), strict=True):
            logits = functional.normalize(p, dim=1) @ functional.normalize(k, dim=1).T
            total = total + functional.cross_entropy(logits / temperature, torch.arange(len(p)))
        return 2 * temperature * total

    return loss


def byol(setting):
    criterion = losses.NegativeCosineSimilarity()

    def loss(net, views, labels):
        predictions = net.predictions(net.projections(views))
        targets = net.each(net.target, views)
        return 4 + 2 * sum(map(criterion, predictions, reversed(targets)))

    return loss


def sim_siam(setting):
    criterion = losses.NegativeCosineSimilarity()

    def loss(net, views, labels):
        projections = net.projections(views)
        predictions = net.predictions(projections)
        targets = [z.detach() for z in reversed(projections)]
        return sum(map(criterion, predictions, targets)) / 2

    return loss


def nnclr(setting):
    criterion = losses.NTXentLoss(0.2)
    bank = NNMemoryBankModule(size=(QUEUE, setting.heads()[0].output_dim))
    bank.bank = torch.from_numpy(setting.queue())

    def loss(net, views, labels):
        projections = net.projections(views)
        predictions = net.predictions(projections)
        neighbors = [bank(z.detach(), update=i == 1) for i, z in enumerate(projections)]
        return sum(map(criterion, neighbors, reversed(predictions))) / 2

    return loss


# From a setting to the loss of a step, a function of the networks, the views and the labels.
LOSSES = {
    "SimCLR": of_projections(lambda: losses.NTXentLoss(0.2)),
    "SupCon": sup_con,
    "DCL": of_projections(lambda: losses.DCLLoss(0.2)),
    "MoCo": moco,
    "MoCoV3": moco_v3,
    "BYOL": byol,
    "SimSiam": sim_siam,
    "NNCLR": nnclr,
    "BarlowTwins": of_projections(losses.BarlowTwinsLoss),
    "VICReg": of_projections(losses.VICRegLoss),
    "LeJEPA": le_jepa,
}


def step_of(setting):
    net, loss = Networks(setting), LOSSES[setting.method](setting)
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9)
    views, labels = setting.views()
    views = np.ascontiguousarray(views.transpose(1, 0, 4, 2, 3)) / 255
    views = torch.from_numpy(views.astype("float32")).unbind()
    labels = torch.from_numpy(labels)

    def step():
        value = loss(net, views, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        net.follow()
        return value.item()

    loop = timed_loop(step, setting.steps)

    def run():
        result = loop()
        net.merged = False  # From the second run on, one view after the other, as examples do.
        return result

    return run


def transform_of(setting):
    """Two views of each image of a batch, one after another."""
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    images = [Image.fromarray(image) for image in setting.images()]

    def batch():
        return float(torch.stack([view for x in images for view in transform(x)])[0, 0, 0, 0])

    return timed_loop(batch, setting.steps)


if __name__ == "__main__":
    serve(answering({"lightly": step_of, "SimCLRTransform": transform_of}))
