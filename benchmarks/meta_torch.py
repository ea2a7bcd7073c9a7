"""The contestant of meta.py in PyTorch: learn2learn, its networks and the loop of its examples."""

import learn2learn as l2l
import numpy as np
import torch
from meta import META_LEARNING_RATE, WARM_UP, WAYS, Setting
from worker import serve


def network_of(setting):
    if setting.is_pooled:
        network = l2l.vision.models.MiniImagenetCNN(
            WAYS, setting.filters, channels=setting.channels, embedding_size=setting.features()
        )
    else:
        network = l2l.vision.models.OmniglotCNN(WAYS, setting.filters)
    weights = setting.weights()
    parameters = dict(network.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == sum(w.size for w in weights)
    kernels = [_oriented(w, setting, (0, 1)).transpose(3, 2, 0, 1) for w in weights[:-2:4]]
    side = setting.size // 16 if setting.is_pooled else 1
    # PyTorch has channels first among the features.
    head = weights[-2].reshape(side, side, setting.filters, WAYS).transpose(3, 2, 0, 1)
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.startswith("classifier"):
                value = head.reshape(WAYS, -1) if name.endswith("weight") else weights[-1]
            else:
                # features[.1].BLOCK.conv|normalize.weight|bias
                block, layer, kind = name.split(".")[-3:]
                at = 2 * (layer == "normalize") + (kind == "bias")
                value = weights[4 * int(block) + at] if at else kernels[int(block)]
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return network


def _oriented(x, setting, axes):
    """Mirrored where strides are: PyTorch pads before the image what TensorFlow pads after it."""
    return x if setting.is_pooled else np.flip(x, axes)


def tasks_of(setting):
    """Support images and labels, query images and labels, of each task."""
    parts = setting.episodes()
    for name in ("support_x", "query_x"):
        images = _oriented(parts[name], setting, (2, 3)).transpose(0, 1, 4, 2, 3)
        parts[name] = np.ascontiguousarray(images)
    names = ("support_x", "support_y", "query_x", "query_y")
    return list(zip(*(torch.from_numpy(parts[name]) for name in names), strict=True))


def accuracy(predictions, targets):
    return (predictions.argmax(dim=1) == targets).float().mean()


def prepare(threads, setting, second_order):
    if threads:
        torch.set_num_threads(threads)
    setting = Setting(**setting)
    maml = l2l.algorithms.MAML(
        network_of(setting), lr=setting.inner_learning_rate, first_order=not second_order
    )
    optimizer = torch.optim.Adam(maml.parameters(), META_LEARNING_RATE)
    loss = torch.nn.CrossEntropyLoss()
    tasks = tasks_of(setting)

    def run():
        optimizer.zero_grad()
        total_error = total_accuracy = 0.0
        for support_x, support_y, query_x, query_y in tasks:
            learner = maml.clone()
            for _ in range(setting.inner_steps):
                learner.adapt(loss(learner(support_x), support_y))
            predictions = learner(query_x)
            error = loss(predictions, query_y)
            error.backward()
            total_error += error.item()
            total_accuracy += accuracy(predictions, query_y).item()
        for parameter in maml.parameters():
            parameter.grad.data.mul_(1.0 / len(tasks))
        optimizer.step()
        return total_error / len(tasks)

    for _ in range(WARM_UP):
        run()
    return run


if __name__ == "__main__":
    serve(prepare)
