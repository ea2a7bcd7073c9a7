"""The error for layers that have no second derivative: which one it is, and what to do."""

import contextlib
import re


@contextlib.contextmanager
def explained(model):
    """Turns TensorFlow's LookupError for an operation without gradient into one about layers.

    Raises:
        ValueError: in its place.
    """
    try:
        yield
    except LookupError as error:
        found = re.search(r"operation '([^']*)' \(op type: (\w+)\)", str(error))
        found = found or re.search(r"gradient registry has no entry for: ()(\w+)", str(error))
        if found is None:
            raise
        scope, kind = found.groups()
        names = {layer.name for layer in model._flatten_layers(include_self=False)}
        layers = [part for part in scope.split("/") if part in names]
        of_layer = f"the layer {layers[-1]!r}" if layers else "a layer of the model"
        remedy = (
            "Build recurrent layers with `use_cudnn=False`"
            if "cudnn" in kind.lower()
            else "Replace that layer"
        )
        raise ValueError(
            f"`second_order=True` differentiates the model twice, and {of_layer} has no second "
            f"derivative (TensorFlow has no gradient of {kind}). {remedy}, or pass "
            f"`second_order=False`. Received: {model!r}"
        ) from error
