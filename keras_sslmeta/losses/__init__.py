"""Losses of self-supervision and metric learning, each a `keras.losses.Loss`."""

from keras_sslmeta.losses.alignment_uniformity import AlignmentUniformity
from keras_sslmeta.losses.barlow_twins import BarlowTwins
from keras_sslmeta.losses.batch_loss import BatchLoss
from keras_sslmeta.losses.batch_statistic_loss import BatchStatisticLoss
from keras_sslmeta.losses.clip import CLIP
from keras_sslmeta.losses.contrastive_loss import ContrastiveLoss
from keras_sslmeta.losses.debiased_contrastive import DebiasedContrastive
from keras_sslmeta.losses.decoupled_contrastive import DecoupledContrastive
from keras_sslmeta.losses.hard_negative import HardNegative
from keras_sslmeta.losses.info_nce import InfoNCE
from keras_sslmeta.losses.ko_leo import KoLeo
from keras_sslmeta.losses.labelled_pairs_loss import LabelledPairsLoss
from keras_sslmeta.losses.le_jepa import LeJEPA
from keras_sslmeta.losses.matryoshka import Matryoshka
from keras_sslmeta.losses.multi_similarity import MultiSimilarity
from keras_sslmeta.losses.n_pairs import NPairs
from keras_sslmeta.losses.negative_cosine import NegativeCosine
from keras_sslmeta.losses.nt_xent import NTXent
from keras_sslmeta.losses.paired_loss import PairedLoss
from keras_sslmeta.losses.pairwise_contrastive import PairwiseContrastive
from keras_sslmeta.losses.self_distillation import SelfDistillation
from keras_sslmeta.losses.sig_lip import SigLIP
from keras_sslmeta.losses.sig_reg import SIGReg
from keras_sslmeta.losses.supervised_contrastive import SupervisedContrastive
from keras_sslmeta.losses.swapped_prediction import SwappedPrediction
from keras_sslmeta.losses.triplet_all import TripletAll
from keras_sslmeta.losses.triplet_hard import TripletHard
from keras_sslmeta.losses.triplet_semi_hard import TripletSemiHard
from keras_sslmeta.losses.vic_reg import VICReg

__all__ = [
    "CLIP",
    "AlignmentUniformity",
    "BarlowTwins",
    "BatchLoss",
    "BatchStatisticLoss",
    "ContrastiveLoss",
    "DebiasedContrastive",
    "DecoupledContrastive",
    "HardNegative",
    "InfoNCE",
    "KoLeo",
    "LabelledPairsLoss",
    "LeJEPA",
    "Matryoshka",
    "MultiSimilarity",
    "NPairs",
    "NTXent",
    "NegativeCosine",
    "PairedLoss",
    "PairwiseContrastive",
    "SIGReg",
    "SelfDistillation",
    "SigLIP",
    "SupervisedContrastive",
    "SwappedPrediction",
    "TripletAll",
    "TripletHard",
    "TripletSemiHard",
    "VICReg",
]
