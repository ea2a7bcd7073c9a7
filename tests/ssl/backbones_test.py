"""Published backbones as encoders, by name, without weights (nothing is downloaded)."""

import keras
import numpy as np
import pytest
from small_methods import identity

import keras_sslmeta as ksm

IMAGES = np.random.default_rng(0).uniform(0, 255, size=(8, 40, 40, 3)).astype("float32")
APPLICATIONS = {
    "MobileNetV3Small": {"include_preprocessing": True},
    "ResNet50V2": {},
}


def learns(encoder, x, method):
    model = method(encoder)
    model.compile(keras.optimizers.Adam(1e-3))
    before = [w.numpy() for w in encoder.trainable_variables]
    history = model.fit(x, batch_size=4, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    moved = [
        not np.array_equal(a, b) for a, b in zip(before, encoder.trainable_variables, strict=True)
    ]
    assert np.mean(moved) > 0.9
    features = model.predict(x, verbose=0)
    assert features.shape == (8, encoder.output_shape[-1]) and np.isfinite(features).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_keras_applications(name):
    build = getattr(keras.applications, name)
    encoder = build(
        include_top=False,
        weights=None,
        pooling="avg",
        input_shape=(40, 40, 3),
        **APPLICATIONS[name],
    )
    augmentation = ksm.layers.SimCLRAugmentation(40)
    learns(encoder, IMAGES, lambda e: ksm.SimCLR(e, augmentation))


@pytest.mark.slow
def test_a_momentum_method_on_keras_applications():
    encoder = keras.applications.MobileNetV2(
        include_top=False, weights=None, pooling="avg", input_shape=(40, 40, 3), alpha=0.35
    )
    heads = {"projector": ksm.layers.ProjectionHead(16), "predictor": ksm.layers.PredictorHead(16)}
    augmentation = ksm.layers.BYOLAugmentation.pair(40)
    learns(encoder, IMAGES, lambda e: ksm.BYOL(e, augmentation, micro_batch_size=2, **heads))


@pytest.mark.slow
def test_keras_hub():
    """Its backbones give feature maps, or several outputs: pool, or take one."""
    hub = pytest.importorskip(
        "keras_hub", reason="KerasHub is not installed: pip install keras-hub"
    )
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=(40, 40, 3),
    )
    encoder = keras.Sequential([backbone, keras.layers.GlobalAveragePooling2D()])
    learns(encoder, IMAGES, lambda e: ksm.SimCLR(e, ksm.layers.SimCLRAugmentation(40)))
    text = hub.models.BertBackbone(
        vocabulary_size=50, num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16
    )
    encoder = keras.Model(text.input, text.output["pooled_output"])
    tokens = np.random.default_rng(0).integers(1, 50, size=(8, 6))
    x = {
        "token_ids": tokens,
        "segment_ids": np.zeros_like(tokens),
        "padding_mask": np.ones_like(tokens),
    }
    model = ksm.SimCSE(encoder, projector=identity())
    model.compile(keras.optimizers.Adam(1e-3))
    assert np.isfinite(model.fit(x, batch_size=4, verbose=0).history["loss"]).all()
    assert model.predict(x, verbose=0).shape == (8, 8)
