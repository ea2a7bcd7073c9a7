"""Optimizer, schedules and augmentation of a paper for a batch size and a number of epochs, one call each."""

from keras_sslmeta.recipes.papers import (
    barlow_twins,
    byol,
    moco,
    moco_v3,
    sim_clr,
    sim_siam,
    small_images,
    sup_con,
    vic_reg,
)
from keras_sslmeta.recipes.recipe import Recipe

__all__ = [
    "Recipe",
    "barlow_twins",
    "byol",
    "moco",
    "moco_v3",
    "sim_clr",
    "sim_siam",
    "small_images",
    "sup_con",
    "vic_reg",
]
