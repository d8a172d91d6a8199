"""Plain stacks of 3x3 convolutions: the VGG of document 000 and its small form."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers.arguments import check_image, per_stage, share, whole, whole_list
from smallnets.layers.init import init_convs


def side_after(net: str, image_size: int, poolings: int) -> int:
    """Side of the map after `poolings` halvings (rounded down); UserError when nothing is left."""
    side = image_size >> poolings
    if side < 1:
        least = 1 << poolings
        raise UserError(
            f"{net} halves the image {poolings} times and needs at least {least} x {least} pixels, "
            f"got image_size {image_size}"
        )
    return side


def conv_stage(in_channels: int, channels: int, convs: int, batch_norm: bool) -> nn.Sequential:
    """`convs` 3x3 convolutions with bias (BatchNorm,) ReLU, then 2x2 max pooling: side s -> s // 2."""
    members: list[nn.Module] = []
    for _ in range(convs):
        members.append(nn.Conv2d(in_channels, channels, 3, padding=1))
        if batch_norm:
            members.append(nn.BatchNorm2d(channels))
        members.append(nn.ReLU())
        in_channels = channels
    return nn.Sequential(*members, nn.MaxPool2d(2))


class VGG(nn.Module):
    """Images (N, in_channels, image_size, image_size) -> logits (N, num_classes). Simonyan & Zisserman; document 000.

    Stages of 3x3 convolutions with bias, each stage ended by 2x2 max pooling; then for every entry of `head_widths`
    dropout, linear and ReLU; then the linear layer to the classes. `head_widths=()` with `batch_norm` is the
    widespread CIFAR form with a single linear head (14,728,266 parameters). Convolutions start as `layers.init_convs`
    says, as in document 000.

    Args:
        blocks: convolutions of each stage.
        channels: channels of each stage.
        batch_norm: BatchNorm after each convolution. Without it the deep form easily fails to learn.
        head_widths: hidden widths of the head, may be empty.
        dropout: share dropped before each hidden layer of the head.
        image_size: side in pixels; the head's first layer has channels[-1] * (image_size >> stages)^2 inputs.

    Raises UserError for arguments that do not fit together, such as an image too small for its poolings.
    """

    def __init__(
        self,
        num_classes: int = 10,
        blocks: Sequence[int] = (2, 2, 3, 3, 3),
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        batch_norm: bool = False,
        head_widths: Sequence[int] = (512, 512),
        dropout: float = 0.5,
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        self.num_classes = whole("num_classes", num_classes)
        self.blocks = whole_list("blocks", blocks)
        self.channels = per_stage("channels", whole_list("channels", channels), len(self.blocks))
        self.batch_norm = batch_norm
        self.head_widths = whole_list("head_widths", head_widths, least_length=0)
        self.dropout = share("dropout", dropout)
        self.in_channels = whole("in_channels", in_channels)
        self.image_size = whole("image_size", image_size)

        side = side_after("VGG", self.image_size, len(self.blocks))
        ins = [self.in_channels, *self.channels]
        self.stages = nn.Sequential(
            *(conv_stage(i, o, n, batch_norm) for i, o, n in zip(ins, self.channels, self.blocks, strict=False))
        )
        self.flatten = nn.Flatten()
        members: list[nn.Module] = []
        widths = [self.channels[-1] * side**2, *self.head_widths]
        for before, after in pairwise(widths):
            members += [nn.Dropout(self.dropout), nn.Linear(before, after), nn.ReLU()]
        self.head = nn.Sequential(*members, nn.Linear(widths[-1], self.num_classes))
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        check_image("VGG", x, self.in_channels, self.image_size)
        return self.head(self.flatten(self.stages(x)))
