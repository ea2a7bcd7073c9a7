"""What is asked of arguments, with the error that says so; each function returns the plain Python value."""

import math
import numbers
import random
from typing import Any

import numpy as np


def is_integer(value: Any) -> bool:
    """Whether it is a whole number, of Python or NumPy, and no truth value."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite number, of Python or NumPy, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def count(name: str, value: Any, least: int = 1) -> int:
    """A number of something, at least `least`."""
    if not is_integer(value) or value < least:
        required = "a positive integer" if least == 1 else f"an integer from {least}"
        raise ValueError(f"`{name}` must be {required}. Received: {name}={value!r}")
    return int(value)


def positive_number(name: str, value: Any) -> float:
    """A finite number above 0."""
    if not is_number(value) or value <= 0:
        raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
    return float(value)


def number_from_zero(name: str, value: Any) -> float:
    """A finite number, at least 0."""
    if not is_number(value) or value < 0:
        raise ValueError(f"`{name}` must be a number from 0. Received: {name}={value!r}")
    return float(value)


def seed(value: Any) -> int:
    """The seed; where it is None, one from Python's generator."""
    value = random.randint(0, 2**31 - 1) if value is None else value
    if not is_integer(value) or value < 0:
        raise ValueError(f"`seed` must be None or an integer from 0. Received: seed={value!r}")
    return int(value)


def verbosity(value: Any, is_short: bool = False) -> int:
    """What `keras.utils.Progbar` takes; `"auto"` is a bar, but for work that is short."""
    if value not in ("auto", 0, 1, 2):
        raise ValueError(f'`verbose` must be "auto", 0, 1 or 2. Received: verbose={value!r}')
    return int(not is_short) if value == "auto" else int(value)


def labels(name: str, value: Any, kinds: str = "biufUS") -> np.ndarray:
    """Labels `(n,)`, integers or strings; a trailing axis of one is dropped.

    `kinds` are those of NumPy's dtypes that are allowed.
    """
    array = np.asarray(value)
    if array.dtype == object:  # Strings in a list or of TensorFlow, a pandas column.
        array = np.asarray(array.tolist())
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError(
            f"`{name}` must be one integer or string a sample (of one-hot labels, the argmax). "
            f"Received: shape={array.shape}, dtype={array.dtype}"
        )
    return array
