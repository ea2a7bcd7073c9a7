"""What an encoder takes and gives: shapes of its inputs, and its one vector a sample."""

import keras


def check(encoder, name="encoder"):
    """Refuses what is not a model, or known to give other than one vector a sample."""
    if not isinstance(encoder, keras.Model):
        raise ValueError(
            f"`{name}` must be a keras.Model from a sample to a feature vector. "
            f"Received: {encoder!r} (of type {type(encoder).__name__})"
        )
    if encoder.built and sample_shapes(encoder) is not None:
        for shape in output_shapes(encoder):
            _check_vector(shape, name)


def check_features(features):
    """Refuses features that are not one vector a sample."""
    if isinstance(features, (list, tuple, dict)):
        shapes = [tuple(x.shape) for x in keras.tree.flatten(features)]
        raise ValueError(
            "`encoder` must have one output, a feature vector for each sample. "
            f"Received: {len(shapes)} outputs, shapes={shapes}"
        )
    _check_vector(tuple(features.shape))


def _check_vector(shape, name="encoder"):
    axes = len(shape) - 2
    if axes == 0:
        return
    remedy = (
        f"Add keras.layers.GlobalAveragePooling{axes}D() at its end."
        if 1 <= axes <= 3
        else "Let it end in one vector a sample."
    )
    raise ValueError(
        f"`{name}` must give a feature vector for each sample, (batch, features). "
        f"{remedy} Received: output shape={(None, *shape[1:])}"
    )


def symbolic_inputs(encoder):
    """Of a functional model; else none. Other models may call anything `inputs`."""
    inputs = getattr(encoder, "inputs", None)
    is_known = isinstance(inputs, list) and all(isinstance(x, keras.KerasTensor) for x in inputs)
    return inputs if is_known else []


def input_structure(encoder):
    """Shapes of the encoder's inputs, as nested as they are; None before it has been built."""
    if symbolic_inputs(encoder):
        return encoder.input_shape
    return (encoder.get_build_config() or {}).get("input_shape")


def sample_shapes(encoder):
    """The same, as a list."""
    shapes = input_structure(encoder)
    return None if shapes is None else flat_shapes(shapes)


def output_shapes(encoder):
    """Shapes of the built encoder's outputs; more or fewer than one are refused."""
    if symbolic_inputs(encoder):
        shapes = [tuple(x.shape) for x in encoder.outputs]
    else:
        samples = keras.tree.map_shape_structure(
            keras.KerasTensor, encoder.get_build_config()["input_shape"]
        )
        shapes = [tuple(x.shape) for x in keras.tree.flatten(encoder(samples))]
    if len(shapes) != 1:
        raise ValueError(
            "`encoder` must have one output, a feature vector for each sample. "
            f"Received: {len(shapes)} outputs, shapes={shapes}"
        )
    return shapes


def paired(encoder, inputs):
    """For each of the encoder's inputs its name, the shape it takes, `(None, …)`, and what it gets.

    Empty before the encoder knows its inputs, and where the nests differ: only a call will tell then.
    """
    tensors = symbolic_inputs(encoder)
    if tensors:
        structure = getattr(encoder, "input", tensors)  # As nested as the model was made.
        wanted, names = [tuple(x.shape) for x in tensors], [x.name for x in tensors]
    else:
        structure = input_structure(encoder)
        wanted = [] if structure is None else flat_shapes(structure)
        names = [f"input {i}" for i in range(len(wanted))]
    if isinstance(inputs, dict):
        if isinstance(structure, dict) and set(structure) <= set(inputs):
            inputs = {key: inputs[key] for key in structure}  # Keras goes by keys, then by names.
            names = sorted(structure) if len(structure) == len(wanted) else names
        elif set(names) <= set(inputs):
            inputs = [inputs[name] for name in names]
    held = keras.tree.flatten(inputs)
    return list(zip(names, wanted, held, strict=True)) if len(wanted) == len(held) else []


def flat_shapes(shapes):
    if isinstance(shapes, dict):  # In the order of `keras.tree.flatten`.
        return [flat for key in sorted(shapes) for flat in flat_shapes(shapes[key])]
    if all(n is None or isinstance(n, int) for n in shapes):
        return [tuple(shapes)]
    return [flat for shape in shapes for flat in flat_shapes(shape)]
