"""Stored bytes of a network."""

from torch import Tensor, nn


def stored_bytes(net: nn.Module) -> int:
    """Bytes of all tensors of the state dict: parameters and persistent buffers, each at its own precision.

    A tensor that has several names counts once. Zeros are stored like any other value, so masks do not make a network
    smaller; only removed channels, removed layers and narrower types do. A file also holds names and structure, some
    kilobytes more; quote the file's size for a file.
    """
    tensors = {id(each): each for each in net.state_dict(keep_vars=True).values() if isinstance(each, Tensor)}
    return sum(each.numel() * each.element_size() for each in tensors.values())
