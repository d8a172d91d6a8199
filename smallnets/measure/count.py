"""Exact counts of a network: parameters, nonzero parameters, stored bytes, and MACs of one image.

MACs are multiply-accumulates of convolutions, linear layers and attention's matrix products for one image; BatchNorm,
activations, pooling and biases are not counted. FLOPs = 2 MACs.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from smallnets.errors import UserError
from smallnets.measure.ops import Recorder, Recording
from smallnets.measure.size import stored_bytes


@dataclass(frozen=True)
class LayerCount:
    """One module that owns parameters or performs MACs itself (not through its children).

    `name` is its path in the network ("" for the network itself), `kind` its class, `output_shape` the shape of its
    last output for one image without the batch dimension, () when it was not called or returned no tensor. A
    parameter that several modules share counts with the first.
    """

    name: str
    kind: str
    parameters: int
    nonzero_parameters: int
    macs: int
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class Counts:
    """What `count` found. The layers' parameters, nonzero parameters and MACs each sum to the network's."""

    parameters: int
    nonzero_parameters: int
    macs: int
    bytes: int
    layers: tuple[LayerCount, ...]
    # The most bytes of activations in memory at once; see `smallnets.measure.memory`.
    activation_bytes: int = 0

    @property
    def flops(self) -> int:
        """FLOPs of one image, 2 for each MAC."""
        return 2 * self.macs

    def largest(self, n: int = 3, by: str = "parameters") -> tuple[LayerCount, ...]:
        """The n layers with the most `by` ("parameters", "nonzero_parameters" or "macs"), largest first."""
        return tuple(sorted(self.layers, key=lambda layer: -getattr(layer, by))[:n])


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    """Every tensor that the network holds: parameters, buffers, and plain attributes of its modules."""
    plain = (value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor))
    return chain(net.parameters(), net.buffers(), plain)


def _on_meta(net: nn.Module) -> nn.Module:
    """An eval-mode copy of `net` on the meta device: shapes without values, and none of the hooks that watch `net`."""
    memo: dict[int, Any] = {}
    for tensor in _tensors(net):
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        # deepcopy takes what the memo holds instead of copying, so no value is ever copied.
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    bare = copy.deepcopy(net, memo)
    for module in bare.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                # torch's own hooks compute a module's weight (pruning, spectral norm) and belong to its forward.
                if not type(hook).__module__.startswith("torch.nn.utils"):
                    del hooks[key]
    return bare.eval()


class _Meter:
    """Hooks that give every module its own MACs (without its children's) and its output's shape."""

    def __init__(self, net: nn.Module, mode: FlopCounterMode) -> None:
        self.macs: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._mode = mode
        self._open: list[list[int]] = []
        for name, module in net.named_modules():
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave(name))

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._open.append([self._mode.get_total_flops(), 0])

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            start, inner = self._open.pop()
            spent = self._mode.get_total_flops() - start
            # Every counted operation is a sum of products, two FLOPs each, so the half is exact.
            self.macs[name] = self.macs.get(name, 0) + (spent - inner) // 2
            if self._open:
                self._open[-1][1] += spent
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            self.shapes[name] = tuple(first.shape[1:]) if isinstance(first, Tensor) else ()

        return hook


def record(net: nn.Module, image_size: int = 32, in_channels: int = 3) -> Recording:
    """The operations of one image's inference; `net` is not run and not changed. UserError when it cannot run on it."""
    return _trace(getattr(net, "_orig_mod", net), image_size, in_channels)[2]


def _trace(net: nn.Module, image_size: int, in_channels: int) -> tuple[int, _Meter, Recording]:
    """Total MACs of one image, the meter that watched, the operations; UserError when the network cannot run on it."""
    shape = (1, in_channels, image_size, image_size)
    try:
        bare = _on_meta(net)
        floating = (each.dtype for each in bare.parameters() if each.dtype.is_floating_point)
        images = torch.empty(shape, device="meta", dtype=next(floating, torch.get_default_dtype()))
        mode = FlopCounterMode(display=False)
        meter = _Meter(bare, mode)
        recorder = Recorder(bare, images)
        # Tensors that a forward creates must be on the meta device too.
        with torch.no_grad(), torch.device("meta"), mode, recorder:
            outcome = bare(images)
    except Exception as error:  # whatever the code of a user's network raises
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"{type(net).__name__} cannot run on an input of shape {shape}:\n{reason}") from error
    return mode.get_total_flops() // 2, meter, recorder.recording(outcome)


def _nonzero(parameter: Tensor) -> int:
    return parameter.numel() if parameter.is_meta else int(torch.count_nonzero(parameter.detach()))


def count(net: nn.Module, image_size: int = 32, in_channels: int = 3) -> Counts:
    """Counts of `net`, with MACs for one image of (in_channels, image_size, image_size).

    Parameters are all trainable ones (requires_grad), a shared one once; nonzero parameters are those of them that
    are not 0.0, and on the meta device, where there are no values, all. `net` itself is not run and not changed: the
    forward runs on a copy on the meta device in eval mode. Raises UserError when `net` cannot run on such an image.

    >>> from smallnets.measure import count
    >>> from smallnets.models import resnet20
    >>> counts = count(resnet20())
    >>> counts.parameters, counts.macs
    (272474, 40813184)
    """
    net = getattr(net, "_orig_mod", net)  # a network under torch.compile
    macs, meter, recording = _trace(net, image_size, in_channels)
    layers: list[LayerCount] = []
    seen: set[int] = set()
    for name, module in net.named_modules():
        own = [each for each in module.parameters(recurse=False) if each.requires_grad and id(each) not in seen]
        seen.update(id(each) for each in own)
        layer = LayerCount(
            name=name,
            kind=type(module).__name__,
            parameters=sum(each.numel() for each in own),
            nonzero_parameters=sum(_nonzero(each) for each in own),
            macs=meter.macs.get(name, 0),
            output_shape=meter.shapes.get(name, ()),
        )
        if layer.parameters or layer.macs:
            layers.append(layer)
    return Counts(
        parameters=sum(layer.parameters for layer in layers),
        nonzero_parameters=sum(layer.nonzero_parameters for layer in layers),
        macs=macs,
        bytes=stored_bytes(net),
        layers=tuple(layers),
        activation_bytes=recording.peak_bytes(),
    )
