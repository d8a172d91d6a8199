"""int8: weights of one scale a channel, ranges from calibration, and an accuracy that survives."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallnets.compress import TOLERANCE, accuracy, compare_logits, export, open_exported, to_file
from smallnets.errors import RunError

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

SHAPE = (1, 8, 8)


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, normalised."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, *SHAPE) / 16
    return (pixels - 0.3) / 0.38, torch.tensor(labels)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A residual network that knows the digits."""
    from smallnets.models import ResNet

    torch.manual_seed(0)
    net = ResNet(blocks=[1, 1], channels=[8, 16], in_channels=1)
    images, labels = digits()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(80):
        part = torch.randint(0, 1500, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.cross_entropy(net(images[part]), labels[part]).backward()
        optimizer.step()
    return net.eval(), images, labels


def test_accuracy_before_and_after(trained: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    net, images, labels = trained
    path = to_file(net, tmp_path / "a.onnx", SHAPE, dtype="int8", calibration=images[:256])
    held_out, known = images[1500:], labels[1500:]
    before, after = accuracy(net, held_out, known), accuracy(open_exported(path, 1), held_out, known)
    assert before > 0.7  # of ten classes
    assert abs(after - before) < 0.03
    assert compare_logits(net, open_exported(path, 1), held_out).relative < 0.1


def _swapped(weight: Tensor, dim: int) -> None:
    """Two channels in each other's place."""
    with torch.no_grad():
        weight.copy_(weight.index_select(dim, torch.tensor([1, 0, *range(2, weight.shape[dim])])))


def _without_a_channel(net: nn.Module) -> None:
    block: Any = net.stages[1][0]
    nn.init.zeros_(block.conv1.weight.data[3])


def _padded_otherwise(net: nn.Module) -> None:
    conv: Any = net.stages[0][0].conv1
    conv.padding_mode, conv._reversed_padding_repeated_twice = "reflect", [1, 1, 1, 1]


# What an exporter could get wrong, small enough to pass for rounding.
MUTATIONS = {
    "padding of one layer": _padded_otherwise,
    "swapped channels": lambda net: _swapped(net.stages[0][0].conv2.weight, 0),
    "swapped channels of the stem": lambda net: _swapped(net.conv1.weight, 0),
    "swapped inputs": lambda net: _swapped(net.stages[1][0].conv2.weight, 1),
    "lost residual branch": lambda net: nn.init.zeros_(net.stages[1][0].bn2.weight),
    "lost channel": _without_a_channel,
}


@pytest.mark.parametrize("wrong", MUTATIONS)
def test_a_wrong_graph_is_found_before_it_is_rounded(
    trained: tuple[nn.Module, Tensor, Tensor], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, images, _ = trained
    right = export.prepared

    def exported(given: nn.Module, dtype: str) -> nn.Module:
        other = copy.deepcopy(given)
        MUTATIONS[wrong](other)
        return right(other, dtype)

    monkeypatch.setattr(export, "prepared", exported)
    with pytest.raises(RunError, match=r"a.onnx, before its numbers are rounded, does not compute what the network"):
        to_file(net, tmp_path / "a.onnx", SHAPE, dtype="int8", calibration=images[:64])
    assert not list(tmp_path.iterdir())
    # The file alone, held against the network, is told for fp32 too; most of them would have passed for int8.
    other = copy.deepcopy(net)
    MUTATIONS[wrong](other)
    assert compare_logits(net, other, images[:64]).relative > 10 * TOLERANCE["fp32"]


def test_weights_are_int8_with_a_scale_for_each_channel(
    trained: tuple[nn.Module, Tensor, Tensor], tmp_path: Path
) -> None:
    net, images, _ = trained
    model = onnx.load(to_file(net, tmp_path / "a.onnx", SHAPE, dtype="int8", calibration=images[:64]))
    stored = {each.name: each for each in model.graph.initializer}
    weights = [each for each in stored.values() if each.data_type == onnx.TensorProto.INT8 and len(each.dims) >= 2]
    # Six convolutions (a projection among them) and the head; each of them is all of its layer's weights.
    assert sorted(tuple(each.dims) for each in weights) == sorted(
        tuple(each.shape) for each in net.parameters() if each.dim() >= 2
    )
    scales = {
        node.input[0]: stored[node.input[1]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }
    convolutions = [each for each in weights if len(each.dims) == 4]
    assert [scales[each.name].dims[0] for each in convolutions] == [each.dims[0] for each in convolutions]


def test_ranges_come_from_the_calibration_images(trained: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    net, images, _ = trained
    dim = to_file(net, tmp_path / "a.onnx", SHAPE, dtype="int8", calibration=images[:64] / 20)
    fitting = to_file(net, tmp_path / "b.onnx", SHAPE, dtype="int8", calibration=images[:64])
    errors = [compare_logits(net, open_exported(path, 1), images[:64]).relative for path in (dim, fitting)]
    assert errors[0] > 5 * errors[1]


def test_zeros_of_a_mask_stay_zeros(trained: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    from smallnets.surgery import fold

    net, images, _ = trained
    pruned = fold(net)
    with torch.no_grad():
        pruned.stages[1][0].conv2.weight.view(-1)[::2] = 0
    model = onnx.load(to_file(pruned, tmp_path / "a.onnx", SHAPE, dtype="int8", calibration=images[:64]))
    (found,) = [
        onnx.numpy_helper.to_array(each)
        for each in model.graph.initializer
        if tuple(each.dims) == (16, 16, 3, 3) and each.data_type == onnx.TensorProto.INT8
    ]
    assert (found.reshape(-1)[::2] == 0).all()
    assert (found.reshape(-1)[1::2] != 0).mean() > 0.9


def test_the_file_is_smaller_by_what_is_worked_out(trained: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    from smallnets.measure.sparse import stored_forms
    from smallnets.models import resnet20
    from smallnets.surgery import fold

    net = resnet20(in_channels=1).eval()
    files = {
        dtype: to_file(net, tmp_path / f"{dtype}.onnx", SHAPE, dtype=dtype, calibration=trained[1][:8])
        for dtype in ("fp32", "fp16", "int8")
    }
    sizes = {dtype: path.stat().st_size for dtype, path in files.items()}
    forms = stored_forms(fold(net), 8, 1).total
    assert 0 < sizes["fp32"] - forms.fp32 < 30_000
    assert 0 < sizes["fp16"] - forms.fp16 < 30_000
    assert 0 < sizes["int8"] - forms.int8 < 80_000
    # The weights in the files are exactly a half and a quarter.
    bytes_of = {}
    for dtype, path in files.items():
        arrays = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
        bytes_of[dtype] = sum(each.nbytes for each in arrays if each.ndim >= 2)
    assert bytes_of == {"fp32": 4 * forms.entries, "fp16": 2 * forms.entries, "int8": forms.entries}
