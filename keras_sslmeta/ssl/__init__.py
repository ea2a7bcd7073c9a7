"""Self-supervised pretraining, each method a `keras.Model`."""

from keras_sslmeta.ssl.barlow_twins import BarlowTwins
from keras_sslmeta.ssl.byol import BYOL
from keras_sslmeta.ssl.dcl import DCL
from keras_sslmeta.ssl.distillation import Distillation
from keras_sslmeta.ssl.le_jepa import LeJEPA
from keras_sslmeta.ssl.moco import MoCo
from keras_sslmeta.ssl.moco_v3 import MoCoV3
from keras_sslmeta.ssl.momentum import MomentumModel
from keras_sslmeta.ssl.nnclr import NNCLR
from keras_sslmeta.ssl.prediction import PredictionModel
from keras_sslmeta.ssl.sim_clr import SimCLR
from keras_sslmeta.ssl.sim_cse import SimCSE
from keras_sslmeta.ssl.sim_siam import SimSiam
from keras_sslmeta.ssl.sup_con import SupCon
from keras_sslmeta.ssl.two_view import TwoViewModel
from keras_sslmeta.ssl.vic_reg import VICReg

__all__ = [
    "BYOL",
    "DCL",
    "NNCLR",
    "BarlowTwins",
    "Distillation",
    "LeJEPA",
    "MoCo",
    "MoCoV3",
    "MomentumModel",
    "PredictionModel",
    "SimCLR",
    "SimCSE",
    "SimSiam",
    "SupCon",
    "TwoViewModel",
    "VICReg",
]
