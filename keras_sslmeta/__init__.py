"""Self-supervised pretraining and meta-learning as ordinary Keras."""

from keras_sslmeta import (
    callbacks,
    data,
    evaluation,
    layers,
    losses,
    meta,
    negatives,
    ssl,
    testing,
    visualization,
)
from keras_sslmeta.meta import (
    ANIL,
    BOIL,
    CAVIA,
    IMAML,
    MAML,
    MAMLPlusPlus,
    MatchingNetwork,
    MetaSGD,
    PrototypicalNetwork,
    PsCo,
    RelationNetwork,
    Reptile,
    RidgeHead,
)
from keras_sslmeta.ssl import SimCLR

__version__ = "0.1.0"

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "IMAML",
    "MAML",
    "MAMLPlusPlus",
    "MatchingNetwork",
    "MetaSGD",
    "PrototypicalNetwork",
    "PsCo",
    "RelationNetwork",
    "Reptile",
    "RidgeHead",
    "SimCLR",
    "__version__",
    "callbacks",
    "data",
    "evaluation",
    "layers",
    "losses",
    "meta",
    "negatives",
    "ssl",
    "testing",
    "visualization",
]
