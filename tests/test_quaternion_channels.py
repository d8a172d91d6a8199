"""Quaternion channels are removed four real ones at a time, and the network stays the one that has them at zero."""

import copy

import lightning as L
import pytest
import torch
from torch import nn

import smallnets
from smallnets import models
from smallnets.callbacks import ChannelPruning
from smallnets.data import Digits
from smallnets.errors import UserError
from smallnets.layers import QuaternionConv2d, QuaternionLinear
from smallnets.measure import Budget, count
from smallnets.models import spec_of
from smallnets.pruning import prune_channels, prune_to
from smallnets.pruning.channel_scores import channel_scores
from smallnets.pruning.groups import remove, silence
from smallnets.pruning.quaternion_channels import quaternion_groups, real_twin
from smallnets.pruning.structured import channel_groups
from smallnets.surgery import to_quaternion
from smallnets.training.classifier import Classifier

FAMILIES = {
    "ResNet": (lambda: models.ResNet(blocks=[1, 2], channels=[8, 16]), 16, 3, 5),
    "bottleneck": (lambda: models.ResNet(100, blocks=[1, 1], channels=[8, 16], block="bottleneck"), 16, 3, 7),
    "VGG": (
        lambda: models.VGG(blocks=[1, 1], channels=[8, 16], batch_norm=True, head_widths=[16], image_size=16), 16, 3, 3,
    ),
    "LeNet": (lambda: models.LeNet(hidden_widths=[16, 8], image_size=8), 8, 1, 2),
    "ConvNet": (lambda: models.ConvNet(channels=[8], head_widths=[16], image_size=8), 8, 3, 3),
}  # fmt: skip

LAYERS = (nn.Conv2d, nn.Linear, QuaternionConv2d, QuaternionLinear)


@pytest.mark.parametrize("norm", ["real", "whitening"])
@pytest.mark.parametrize("family", FAMILIES)
def test_removed_quaternions_leave_the_network_that_has_them_at_zero(family, norm, tmp_path):
    make, size, channels, number = FAMILIES[family]
    torch.manual_seed(0)
    net = to_quaternion(make(), norm=norm)
    images = torch.randn(8, channels, size, size)
    with torch.no_grad():
        net(images)
    net.eval()
    state = torch.get_rng_state()
    groups = quaternion_groups(net, channel_groups, size)
    assert len(groups) == number
    assert torch.equal(torch.get_rng_state(), state)
    widths = {name: m.weight.shape[0] for name, m in net.named_modules() if hasattr(m, "weight")}
    for group in groups:
        assert all(widths[layer] == 4 * group.width for layer in group.layers)
    removed = {n: list(range(0, group.width, 2)) for n, group in enumerate(groups)}
    before, quiet = count(net, size, channels), silence(copy.deepcopy(net), groups, removed)
    remove(net, groups, removed)
    after = count(net, size, channels)
    assert after.macs < before.macs and after.parameters < before.parameters and after.bytes < before.bytes
    for name, module in net.named_modules():
        if isinstance(module, (QuaternionConv2d, QuaternionLinear)) and any(name in g.layers for g in groups):
            assert module.weight.shape[0] % 4 == 0 and module.weight.shape[0] < widths[name]
    with torch.no_grad():
        torch.testing.assert_close(net(images), quiet(images), atol=1e-4, rtol=1e-4)
    # And the file alone gives it back, and its groups are those of the narrower network.
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    torch.save({"smallnets": {"net": spec_of(net)}, "state_dict": state}, tmp_path / "x.ckpt")
    loaded = smallnets.load(tmp_path / "x.ckpt")
    with torch.no_grad():
        assert torch.equal(loaded(images), net(images))
    real = [m.weight.shape[0] for m in real_twin(loaded).modules() if isinstance(m, LAYERS)]
    assert real == [m.weight.shape[0] for m in net.modules() if isinstance(m, LAYERS)]


