"""What the image layers ask of their arguments; each function returns the plain Python value."""

import math
from collections.abc import Sequence

from keras_sslmeta.mechanisms.arguments import is_integer, is_number


def number(name: str, value: float, minimum: float = -math.inf, maximum: float = math.inf) -> float:
    """A finite number in `[minimum, maximum]`."""
    if not is_number(value) or not minimum <= value <= maximum:
        raise ValueError(
            f"`{name}` must be a number {_bounds(minimum, maximum)}. Received: {value!r}"
        )
    return float(value)


def probability(name: str, value: float) -> float:
    """A number in `[0, 1]`."""
    return number(name, value, 0.0, 1.0)


def positive_range(
    name: str, value: Sequence[float], maximum: float = math.inf
) -> tuple[float, float]:
    """A pair of positive numbers, the smaller first (they may be equal)."""
    if not _is_pair(value) or not 0 < value[0] <= value[1] <= maximum:
        limit = "" if maximum == math.inf else f" of at most {maximum:g}"
        raise ValueError(
            f"`{name}` must be a pair of positive numbers{limit}, the smaller first. "
            f"Received: {value!r}"
        )
    return float(value[0]), float(value[1])


def value_range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """A pair of different numbers, the smaller first."""
    if not _is_pair(value) or not value[0] < value[1]:
        raise ValueError(
            f"`{name}` must be a pair of numbers, the lowest and the highest value that a pixel "
            f"can have, such as (0, 255). Received: {value!r}"
        )
    return float(value[0]), float(value[1])


def side(name: str, value: int) -> int:
    """The side of an image in pixels."""
    if not is_integer(value) or value < 2:
        raise ValueError(f"`{name}` must be an integer of at least 2 pixels. Received: {value!r}")
    return int(value)


def image_size(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """An integer, or a pair `(height, width)`."""
    pair = (value, value) if not isinstance(value, Sequence) else tuple(value)
    if len(pair) != 2 or not all(is_integer(size) and size >= 2 for size in pair):
        raise ValueError(
            f"`{name}` must be an integer or a pair (height, width) of integers, of at least 2 "
            f"pixels a side. Received: {value!r}"
        )
    return int(pair[0]), int(pair[1])


def kernel_size(name: str, value: int | None) -> int | None:
    """An odd number of pixels, or None."""
    if value is None:
        return None
    if not is_integer(value) or value < 1 or value % 2 == 0:
        raise ValueError(f"`{name}` must be a positive odd integer or None. Received: {value!r}")
    return int(value)


def check_channels(shape: tuple[int | None, ...]) -> None:
    """Refuses images that are neither grey nor RGB, or whose channels are unknown."""
    if shape[-1] not in (1, 3):
        raise ValueError(
            "`images` must have 1 channel or 3 (red, green, blue), known in advance. "
            f"Received shape: {tuple(shape)}"
        )


def _is_pair(value) -> bool:
    is_two = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return is_two and all(is_number(item) for item in value)


def _bounds(minimum: float, maximum: float) -> str:
    return f"of at least {minimum:g}" if maximum == math.inf else f"in [{minimum:g}, {maximum:g}]"
