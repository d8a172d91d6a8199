"""remove_stage: document 004's counts, kept weights, and a network that its attributes describe."""

import copy

import pytest
import torch
from torch import nn

import smallnets
from smallnets import models
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.models import build, spec_of
from smallnets.pruning import prune_layers
from smallnets.surgery import remove_stage

# Network, stage, the names of the shorter network's tensors that are new (a prefix of each), arguments that are left.
CASES = [
    (lambda: models.resnet20(), 3, ("head.weight",), {"blocks": [3, 3], "channels": [16, 32], "strides": None}),
    (lambda: models.resnet20(), 2, ("stages.1.0.conv1.", "stages.1.0.shortcut.0."), {"channels": [16, 64]}),
    (
        lambda: models.resnet20(), 1, ("stages.0.0.conv1.", "stages.0.0.shortcut.0."),
        {"channels": [32, 64], "strides": [2, 2], "stem_channels": 16},
    ),
    (lambda: models.resnet20(shortcut="A"), 3, ("head.weight",), {"shortcut": "A"}),
    (
        lambda: models.ResNet(channels=[8, 12, 16, 20], strides=[1, 2, 4, 2], kernel_sizes=[3, 3, 5, 3]), 3,
        ("stages.2.0.conv1.", "stages.2.0.shortcut.0."), {"strides": [1, 2, 2], "kernel_sizes": [3, 3, 3]},
    ),
    (
        lambda: models.ResNet(blocks=[1, 1], channels=[8, 12], block="bottleneck"), 2, ("head.weight",),
        {"channels": [8]},
    ),
    # Equal channels and a stride of 1 leave nothing to fit.
    (lambda: models.ResNet(blocks=[1, 1], channels=[8, 8], strides=[1, 1]), 2, (), {"strides": [1]}),
    (lambda: models.PreActResNet(channels=[8, 12, 16, 20]), 4, ("head.weight",), {"blocks": [2, 2, 2]}),
    (
        lambda: models.PreActResNet(channels=[8, 12, 16, 20]), 2,
        ("stages.1.0.bn1.", "stages.1.0.conv1.", "stages.1.0.shortcut."), {"channels": [8, 16, 20]},
    ),
    (lambda: models.vgg16_s(), 5, ("head.1.weight",), {"blocks": [2, 2, 3, 3], "channels": [16, 32, 64, 128]}),
    (lambda: models.vgg16_s(batch_norm=True), 2, ("stages.1.0.", "head.1.weight"), {"channels": [16, 64, 128, 128]}),
]  # fmt: skip


def test_document_004s_removal_has_its_exact_counts():
    net = models.resnet18()
    assert remove_stage(net, 4) is net
    counts = count(net)
    assert (counts.parameters, counts.macs) == (2_777_674, 421_202_432)
    # With the authors' stride of 4 into the third stage: as many parameters, fewer MACs.
    strided = remove_stage(models.resnet18(strides=[1, 2, 4, 2]), 4)
    assert count(strided).parameters == 2_777_674
    assert 320_000_000 < count(strided).macs < 321_000_000
    assert shapes(strided) == shapes(models.ResNet(blocks=[2, 2, 2], channels=[64, 128, 256], strides=[1, 2, 4]))
    # With a 4x4 pooling that is not fitted to the larger map the head has 1,024 inputs.
    assert count(remove_stage(models.resnet18(pool=4), 4)).parameters == 2_785_354


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in net.state_dict().items()}


@pytest.mark.parametrize(("make", "stage", "new", "left"), CASES)
def test_kept_layers_keep_their_weights_and_the_attributes_describe_the_rest(make, stage, new, left, tmp_path):
    net = make().train()
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point() and value.dim() == 1:
                value.uniform_(0.5, 1.5)
    before = copy.deepcopy(net.state_dict())
    stem = next(net.parameters())
    stem.requires_grad_(False)
    remove_stage(net, stage)

    assert net.training and len(net.stages) == len(net.channels)
    assert next(net.parameters()) is stem and not stem.requires_grad
    assert all(p.requires_grad for p in net.parameters() if p is not stem)
    for name, value in net.state_dict().items():
        if name.startswith(new):
            assert torch.isfinite(value.float()).all()
            continue
        parts = name.split(".")
        if parts[0] == "stages" and int(parts[1]) >= stage - 1:
            parts[1] = str(int(parts[1]) + 1)
        assert torch.equal(value, before[".".join(parts)]), name
    assert all(any(name.startswith(prefix) for name in net.state_dict()) for prefix in new)

    spec = spec_of(net)
    assert spec is not None and shapes(build(spec)) == shapes(net)
    assert {name: spec["init_args"][name] for name in left} == left
    images = torch.rand(2, 3, 32, 32)
    assert net(images).shape == (2, 10)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"smallnets": {"net": spec}, "state_dict": state}, tmp_path / "best.ckpt")
    assert torch.equal(smallnets.load(tmp_path / "best.ckpt")(images), net.eval()(images))


def test_later_stages_keep_their_strides():
    """Without stage 2 of four, each later stage still halves the side; without stage 1, the second does."""
    for stage, sides in ((2, [32, 16, 8]), (1, [16, 8, 4]), (4, [32, 16, 8])):
        net = remove_stage(models.resnet18_s(), stage)
        x = net.relu(net.bn1(net.conv1(torch.zeros(1, 3, 32, 32))))
        came = []
        for each in net.stages:
            x = each(x)
            came.append(x.shape[-1])
        assert came == sides


def test_new_layers_come_from_the_global_generator_and_stages_can_go_one_by_one():
    def shortened(seed: int) -> nn.Module:
        net = models.resnet20()
        torch.manual_seed(seed)
        return remove_stage(remove_stage(net, 3), 2)

    a, b, c = shortened(0), shortened(0), shortened(1)
    assert torch.equal(a.head.weight, b.head.weight) and not torch.equal(a.head.weight, c.head.weight)
    assert a.head.in_features == 16 and a.blocks == [3]
    prune_layers(a, {"stages.*.conv?": 0.3})
    assert a(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_type_and_mode_stay():
    net = remove_stage(models.resnet20().double().eval(), 3)
    assert all(p.dtype == torch.float64 for p in net.parameters())
    assert not any(m.training for m in net.modules())


@pytest.mark.parametrize(
    ("make", "stage", "message"),
    [
        (models.resnet20, 0, "ResNet has stages 1 to 3, got 0"),
        (models.resnet20, 4, "ResNet has stages 1 to 3, got 4"),
        (models.resnet20, True, "got True"),
        (lambda: models.ResNet(blocks=[1], channels=[8]), 1, "one stage only"),
        (models.preact_resnet18, 1, "PreActResNet cannot lose stage 1: conv1.weight"),
        (models.lenet_12, 1, "LeNet has no stage to remove"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), 1, "Sequential has no stage to remove"),
        (lambda: models.DenseNet(blocks=[1, 1]), 2, "DenseNet has no stage to remove"),
        (lambda: prune_layers(models.resnet20(), {"conv1": 0.3}), 3, "remove stages before pruning channels"),
    ],
)
def test_what_is_not_sound_is_refused_and_changes_nothing(make, stage, message):
    net = make()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UserError, match=message):
        remove_stage(net, stage)
    assert shapes(net) == {name: value.shape for name, value in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
