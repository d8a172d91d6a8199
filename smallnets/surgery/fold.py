"""A network as it is run on a device: ordinary convolutions and linear layers, with BatchNorm inside them."""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from smallnets.errors import UserError
from smallnets.layers.quaternion import QuaternionConv2d, QuaternionLinear
from smallnets.layers.quaternion_norm import QuaternionBatchNorm2d

_CONVS = (nn.Conv2d, QuaternionConv2d)
_NORMS = (nn.BatchNorm2d, QuaternionBatchNorm2d)


def fold(net: nn.Module) -> nn.Module:
    """A copy of `net` in eval mode in which only real layers are left; `net` itself is not changed.

    Quaternion layers become `nn.Conv2d` and `nn.Linear` with the assembled kernel. A BatchNorm, also a whitening one,
    that is all that reads a convolution's output goes into that convolution's kernel and bias, and `nn.Identity` takes
    its place; one that follows anything else (the first of a pre-activation block) stays. The kernels are computed in
    double precision and rounded once, so that the logits are those of `net.eval()` but for the rounding of float32:
    the tests hold them within 1e-4 of the largest logit. Weights do not require gradients. The copy has other tensors
    than the class says, so it is for running and exporting, not for checkpoints; `torch.export` takes it.

    Raises:
        UserError: a forward that torch.fx cannot follow, or a quaternion convolution with groups.
    """
    net = getattr(net, "_orig_mod", net)  # a network under torch.compile
    folded = copy.deepcopy(net).eval().requires_grad_(False)
    into = norms_of(folded)
    for name, module in list(folded.named_modules()):
        if isinstance(module, (*_CONVS, QuaternionLinear)):
            norm = into.get(name)
            if norm is None and isinstance(module, nn.Conv2d):
                continue
            _put(folded, name, _real(name, module, folded.get_submodule(norm) if norm else None))
            if norm:
                _put(folded, norm, nn.Identity().eval())
    return folded


class LayerTracer(fx.Tracer):
    """Follows the network's own forwards; modules without children are taken as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children()) or super().is_leaf_module(m, module_qualified_name)


def norms_of(net: nn.Module) -> dict[str, str]:
    """Convolution -> the BatchNorm that alone reads it, where each is run once."""
    try:
        nodes = [node for node in LayerTracer().trace(net).nodes if node.op == "call_module"]
    except Exception as error:  # whatever the code of a user's network raises
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"{type(net).__name__} cannot be folded, its forward cannot be followed:\n{reason}") from error
    modules = [net.get_submodule(str(node.target)) for node in nodes]
    calls = [id(module) for module in modules]
    pairs = {}
    for node, norm in zip(nodes, modules, strict=True):
        before: Any = node.args[0] if node.args else None
        if not (isinstance(norm, _NORMS) and isinstance(before, fx.Node) and before.op == "call_module"):
            continue
        conv = net.get_submodule(str(before.target))
        once = calls.count(id(norm)) == calls.count(id(conv)) == len(before.users) == 1
        if isinstance(conv, _CONVS) and once and norm.running_mean is not None:
            pairs[str(before.target)] = str(node.target)
    return pairs


def _real(name: str, layer: Any, norm: Any) -> nn.Module:
    """The real layer that computes `layer` and then `norm`."""
    quaternion = not isinstance(layer, nn.Conv2d)
    if quaternion and getattr(layer, "groups", 1) > 1:
        raise UserError(f"{name}: a quaternion convolution of {layer.groups} groups cannot be one real convolution")
    with torch.no_grad():
        kernel = (layer.kernel() if quaternion else layer.weight).double()
        bias = None if layer.bias is None else layer.bias.double()
        if isinstance(norm, nn.BatchNorm2d):
            kernel, bias = _with_batch_norm(kernel, bias, norm)
        elif norm is not None:
            kernel, bias = _with_whitening(kernel, bias, norm)
    place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, QuaternionLinear):
        made: nn.Module = nn.Linear(layer.in_features, layer.out_features, bias is not None, **place)
    else:
        mode: Any = getattr(layer, "padding_mode", "zeros")
        sizes = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
        made = nn.Conv2d(layer.in_channels, layer.out_channels, *sizes, bias is not None, mode, **place)
    made.requires_grad_(False)
    # Not copied into the fresh weight: the kernel has the memory format of the layer's own.
    made.weight = nn.Parameter(kernel.to(layer.weight.dtype), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    return made.eval()


def _with_batch_norm(kernel: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    scale, shift = (None if each is None else each.double() for each in (norm.weight, norm.bias))
    return fuse_conv_bn_weights(
        kernel, bias, norm.running_mean.double(), norm.running_var.double(), norm.eps, scale, shift
    )


def _with_whitening(kernel: Tensor, bias: Tensor | None, norm: QuaternionBatchNorm2d) -> tuple[Tensor, Tensor]:
    """The norm's 4 x 4 matrices mix the four component rows of each output quaternion."""
    matrix, shift = norm.affine(norm.running_mean.double(), norm.running_covariance.double())
    rows = torch.einsum("qab,bq...->aq...", matrix, kernel.unflatten(0, (4, -1))).flatten(0, 1)
    if bias is not None:
        shift = shift + torch.einsum("qab,bq->aq", matrix, bias.view(4, -1))
    last = kernel.dim() == 4 and kernel.is_contiguous(memory_format=torch.channels_last)
    rows = rows.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return rows, shift.flatten()


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    path, _, last = name.rpartition(".")
    setattr(net.get_submodule(path), last, module)
