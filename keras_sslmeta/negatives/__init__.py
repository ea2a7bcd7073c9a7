"""Which negatives count, and how much: rules for the argument `negatives` of the softmax losses."""

from keras_sslmeta.negatives.exclude_by_guide import ExcludeByGuide
from keras_sslmeta.negatives.exclude_near_duplicates import ExcludeNearDuplicates
from keras_sslmeta.negatives.exclude_same_label import ExcludeSameLabel
from keras_sslmeta.negatives.hardest import Hardest
from keras_sslmeta.negatives.negative_rule import NegativeRule
from keras_sslmeta.negatives.weigh_pairs import WeighPairs

__all__ = [
    "ExcludeByGuide",
    "ExcludeNearDuplicates",
    "ExcludeSameLabel",
    "Hardest",
    "NegativeRule",
    "WeighPairs",
]
