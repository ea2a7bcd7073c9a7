"""Whose statistics batch normalisation uses while a network adapts and answers: the choice, by its name."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class NormalizationPolicy:
    """One way to normalise.

    Attributes:
        support_by_batch: whether steps use the support set's own statistics: a pair, in evaluation and
            in meta-training.
        query_by_batch: whether answers use the statistics of the queries, the same pair.
        from_support: whether answers use statistics that the adapted network takes of its support set.
        per_step: whether there are moving statistics for each step, and what is normalised by its own
            statistics is moved to these (`batch_normalization.renormalized`).
        moving: whether the network's moving statistics follow those of its support sets.
    """

    support_by_batch: tuple[bool, bool]
    query_by_batch: tuple[bool, bool]
    from_support: bool = False
    per_step: bool = False
    moving: bool = True


POLICIES = {
    "transductive": NormalizationPolicy((True, True), (True, True)),
    "support": NormalizationPolicy((True, True), (False, False), from_support=True),
    "per_step": NormalizationPolicy((True, True), (False, True), per_step=True),
    "frozen": NormalizationPolicy((False, False), (False, False), moving=False),
}


def named(name: str) -> NormalizationPolicy:
    """The policy of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in POLICIES:
        raise ValueError(
            f"`batch_normalization` must be one of {', '.join(map(repr, POLICIES))}. Received: {name!r}"
        )
    return POLICIES[name]
