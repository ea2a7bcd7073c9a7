"""The PyTorch contestants of losses.py: a library's class where it is installed, else the dense formula."""

import numpy as np
import torch
from torch.nn import functional
from worker import serve

DIM = 128
TEMPERATURE = 0.1


def of_library(name):
    """lightly's, on two views, or pytorch-metric-learning's; None where neither has it or is installed."""
    try:
        if name == "SupervisedContrastive":
            from pytorch_metric_learning.losses import SupConLoss

            criterion = SupConLoss(TEMPERATURE)  # Normalises itself.
            return lambda labels, z: criterion(z.reshape(-1, DIM), labels.repeat_interleave(2))
        from lightly import loss
    except ImportError:
        return None
    criteria = {"NTXent": loss.NTXentLoss, "DecoupledContrastive": loss.DCLLoss}
    if name not in criteria:
        return None
    criterion = criteria[name](TEMPERATURE)
    return lambda labels, z: criterion(z[:, 0], z[:, 1])


def dense(name):
    def logits_of(z):
        z = functional.normalize(z, dim=-1)
        return z[:, 0] @ z[:, 1].T / TEMPERATURE

    def info_nce(labels, z):
        logits = logits_of(z)
        return functional.cross_entropy(logits, torch.arange(len(z)))

    def clip(labels, z):
        logits, own = logits_of(z), torch.arange(len(z))
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2

    def sig_lip(labels, z):
        logits = logits_of(z) - 10
        signs = 2 * torch.eye(len(z)) - 1
        return -functional.logsigmoid(signs * logits).sum() / len(z)

    def nt_xent(labels, z):
        batch = len(z)
        z = functional.normalize(z, dim=-1).transpose(0, 1).reshape(2 * batch, DIM)
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(float("-inf"))
        return functional.cross_entropy(logits, torch.arange(2 * batch).roll(batch))

    formulas = {"InfoNCE": info_nce, "CLIP": clip, "SigLIP": sig_lip, "NTXent": nt_xent}
    return formulas.get(name)


def prepare(contestant, name, batch):
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.standard_normal(size=(batch, 2, DIM), dtype="float32"))
    labels = torch.from_numpy(np.arange(batch) // 4)
    loss = of_library(name) or dense(name)
    if loss is None:
        return None

    def run():
        leaf = z.detach().requires_grad_()
        value = loss(labels, leaf)
        value.backward()
        return float(value.detach())

    return run


if __name__ == "__main__":
    serve(prepare)
