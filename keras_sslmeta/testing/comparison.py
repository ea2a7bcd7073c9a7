"""Differences between one device and replicas, and how they are told."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Difference:
    """A quantity in which two runs differ."""

    quantity: str
    got: float
    expected: float
    index: tuple[int, ...]
    scale: float
    """What the difference is relative to."""

    @property
    def absolute(self) -> float:
        return abs(self.got - self.expected)

    @property
    def relative(self) -> float:
        return self.absolute / self.scale if self.scale else float("inf")

    def __str__(self):
        at = f" at {list(self.index)}" if self.index else ""
        return (
            f"{self.quantity}: {self.got:.7g} instead of {self.expected:.7g}{at} "
            f"(difference {self.absolute:.3g}, relative {self.relative:.3g})"
        )


def compare(
    quantity: str, got, expected, rtol: float, scale: "float | None" = None
) -> "Difference | None":
    """The largest difference, or None where all are at most `rtol` times the scale.

    The scale is the largest entry that is expected, unless given: entries that are zero in theory hold
    nothing but rounding.
    """
    got, expected = np.asarray(got, "float64"), np.asarray(expected, "float64")
    if got.size == 0:
        return None
    scale = float(np.abs(expected).max()) if scale is None else scale
    errors = np.where(np.isfinite(got), np.abs(got - expected), np.inf)
    if errors.max() <= rtol * scale + 1e-12:
        return None
    index = tuple(int(i) for i in np.unravel_index(errors.argmax(), errors.shape))
    return Difference(quantity, float(got[index]), float(expected[index]), index, scale)


def are_close(got, expected, rtol: float) -> bool:
    """Whether no entry differs by more than `rtol` times the largest one."""
    return compare("", got, expected, rtol) is None


def share_of(row: int, shares: "tuple[int, ...]") -> int:
    """Which share a row of the global batch is in."""
    return int(np.searchsorted(np.cumsum(shares), row, side="right"))


def place(shares: "tuple[int, ...]") -> str:
    """Where it happened."""
    return f"on {len(shares)} replicas with shares of {', '.join(map(str, shares))} samples"


def report(
    subject: str,
    where: str,
    differences: "list[Difference]",
    reason: str,
    reference: str = "one device",
) -> str:
    """The message of the AssertionError."""
    lines = "\n".join(f"  {difference}" for difference in differences)
    return (
        f"{subject} is not batch invariant: what {where} gives differs from {reference}.\n{lines}\n"
        f"Likely reason: {reason}"
    )
