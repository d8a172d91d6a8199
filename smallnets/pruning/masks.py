"""Masks: which weights of a network are kept."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from smallnets.errors import RunError, UserError
from smallnets.pruning.prunable import matched, plain, prunable


@dataclass(frozen=True)
class LayerDensity:
    """How much of one layer's weight is kept."""

    name: str
    kept: int
    total: int

    @property
    def density(self) -> float:
        """Share kept, from 0 to 1."""
        return self.kept / self.total


class Masks(Mapping[str, Tensor]):
    """An immutable value: name of a weight (`conv1.weight`) -> bool tensor of its shape, True where it is kept.

    Masks stand outside the network, whose keys stay those of the dense one. They act on nothing by themselves: call
    `apply_` after every optimizer step, and the network equals one that was reparametrised with masks.

    Laws:
        - After `apply_(net)` each masked weight is exactly 0.0 (of either sign) and each kept one is what it was,
          bitwise. Each of the three `apply` methods is one operation for all layers together (the first
          call on a device prepares it).
        - Counts are exact. Masks equal each other by their names and bits, whatever the device and the order.
        - They survive `copy.deepcopy`, pickling and `from_state_dict(state_dict())` unchanged, and no later change of
          a tensor that was given or taken out changes them.

    Methods that take a network look at its weights by name, so a copy or another network of the same names and shapes
    will do; masks follow the weights to their device and precision.

    Raises:
        UserError: no layers, or a tensor that is not bool; in methods, a layer that the network does not have, or has
            in another shape.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        if not masks:
            raise UserError("masks need at least one layer")
        for name, mask in masks.items():
            if mask.dtype != torch.bool or not mask.numel():
                raise UserError(
                    f"the mask of {name} must be a bool tensor with entries, got {mask.dtype} of {_sizes(mask)}"
                )
        self._masks = {name: mask.detach().clone(memory_format=torch.contiguous_format) for name, mask in masks.items()}
        counts = _numbers([mask.count_nonzero() for mask in self._masks.values()])
        self._layers = tuple(
            LayerDensity(name, kept, mask.numel())
            for (name, mask), kept in zip(self._masks.items(), counts, strict=True)
        )
        self._factors: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    @classmethod
    def dense(cls, net: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> "Masks":
        """Masks that keep everything: the choice of the weights that pruning may touch.

        By default the weights of all convolutions and linear layers. Never a parameter of BatchNorm, LayerNorm and
        the like, a bias, an embedding, a position or a class token, nor anything of fewer than two dimensions.

        Args:
            include: patterns (`stages.*`, `head`, `*.qkv.weight`), matched against names of weights and of their
                layers; what they match is taken instead of the default, and may be a weight of any kind of layer.
            exclude: patterns of what is left out.

        Raises:
            UserError: a pattern that matches no weight, nothing left, or a layer whose weight is computed from others
                (`torch.nn.utils.prune`, parametrizations).
        """
        net = plain(net)
        allowed, usual = prunable(net)
        taken = usual if include is None else matched(net, allowed, include, "include")
        left_out = set(matched(net, taken, exclude, "exclude"))
        names = [name for name in taken if name not in left_out]
        if not names:
            raise UserError(f"{type(net).__name__} has no weights to mask with include={include}, exclude={exclude}")
        return cls({name: torch.ones_like(allowed[name], dtype=torch.bool) for name in names})

    # -- a mapping ---------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        """A copy of the mask, so that writing into it changes nothing here."""
        return self._masks[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return self._masks.keys() == other._masks.keys() and all(
            torch.equal(mask, other._masks[name].to(mask.device)) for name, mask in self._masks.items()
        )

    def __and__(self, other: "Masks") -> "Masks":
        """What both keep; UserError unless they have the same layers in the same shapes."""
        return Masks({name: mine & theirs for name, mine, theirs in self._pairs(other)})

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, {self.kept:,} of {self.total:,} kept)"

    def __reduce__(self) -> tuple[Any, ...]:
        return Masks, (self._masks,)

    # -- counts ------------------------------------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[LayerDensity, ...]:
        """Name, kept and total of every layer."""
        return self._layers

    @property
    def kept(self) -> int:
        return sum(layer.kept for layer in self._layers)

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self._layers)

    @property
    def density(self) -> float:
        """Share kept of the weights that have masks, from 0 to 1."""
        return self.kept / self.total

    def overlap(self, other: "Masks") -> float:
        """Kept by both / kept by either (Jaccard 1901), from 0 to 1; 1 if neither keeps anything.

        UserError unless they have the same layers in the same shapes.
        """
        pairs = self._pairs(other)
        both = sum(int((mine & theirs).count_nonzero()) for _, mine, theirs in pairs)
        either = sum(int((mine | theirs).count_nonzero()) for _, mine, theirs in pairs)
        return both / either if either else 1.0

    # -- acting on a network -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply_(self, net: nn.Module) -> None:
        """Sets every masked weight to 0.0, in place. A weight that is NaN or infinite stays NaN: `check` finds it."""
        self._multiply_(self.weights(net))

    @torch.no_grad()
    def apply_to_gradients_(self, net: nn.Module) -> None:
        """Sets the gradients of masked weights to 0.0, in place, so that they count in no norm. None stays None."""
        grads = {name: weight.grad for name, weight in self.weights(net).items()}
        self._multiply_({name: grad for name, grad in grads.items() if grad is not None})

    @torch.no_grad()
    def apply_to_state_(self, optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
        """Sets what `optimizer` remembers of masked weights (momentum, averages) to 0.0, in place.

        It reaches the tensors of the optimizer's state that have their weight's shape.
        """
        remembered: dict[tuple[str, str], Tensor] = {}
        for name, weight in self.weights(net).items():
            for key, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor) and value.shape == weight.shape and value.is_floating_point():
                    remembered[name, key] = value
        if remembered:
            factors = [self._factor(name, value) for (name, _), value in remembered.items()]
            torch._foreach_mul_(list(remembered.values()), factors)

    @torch.no_grad()
    def apply_to_values_(self, values: Mapping[str, Tensor]) -> None:
        """Sets masked entries of tensors that belong to weights, by the weights' names, to 0.0, in place (an average).

        UserError for a name without a mask, or another shape.
        """
        for name, value in values.items():
            if name not in self._masks or value.shape != self._masks[name].shape:
                raise UserError(f"there is no mask for {name} of {_sizes(value)}")
        self._multiply_(values)

    def check(self, net: nn.Module) -> None:
        """RunError, with the layer and how many, if a masked weight of `net` is anything else than 0.0."""
        with torch.no_grad():
            counts = _numbers(
                [
                    ((weight != 0) & (self._factor(name, weight) == 0)).count_nonzero()
                    for name, weight in self.weights(net).items()
                ]
            )
        for layer, count in zip(self._layers, counts, strict=True):
            if count:
                layers = sum(1 for each in counts if each)
                raise RunError(
                    f"{layer.name}: {count:,} of {layer.total - layer.kept:,} masked weights are not 0.0"
                    + (f" (and in {layers - 1} more layers)" if layers > 1 else "")
                )

    def weights(self, net: nn.Module) -> dict[str, Tensor]:
        """The network's own parameters that have masks, by name, in the masks' order."""
        net = plain(net)
        found: dict[str, Tensor] = {}
        for name, mask in self._masks.items():
            *path, last = name.split(".")
            module: nn.Module | None = net
            for part in path:  # get_submodule takes ten times as long, and this runs in every step
                module = None if module is None else module._modules.get(part)
            weight = None if module is None else module._parameters.get(last)
            if weight is None:
                raise UserError(f"there is a mask for {name}, but {type(net).__name__} has no such parameter")
            if weight.shape != mask.shape:
                raise UserError(f"{name}: the mask is of {_sizes(mask)}, the weight of {_sizes(weight)}")
            found[name] = weight
        return found

    # -- storage -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Plain data, one bit a weight: name -> {"shape": list of int, "bits": uint8 tensor on the CPU}."""
        return {name: {"shape": list(mask.shape), "bits": _packed(mask)} for name, mask in self._masks.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Mapping[str, Any]]) -> "Masks":
        """The masks of `state_dict`; RunError if it is damaged."""
        masks = {}
        for name, entry in state.items():
            shape, bits = entry["shape"], entry["bits"]
            if bits.dtype != torch.uint8 or bits.numel() != -(-math.prod(shape) // 8):
                raise RunError(f"the stored mask of {name} is damaged: {bits.numel()} bytes for a shape of {shape}")
            masks[name] = _unpacked(bits, shape)
        return cls(masks)

    def to(self, device: torch.device | str) -> "Masks":
        """The same masks on another device."""
        return Masks({name: mask.to(device) for name, mask in self._masks.items()})

    # -- parts -------------------------------------------------------------------------------------------------------

    def _pairs(self, other: "Masks") -> list[tuple[str, Tensor, Tensor]]:
        if not isinstance(other, Masks):
            raise UserError(f"masks can only be compared and joined with masks, got {type(other).__name__}")
        if differing := self._masks.keys() ^ other._masks.keys():
            raise UserError(f"the masks have different layers: {', '.join(sorted(differing)[:3])} in one of them only")
        pairs = [(name, mask, other._masks[name].to(mask.device)) for name, mask in self._masks.items()]
        for name, mine, theirs in pairs:
            if mine.shape != theirs.shape:
                raise UserError(f"{name}: one mask is of {_sizes(mine)}, the other of {_sizes(theirs)}")
        return pairs

    def _multiply_(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors:
            torch._foreach_mul_(list(tensors.values()), [self._factor(name, each) for name, each in tensors.items()])

    def _factor(self, name: str, like: Tensor) -> Tensor:
        """1 and 0 in the precision and place of `like`: of another dtype, a GPU would take one kernel a layer."""
        key = name, like.dtype, like.device
        if key not in self._factors:
            self._factors[key] = torch.empty_like(like).copy_(self._masks[name])
        return self._factors[key]


def _numbers(counts: Sequence[Tensor]) -> list[int]:
    """With one wait for the device."""
    return torch.stack([count.to(counts[0].device) for count in counts]).tolist()


def _packed(mask: Tensor) -> Tensor:
    bits = mask.flatten().cpu().to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _unpacked(bits: Tensor, shape: Sequence[int]) -> Tensor:
    each = (bits.cpu()[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return each.flatten()[: math.prod(shape)].view(*shape).bool()


def _sizes(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "()"
