"""The small networks of the lottery-ticket papers: LeNet-300-100, LeNet-12, Conv-2, Conv-4, Conv-6 (document 003)."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from smallnets.layers.arguments import check_image, whole, whole_list
from smallnets.layers.init import init_convs
from smallnets.models.vgg import conv_stage, side_after


def linear_stack(widths: Sequence[int], num_classes: int) -> nn.Sequential:
    """Linear and ReLU from width to width, then the linear layer to the classes."""
    members: list[nn.Module] = []
    for before, after in pairwise(widths):
        members += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*members, nn.Linear(widths[-1], num_classes))


class LeNet(nn.Module):
    """Images (N, in_channels, image_size, image_size) -> logits (N, num_classes): a perceptron on the flat image.

    `hidden_widths=(300, 100)` on 28 x 28 grey images is LeNet-300-100 (LeCun et al. 1998; Frankle & Carbin 2019; the
    earlier paper of document 003). Linear layers start as PyTorch draws them. Raises UserError for a wrong argument.
    """

    def __init__(
        self,
        num_classes: int = 10,
        hidden_widths: Sequence[int] = (300, 100),
        in_channels: int = 1,
        image_size: int = 28,
    ) -> None:
        super().__init__()
        self.num_classes = whole("num_classes", num_classes)
        self.hidden_widths = whole_list("hidden_widths", hidden_widths, least_length=0)
        self.in_channels = whole("in_channels", in_channels)
        self.image_size = whole("image_size", image_size)
        self.flatten = nn.Flatten()
        self.head = linear_stack([self.in_channels * self.image_size**2, *self.hidden_widths], self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        check_image("LeNet", x, self.in_channels, self.image_size)
        return self.head(self.flatten(x))


class ConvNet(nn.Module):
    """Images (N, in_channels, image_size, image_size) -> logits (N, num_classes): Conv-2, Conv-4, Conv-6.

    For each entry of `channels` two 3x3 convolutions with bias and 2x2 max pooling; then linear layers of `head_widths`
    with ReLU, and the linear layer to the classes (Frankle & Carbin 2019; the earlier paper of document 003). Neither
    BatchNorm nor dropout. Convolutions start as `layers.init_convs` says. Raises UserError for an image too small for
    its poolings.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: Sequence[int] = (64, 128),
        head_widths: Sequence[int] = (256, 256),
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        self.num_classes = whole("num_classes", num_classes)
        self.channels = whole_list("channels", channels)
        self.head_widths = whole_list("head_widths", head_widths, least_length=0)
        self.in_channels = whole("in_channels", in_channels)
        self.image_size = whole("image_size", image_size)
        side = side_after("ConvNet", self.image_size, len(self.channels))
        steps = pairwise([self.in_channels, *self.channels])
        self.stages = nn.Sequential(*(conv_stage(before, after, 2, False) for before, after in steps))
        self.flatten = nn.Flatten()
        self.head = linear_stack([self.channels[-1] * side**2, *self.head_widths], self.num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        check_image("ConvNet", x, self.in_channels, self.image_size)
        return self.head(self.flatten(self.stages(x)))
