"""The pre-activation residual network in the form that documents 001 and 002 used."""

from collections.abc import Sequence

from torch import Tensor, nn

from smallnets.layers.arguments import copied, odd_per_stage, per_stage, whole, whole_list
from smallnets.layers.blocks import PreActBlock, conv
from smallnets.layers.init import init_convs


class PreActResNet(nn.Module):
    """Images (N, in_channels, H, W) of any size -> logits (N, num_classes). He et al. 2016 (arXiv 1603.05027).

    A bare 3x3 stem of channels[0], stages of `layers.PreActBlock` (stride 2 at the start of every stage but the first),
    global average, linear head. As in the count of document 001 (11,171,146) there is *no* BatchNorm before the head
    and none on the shortcuts. `blocks` and `channels` hold one number a stage; `kernel_sizes` (odd) may be one number
    for all. Convolutions start as `layers.init_convs` says. Raises UserError for arguments that do not fit together.
    """

    def __init__(
        self,
        num_classes: int = 10,
        blocks: Sequence[int] = (2, 2, 2, 2),
        channels: Sequence[int] = (64, 128, 256, 512),
        kernel_sizes: int | Sequence[int] = 3,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes = whole("num_classes", num_classes)
        self.blocks = whole_list("blocks", blocks)
        stages = len(self.blocks)
        self.channels = per_stage("channels", whole_list("channels", channels), stages)
        kernels = odd_per_stage("kernel_sizes", kernel_sizes, stages)
        self.kernel_sizes = copied(kernel_sizes)
        self.in_channels = whole("in_channels", in_channels)

        width = self.channels[0]
        self.conv1 = conv(self.in_channels, width, 3)
        built = []
        for number in range(stages):
            members = []
            for index in range(self.blocks[number]):
                stride = 2 if number > 0 and index == 0 else 1
                members.append(PreActBlock(width, self.channels[number], stride, kernels[number]))
                width = self.channels[number]
            built.append(nn.Sequential(*members))
        self.stages = nn.Sequential(*built)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(width, self.num_classes)
        init_convs(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.average(self.stages(self.conv1(x)))))
