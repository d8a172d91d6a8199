"""A checkpoint of a changed network, through its file, to the logits of the network that was saved."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import shaken
from torch import nn

from smallnets.cli import main
from smallnets.compress import open_exported
from smallnets.measure import count
from smallnets.models import ResNet
from smallnets.pruning import Masks, prune_channels, select
from smallnets.pruning.criteria import magnitude
from smallnets.results.save import save
from smallnets.surgery import remove_stage, to_quaternion


def resnet(in_channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return shaken(ResNet(blocks=[1, 1, 1], channels=[8, 16, 16], in_channels=in_channels)).eval()


def pruned() -> tuple[nn.Module, Masks | None]:
    net = prune_channels(resnet(), ratio=0.5)
    assert count(net).parameters < 0.6 * count(resnet()).parameters
    return net, None


def masked() -> tuple[nn.Module, Masks | None]:
    net = resnet()
    masks = select(magnitude(net, Masks.dense(net)), density=0.3)
    masks.apply_(net)
    return net, masks


CHANGED: dict[str, Callable[[], tuple[nn.Module, Masks | None]]] = {
    "channels": pruned,
    "masks": masked,
    "quaternion": lambda: (shaken(to_quaternion(resnet(4))), None),
    "stage": lambda: (remove_stage(resnet(), 3), None),
}


@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("change", CHANGED)
def test_the_file_of_a_checkpoint(change: str, format: str, here: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    net, masks = CHANGED[change]()
    net.eval()
    save(net, here / "a.ckpt", masks=masks)
    assert main(["export", "a.ckpt", f"--format={format}", "--calls=0"]) == 0
    images = torch.randn(5, net.in_channels, 32, 32)
    with torch.no_grad():
        expected = net(images)
    found = open_exported(here / f"a.{format}", threads=1)(images)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    counts = count(net, 32, net.in_channels)
    card = (here / f"a.{format}.md").read_text()
    assert f"| parameters | {counts.parameters:,} |" in card
    assert f"| nonzero parameters | {counts.nonzero_parameters:,} |" in card
    if format == "onnx" and masks is not None:
        assert sum(zeros(here / "a.onnx")) == masks.total - masks.kept


def zeros(path: Path) -> list[int]:
    """Zeros in each weight of an ONNX file."""
    import onnx

    arrays = (onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer)
    return [int((each == 0).sum()) for each in arrays if each.ndim >= 2]
