import keras
import pytest

from keras_sslmeta.layers import LogitScale
from keras_sslmeta.optimizers.is_bias_or_norm import is_bias_or_norm

LAYERS = {
    "dense": (keras.layers.Dense(3), (4, 5)),
    "convolution": (keras.layers.Conv2D(3, 2), (4, 5, 5, 2)),
    "batch": (keras.layers.BatchNormalization(), (4, 5)),
    "layer": (keras.layers.LayerNormalization(), (4, 5)),
    "layer of two axes": (keras.layers.LayerNormalization(axis=(1, 2)), (4, 5, 3)),
    "group": (keras.layers.GroupNormalization(2), (4, 6)),
    "root mean square": (keras.layers.RMSNormalization(), (4, 5)),
    "lstm": (keras.layers.LSTM(2), (4, 5, 3)),
    "gru": (keras.layers.GRU(2), (4, 5, 3)),
    "embedding": (keras.layers.Embedding(5, 2), (4,)),
}
DECAYS = {"kernel", "recurrent_kernel", "embeddings"}


@pytest.mark.parametrize("name", LAYERS)
def test_of_keras_layers(name):
    layer, shape = LAYERS[name]
    layer.build(shape)
    variables = layer.trainable_variables
    assert variables
    for variable in variables:
        assert is_bias_or_norm(variable) == (variable.name not in DECAYS), variable.path


def test_of_attention():
    """Whose biases have two axes."""
    layer = keras.layers.MultiHeadAttention(2, 3)
    layer.build((None, 5, 4), (None, 5, 4))
    found = {v.path.split("/", 1)[1]: is_bias_or_norm(v) for v in layer.trainable_variables}
    assert len(found) == 8 and any(len(v.shape) == 2 for v in layer.variables)
    assert found == {path: path.endswith("/bias") for path in found}


def test_the_whole_name_counts():
    for name in ("debias", "bias_table", "alphabeta"):
        assert not is_bias_or_norm(keras.Variable([[1.0]], name=name))


def test_of_a_temperature():
    layer = LogitScale(initial_bias=-10.0)
    layer.build([(None, 4), (None, 4)])
    assert [is_bias_or_norm(v) for v in layer.trainable_variables] == [True, True]


def test_is_found_again():
    serialized = keras.saving.serialize_keras_object(is_bias_or_norm)
    assert serialized["config"] == "keras_sslmeta.optimizers>is_bias_or_norm"
    assert keras.saving.deserialize_keras_object(serialized) is is_bias_or_norm
