"""Meta-learners: models that learn to learn, from episodes."""

from keras_sslmeta.meta.anil import ANIL
from keras_sslmeta.meta.boil import BOIL
from keras_sslmeta.meta.cavia import CAVIA
from keras_sslmeta.meta.differentiable_fit import DifferentiableFit, FittedModel
from keras_sslmeta.meta.episodic import EpisodicModel
from keras_sslmeta.meta.few_shot_classifier import FewShotClassifier
from keras_sslmeta.meta.imaml import IMAML
from keras_sslmeta.meta.maml import MAML
from keras_sslmeta.meta.maml_plus_plus import MAMLPlusPlus
from keras_sslmeta.meta.matching_network import MatchingNetwork
from keras_sslmeta.meta.meta_sgd import MetaSGD
from keras_sslmeta.meta.prototypical_network import PrototypicalNetwork
from keras_sslmeta.meta.ps_co import PsCo
from keras_sslmeta.meta.relation_network import RelationNetwork
from keras_sslmeta.meta.reptile import Reptile
from keras_sslmeta.meta.ridge_head import RidgeHead

__all__ = [
    "ANIL",
    "BOIL",
    "CAVIA",
    "IMAML",
    "MAML",
    "DifferentiableFit",
    "EpisodicModel",
    "FewShotClassifier",
    "FittedModel",
    "MAMLPlusPlus",
    "MatchingNetwork",
    "MetaSGD",
    "PrototypicalNetwork",
    "PsCo",
    "RelationNetwork",
    "Reptile",
    "RidgeHead",
]
