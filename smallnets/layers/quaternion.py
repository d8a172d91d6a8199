"""Quaternion layers: the Hamilton product as one real convolution on an assembled kernel (document 003).

Channels are component-blocked: the first quarter of them is the real part r, then i, j and k. The weight W is
multiplied from the left, y = W x:

    y_r = W_r x_r - W_i x_i - W_j x_j - W_k x_k
    y_i = W_i x_r + W_r x_i - W_k x_j + W_j x_k
    y_j = W_j x_r + W_k x_i + W_r x_j - W_i x_k
    y_k = W_k x_r - W_j x_i + W_i x_j + W_r x_k

A layer has a quarter of the real layer's weights and *all* of its multiplications: it is not faster.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from smallnets.errors import UserError
from smallnets.layers.arguments import whole
from smallnets.layers.quaternion_init import init_

# Of each output (row) and input component (column): which component of W it is multiplied by, and with what sign.
COMPONENTS = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))
SIGNS = ((1, -1, -1, -1), (1, 1, -1, 1), (1, 1, 1, -1), (1, -1, 1, 1))


class _Hamilton(nn.Module):
    """A weight (outputs, inputs / 4, ...) and how the real kernel is made of it.

    The widths are those of the weight's shape, so that a narrower weight makes a narrower layer.
    """

    basis: Tensor
    index: Tensor

    def __init__(self, shape: tuple[int, ...], bias: bool, transposed: bool, init: str) -> None:
        super().__init__()
        self.transposed = transposed
        self.init = init
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[0])) if bias else None
        # Row 4 a + b has the sign with which a component of W goes from input component b to output component a.
        signed = F.one_hot(torch.tensor(COMPONENTS), 4) * torch.tensor(SIGNS).unsqueeze(-1)
        index = torch.tensor(COMPONENTS)
        if transposed:
            signed, index = signed.transpose(0, 1), index.T
        self.register_buffer("basis", signed.reshape(16, 4).to(self.weight.dtype), persistent=False)
        self.register_buffer("index", index.flatten(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weight as `init` says and sets the bias to 0."""
        init_(self.weight.detach(), self.init)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def kernel(self) -> Tensor:
        """The real kernel (outputs, inputs, ...): 4 x 4 blocks, each a component of the weight with its sign.

        One product of the 16 x 4 table and the 4 x N components, in one operation forward and one backward; every entry
        is exactly plus or minus one of the weight's. It keeps the weight's memory format.
        """
        weight: Tensor = self.weight
        last = False
        if weight.dim() == 4 and not weight.is_contiguous():
            last = weight.is_contiguous(memory_format=torch.channels_last)
        if last:
            weight = weight.movedim(1, -1)
        parts = weight.reshape(4, -1)
        # Without gradients the same numbers come without a product: no counter of MACs is to take the assembly for the
        # network's own.
        graded = torch.is_grad_enabled()
        rows = self.basis @ parts if graded else parts[self.index] * self.basis.sum(1, keepdim=True)
        rows = rows.view(4, 4, weight.shape[0] // 4, *weight.shape[1:])
        if last:
            blocks = rows.movedim(1, -2)  # (a, outputs / 4, height, width, b, inputs / 4)
            return blocks.reshape(*weight.shape[:-1], -1).movedim(-1, 1)
        return rows.transpose(1, 2).reshape(weight.shape[0], -1, *weight.shape[2:])


class QuaternionLinear(_Hamilton):
    """(..., in_features) -> (..., out_features): y = W x + bias by the Hamilton product, component-blocked.

    `weight` is (out_features, in_features / 4): in_features * out_features / 4 numbers, a quarter of those of a real
    layer; the bias is real and of full width. `transposed` multiplies by the transposed 4 x 4 table instead, which is
    the conjugate of W times x: what programs compute that multiply rows by the same table. `init` is one of
    `quaternion_init.INITS`. Raises UserError for widths that four does not divide.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, transposed: bool = False, init: str = "he"
    ) -> None:
        shape = fours("out_features", out_features), fours("in_features", in_features) // 4
        super().__init__(shape, bias, transposed, init)

    @property
    def in_features(self) -> int:
        """Real inputs, four for each quaternion."""
        return 4 * self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Real outputs, four for each quaternion."""
        return self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.kernel(), self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class QuaternionConv2d(_Hamilton):
    """(N, in_channels, H, W) -> (N, out_channels, H', W') by the Hamilton product; sizes as in `nn.Conv2d`.

    `weight` is (out_channels, in_channels / 4 / groups, height, width), a quarter of a real layer's numbers; the bias
    is real and of full width. `kernel_size`, `stride`, `padding` (numbers, pairs, "same" or "valid"; zeros are padded)
    and `dilation` are those of `nn.Conv2d`. `groups` divides *quaternion* channels: each group has all four components
    of its own. `transposed` and `init` as in `QuaternionLinear`. Raises UserError for channels that four, or groups of
    quaternions that `groups`, does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        transposed: bool = False,
        init: str = "he",
    ) -> None:
        inside, outside = fours("in_channels", in_channels) // 4, fours("out_channels", out_channels) // 4
        if inside % whole("groups", groups) or outside % groups:
            raise UserError(f"groups {groups} does not divide the {inside} and {outside} quaternion channels")
        super().__init__((out_channels, inside // groups, *_pair(kernel_size)), bias, transposed, init)
        self.stride = _pair(stride)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups

    @property
    def in_channels(self) -> int:
        """Real input channels, four for each quaternion."""
        return 4 * self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Real output channels, four for each quaternion."""
        return self.weight.shape[0]

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Height and width."""
        return (self.weight.shape[2], self.weight.shape[3])

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return self._conv(x, self.kernel(), self.bias)
        # A convolution's groups are neighbouring channels: each group's four components are brought together.
        kernel = self._swapped(self.kernel(), 0, 4, self.groups)
        bias = None if self.bias is None else self._swapped(self.bias, 0, 4, self.groups)
        y = self._conv(self._swapped(x, -3, 4, self.groups), kernel, bias)
        return self._swapped(y, -3, self.groups, 4)

    def _conv(self, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        return F.conv2d(x, kernel, bias, self.stride, padding, self.dilation, self.groups)

    @staticmethod
    def _swapped(x: Tensor, dim: int, outer: int, inner: int) -> Tensor:
        """Channels (outer, inner, ...) in the order (inner, outer, ...)."""
        split = x.movedim(dim, 0).unflatten(0, (outer, inner, -1)).transpose(0, 1)
        return split.flatten(0, 2).movedim(0, dim)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}"
        )


def fours(name: str, value: Any) -> int:
    """`value` itself, when it is a positive whole number that four divides; else UserError."""
    if whole(name, value) % 4:
        raise UserError(f"{name} of a quaternion layer must be a multiple of four, got {value}")
    return value
