"""The operations of one forward pass, and the memory that their results need: lifetimes of tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Computed value by value (or row by row), so that the result may be written over an input that nobody reads again.
_IN_PLACE = (
    "relu", "gelu", "silu", "sigmoid", "tanh", "hardtanh", "hardswish", "leaky_relu", "elu", "clamp", "clamp_min",
    "neg", "abs", "exp", "sqrt", "rsqrt", "pow", "add", "sub", "mul", "div", "native_batch_norm",
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "batch_norm_elemt", "native_layer_norm", "_softmax",
    "_safe_softmax", "_log_softmax",
)  # fmt: skip


@dataclass(frozen=True)
class Op:
    """One operation that computes values; views and shapes are none.

    Attributes:
        name: torch's, such as "convolution", "addmm", "relu".
        module: path of the module in whose forward it is called.
        reads, writes: numbers of the activations it reads and writes; parameters and buffers are not among them.
        weights: names of the parameters and buffers it reads.
        shapes: of the tensors it is given, in order.
        output: shape of its first result.
    """

    name: str
    module: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    weights: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]


@dataclass(frozen=True)
class Recording:
    """The operations of one image's inference in their order.

    `elements` and `item_bytes` are those of each activation, by number; number 0 is the image. `results` are the
    activations that the network returns.
    """

    ops: tuple[Op, ...]
    elements: tuple[int, ...]
    item_bytes: tuple[int, ...]
    results: tuple[int, ...]

    def held(self) -> list[list[int]]:
        """For each operation, the activations that must be in memory while it runs, one of each place.

        *Law.* An activation lives from the operation that writes it (the image: from the start) to the last that
        reads it (a result: to the end). Element-wise operations, BatchNorm and activation functions among them, write
        their result over an input of the same size that is not read again, as fused kernels do; all others need their
        inputs and their result beside each other.
        """
        last = {number: i for i, op in enumerate(self.ops) for number in (*op.reads, *op.writes)}
        last |= dict.fromkeys(self.results, len(self.ops))
        place = list(range(len(self.elements)))
        alive: set[int] = {0}
        held = []
        for i, op in enumerate(self.ops):
            for number in op.writes:
                free = [r for r in op.reads if last[r] == i and r not in op.writes and self._same(r, number)]
                if op.name in _IN_PLACE and free and number not in alive:
                    place[number] = place[free[0]]
            alive |= set(op.writes)
            held.append(sorted({place[number]: number for number in alive | set(op.reads)}.values()))
            alive = {number for number in alive if last.get(number, -1) > i}
        return held

    def _same(self, a: int, b: int) -> bool:
        return (self.elements[a], self.item_bytes[a]) == (self.elements[b], self.item_bytes[b])

    def peak_bytes(self) -> int:
        """The most bytes of activations that are in memory at once, at the precision that the network computes in."""
        return max((sum(self.elements[n] * self.item_bytes[n] for n in now) for now in self.held()), default=0)


class Recorder(TorchDispatchMode):
    """Writes down the operations that a network's forward dispatches; `net` is on the meta device and in eval mode."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__()
        self._path = [""]
        # Numbers are given by storage; the tensors are kept so that no storage is freed and its place used again.
        self._kept: list[Tensor] = [images]
        self._numbers = {_storage(images): 0}
        self._sizes = [(images.numel(), images.element_size())]
        named = chain(net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False))
        self._weights = {_storage(tensor): name for name, tensor in reversed(list(named))}
        self._ops: list[Op] = []
        for name, module in net.named_modules():
            module.register_forward_pre_hook(self._enter(name))
            module.register_forward_hook(self._leave)

    def _enter(self, name: str) -> Any:
        return lambda *_: self._path.append(name)

    def _leave(self, *_: Any) -> None:
        self._path.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outcome = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        results = [each for each in tree_leaves(outcome) if isinstance(each, Tensor) and each.numel()]
        mutates = func._schema.is_mutable
        if results and (mutates or not set(map(_storage, results)) <= set(map(_storage, given))):
            reads = tuple(dict.fromkeys(self._activations(given)))
            weights = dict.fromkeys(self._weights[s] for s in map(_storage, given) if s in self._weights)
            # BatchNorm's statistics and the like are returned too: what is computed is the first result.
            writes = tuple(dict.fromkeys(self._activations(results[:1])))
            self._ops.append(
                Op(
                    name=func._schema.name.partition("::")[2].removesuffix("_"),
                    module=self._path[-1],
                    reads=reads,
                    writes=writes,
                    weights=tuple(weights),
                    shapes=tuple(tuple(each.shape) for each in given),
                    output=tuple(results[0].shape),
                )
            )
        return outcome

    def _activations(self, tensors: Sequence[Tensor]) -> Iterator[int]:
        for tensor in tensors:
            storage = _storage(tensor)
            if storage in self._weights:
                continue
            if storage not in self._numbers:
                self._numbers[storage] = len(self._sizes)
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self._sizes.append((size, tensor.element_size()))
                self._kept.append(tensor)
            yield self._numbers[storage]

    def recording(self, outcome: Any) -> Recording:
        """What was recorded; `outcome` is what the network returned."""
        results = [each for each in tree_leaves(outcome) if isinstance(each, Tensor)]
        numbers = tuple(self._numbers[s] for s in map(_storage, results) if s in self._numbers)
        elements, item_bytes = zip(*self._sizes, strict=True)
        return Recording(tuple(self._ops), elements, item_bytes, numbers)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