def test_the_score_of_a_quaternion_channel_is_that_of_its_four_rows():
    net = to_quaternion(models.LeNet(hidden_widths=[8], image_size=4))
    with torch.no_grad():  # row n is n everywhere: quaternion channel 0 has the rows 0, 2, 4, 6 of four weights each
        net.net.head[0].weight.copy_(torch.arange(8.0)[:, None].expand(8, 4))
    (group,) = quaternion_groups(net, channel_groups)
    assert (group.name, group.width) == ("net.head.0", 2)
    assert channel_scores(net, [group], "l1")[0].tolist() == [4.0 * (0 + 2 + 4 + 6), 4.0 * (1 + 3 + 5 + 7)]
    remove(net, [group], {0: [0]})
    assert net.net.head[0].weight[:, 0].tolist() == [1.0, 3.0, 5.0, 7.0]


def test_what_is_joined_and_heads_stay_whole():
    dense = to_quaternion(models.DenseNet(blocks=[2, 2], growth_rate=8, stem_channels=8))
    layers = {layer for group in quaternion_groups(dense, channel_groups, 16) for layer in group.layers}
    assert layers and all(layer.endswith("conv1") for layer in layers), layers
    vit = to_quaternion(models.ViT(dim=32, depth=1, heads=2, mlp_dim=16, head_widths=[8], image_size=16))
    layers = {layer for group in quaternion_groups(vit, channel_groups) for layer in group.layers}
    assert layers == {"net.encoder.0.mlp.0", "net.head.1"}


def test_a_network_that_cannot_be_rebuilt_is_refused():
    own = to_quaternion(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    with pytest.raises(UserError, match="a Sequential cannot be built from its attributes"):
        quaternion_groups(own, channel_groups)


def test_ratios_and_budgets_remove_whole_quaternions_and_the_file_gives_the_network_back(tmp_path):
    net = to_quaternion(models.ResNet(blocks=[1, 1], channels=[16, 24])).eval()
    layers = [m for m in net.modules() if isinstance(m, QuaternionConv2d)]
    dense = [layer.out_channels for layer in layers]
    assert set(dense) == {16, 24}
    prune_channels(net, 0.5, scope="layer")
    layers = [m for m in net.modules() if isinstance(m, QuaternionConv2d)]
    # Half of 4 and of 6 quaternions: 2 and 3.
    assert [layer.out_channels for layer in layers] == [{16: 8, 24: 12}[width] for width in dense]
    limit = count(net).parameters * 2 // 3
    prune_to(net, Budget(parameters=limit))
    assert count(net).parameters <= limit
    assert all(layer.out_channels % 4 == 0 for layer in net.modules() if isinstance(layer, QuaternionConv2d))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(smallnets.load(smallnets.save(net, tmp_path / "net.ckpt"))(images), net(images))


@pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")
def test_the_callback_prunes_quaternion_channels_in_rounds_within_a_fit(tmp_path):
    """16 and 24 channels are 4 and 6 quaternions: a quarter and half of them go; what is left trains and is loaded."""
    L.seed_everything(7, verbose=False)
    net = to_quaternion(models.ResNet(blocks=[1, 1], channels=[16, 24]))
    dense = [m.out_channels for m in net.modules() if isinstance(m, QuaternionConv2d)]
    pruning = ChannelPruning(ratio=0.5, scope="layer", rounds=2, every="1ep")
    seen = []

    class Looks(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append([m.out_channels for m in module.net.modules() if isinstance(m, QuaternionConv2d)])

    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, use_distributed_sampler=False, enable_checkpointing=False, callbacks=[pruning, Looks()],
    )  # fmt: skip
    module = Classifier(net, lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9))
    trainer.fit(module, Digits(image_size=8, train_size=80, batch_size=40))
    assert set(dense) == {16, 24}
    assert seen == [
        [widths[width] for width in dense] for widths in ({16: 16, 24: 24}, {16: 12, 24: 20}, {16: 8, 24: 12})
    ]
    assert pruning.record["after"]["parameters"] == count(net, image_size=8).parameters
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(smallnets.load(smallnets.save(net, tmp_path / "x.ckpt"))(images), net.eval()(images))
