"""How many operations a piece of code asks torch for."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def count_dispatched(fn: Callable[[], Any]) -> int:
    """The number of torch operations that one call of `fn` dispatches: what a step costs before any arithmetic.

    `x + 1` is one operation whatever the size of x, and so is an operation on a list of tensors (`torch._foreach_add`)
    whatever its length; that is why it is faster on small tensors, on a GPU above all, where each operation is at
    least one kernel. Operations that only look at a tensor count as well (`x.t()`, `x.detach()`), and so do the two
    marks that torch sets for its profiler at the ends of every optimizer's step. What `fn` does has been done, once;
    what it raises is raised.
    """
    with _Counter() as counter:
        fn()
    return counter.calls
