"""Norms of weights and gradients, for a look at how training goes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The Euclidean norm of each tensor, and under `total` that of all together; one wait for the device."""
    if not tensors:
        return {}
    each = torch.stack([torch.linalg.vector_norm(value.detach().float()) for value in tensors.values()])
    return dict(zip([*tensors, "total"], [*each.tolist(), float(torch.linalg.vector_norm(each))], strict=True))


def weight_norms(net: nn.Module) -> dict[str, float]:
    """Of the weights with two dimensions or more: those of convolutions, linear and attention layers."""
    return norms({name: value for name, value in net.named_parameters() if value.ndim > 1})


def gradient_norms(net: nn.Module) -> dict[str, float]:
    """Of the same weights' gradients, as far as they have any."""
    parameters = net.named_parameters()
    return norms({name: value.grad for name, value in parameters if value.ndim > 1 and value.grad is not None})
