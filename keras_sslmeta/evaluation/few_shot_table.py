"""Few-shot results side by side, as text."""

from collections.abc import Mapping
from typing import Any

from keras_sslmeta.evaluation.few_shot_result import FewShotResult


def few_shot_table(
    results: Mapping[str, FewShotResult] | Mapping[str, Mapping[Any, FewShotResult]],
    baseline: str | None = None,
) -> str:
    """Tabulates accuracies with half their 95% intervals, and what they gain over a baseline.

    Differences are paired, episode by episode: their intervals are narrower than the accuracies'
    own, and tell what those cannot.

    Args:
        results: `{name: result}`, or `{name: {shots: result}}` for a column of each number of
            shots. Column names that are not integers stand as they are.
        baseline: the name whose accuracies the others are compared with, on the same episodes.
            Default: no comparison.

    Returns:
        The table, in lines without an end of line after the last.

    Raises:
        ValueError: if there is no result, something else than results, no such baseline, or a result
            on other episodes than the baseline's.

    Example:
    >>> import numpy as np
    >>> raw = FewShotResult(np.array([0.5, 0.75, 1.0, 0.75]))
    >>> ours = FewShotResult(np.array([0.75, 0.75, 1.0, 1.0]))
    >>> print(few_shot_table({"raw": raw, "SimCLR": ours}, baseline="raw"))
            accuracy       over raw
    raw     75.0 ± 20.0 %
    SimCLR  87.5 ± 14.1 %  +12.5 ± 14.1 %
    >>> print(few_shot_table({"raw": {1: raw}, "SimCLR": {1: ours, 5: ours}}))
            1 shot         5 shots
    raw     75.0 ± 20.0 %
    SimCLR  87.5 ± 14.1 %  87.5 ± 14.1 %
    """
    rows = by_shots(results)
    if baseline is not None and baseline not in rows:
        raise ValueError(
            f"`baseline` must be a name in `results`: {', '.join(map(str, rows))}. "
            f"Received: baseline={baseline!r}"
        )
    columns = list(dict.fromkeys(shots for row in rows.values() for shots in row))
    table = [["", *_headers(columns, baseline)]]
    for name, row in rows.items():
        cells = [str(name)]
        for shots in columns:
            result = row.get(shots)
            cells.append(str(result or ""))
            if baseline is not None:
                other = None if name == baseline else rows[baseline].get(shots)
                cells.append(_difference(str(name), result, other))
        table.append(cells)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in table
    )


def by_shots(results: Any) -> dict[str, dict[Any, FewShotResult]]:
    """`{name: {shots: result}}` of either form, with None for the shots where these are not given.

    Raises:
        ValueError: if there is no result, or something else than results.
    """
    named = dict(results) if isinstance(results, Mapping) else {}
    is_by_shots = any(isinstance(value, Mapping) for value in named.values())
    rows = named if is_by_shots else {name: {None: value} for name, value in named.items()}
    are_right = all(
        isinstance(row, Mapping) and all(isinstance(cell, FewShotResult) for cell in row.values())
        for row in rows.values()
    )
    if not are_right or not any(rows.values()):
        raise ValueError(
            "`results` must be a dict from names to one or more FewShotResults, or to dicts of them "
            f"by the number of shots. Received: {results!r}"
        )
    return rows


def column_name(shots: Any) -> str:
    """What a number of shots is called."""
    if shots is None:
        return "accuracy"
    if isinstance(shots, int):
        return "1 shot" if shots == 1 else f"{shots} shots"
    return str(shots)


def _headers(columns: list, baseline: str | None) -> list[str]:
    over = [] if baseline is None else [f"over {baseline}"]
    return [header for shots in columns for header in [column_name(shots), *over]]


def _difference(name: str, result: FewShotResult | None, other: FewShotResult | None) -> str:
    if result is None or other is None:
        return ""
    try:
        difference, half = result.paired_difference(other)
    except ValueError as error:
        raise ValueError(
            f"`results` must be on the baseline's episodes. Received: others for {name}. {error}"
        ) from error
    return f"{100 * difference:+.1f} ± {100 * half:.1f} %"
