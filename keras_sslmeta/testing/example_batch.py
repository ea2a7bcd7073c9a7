"""A batch on which a loss can be run, where the caller gives none."""

from typing import Any

import keras
import numpy as np

_VIEWS, _DIM, _MOST_CLASSES = 2, 8, 4


def make(
    loss, y_true, y_pred, sample_weight, samples: int, dtype: str, seed: int
) -> dict[str, Any]:
    """The batch: `y_pred`, and `y_true` and `sample_weight` where there are any.

    What is not given is drawn: embeddings `(batch, 2, 8)` or `(batch, 8)`, and with them as `y_true` None,
    labels of which each occurs several times, or targets of the embeddings' shape, whichever the loss takes.

    Raises:
        ValueError: if the loss takes none of them, or gives NaN or infinity.
    """
    rng = np.random.default_rng(seed)
    weights = _weights(sample_weight, samples, rng)
    refusals = []
    for target, prediction in _candidates(y_true, y_pred, samples, rng):
        batch = {"y_pred": prediction}
        batch |= {} if target is None else {"y_true": target}
        batch |= {} if weights is None else {"sample_weight": weights}
        batch = keras.tree.map_structure(lambda x: _as_array(x, dtype), batch)
        try:
            value = np.asarray(
                loss(batch.get("y_true"), batch["y_pred"], sample_weight=batch.get("sample_weight"))
            )
        except Exception as error:
            refusals.append(f"{_described(batch)}: {type(error).__name__}: {_first_line(error)}")
            continue
        if np.isfinite(value.astype("float64")).all():
            return batch
        refusals.append(f"{_described(batch)}: the loss is {value}")
    raise ValueError(
        f"{getattr(loss, 'name', loss)} could not be run on one device: pass `y_true=` and `y_pred=` as "
        "it takes them.\n  " + "\n  ".join(refusals)
    )


def _candidates(y_true, y_pred, samples, rng):
    labels = np.arange(samples) % min(_MOST_CLASSES, max(2, samples // 3))

    def draw(*shape):
        return rng.normal(size=(samples, *shape))

    if y_pred is not None:
        shape = np.shape(keras.tree.flatten(y_pred)[0])[1:]
        targets = [None, labels, draw(*shape)] if y_true is None else [y_true]
        return [(target, y_pred) for target in targets]
    # Not the number of samples: labels would pass as targets, by broadcasting.
    dim = _DIM if samples != _DIM else 2 * _DIM
    views, single = (_VIEWS, dim), (dim,)
    if y_true is not None:
        return [(y_true, draw(*views)), (y_true, draw(*single))]
    return [
        (None, draw(*views)),
        (labels, draw(*views)),
        (labels % 2, draw(*views)),  # Whether a pair is the same.
        (draw(*views), draw(*views)),
        (labels, draw(*single)),
        (draw(*single), draw(*single)),
    ]


def _weights(sample_weight, samples, rng):
    if sample_weight is None or sample_weight is False:
        return None
    if sample_weight is True or (isinstance(sample_weight, str) and sample_weight == "random"):
        return rng.uniform(0.2, 2.0, size=samples)
    return sample_weight


def _as_array(x, dtype):
    x = np.asarray(x)
    is_float = (
        keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))
        if (x.dtype.kind not in "OSU")
        else False
    )
    if not is_float:
        return x
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(x, dtype)))


def _described(batch):
    shapes = keras.tree.map_structure(lambda x: f"{x.dtype}{list(x.shape)}", batch)
    return f"y_true={shapes.get('y_true')}, y_pred={shapes['y_pred']}"


def _first_line(error):
    return (str(error).strip().splitlines() or [""])[0][:300]
