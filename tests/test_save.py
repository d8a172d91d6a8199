"""`smallnets.save`: what was changed outside a run, as a file that `load` and `fit` take."""

import pytest
import torch

import smallnets
from smallnets import models
from smallnets.cli import main
from smallnets.errors import RunError, UserError
from smallnets.pruning import Masks, prune_layers, select
from smallnets.pruning.criteria import magnitude
from smallnets.results.load import load_masks, read_checkpoint

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")


def pruned():
    torch.manual_seed(0)
    net = models.ResNet(blocks=[1, 1], channels=[8, 12]).eval()
    return prune_layers(net, {"stages.*.conv1": 0.5})


def test_a_network_pruned_twice_comes_back_with_its_widths_masks_and_logits(tmp_path):
    net = pruned()
    masks = select(magnitude(net), density=0.2)
    masks.apply_(net)
    path = smallnets.save(net, tmp_path / "made" / "net.ckpt", masks=masks, about={"classes": ["a", "b"]})
    again = smallnets.load(path)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), net(images))
    assert load_masks(path) == masks
    entry = read_checkpoint(path)["smallnets"]
    assert (entry["num_classes"], entry["classes"], entry["mean"]) == (10, ["a", "b"], [])
    assert [p.name for p in path.parent.iterdir()] == ["net.ckpt"]


def test_without_masks_there_are_none(tmp_path):
    assert load_masks(smallnets.save(pruned(), tmp_path / "net.ckpt")) is None


def test_masks_that_the_weights_do_not_keep_are_refused_and_nothing_is_written(tmp_path):
    net = pruned()
    with pytest.raises(RunError, match=r"masked weights are not 0\.0"):
        smallnets.save(net, tmp_path / "net.ckpt", masks=select(magnitude(net), density=0.2))
    with pytest.raises(UserError, match="no such parameter"):
        smallnets.save(net, tmp_path / "net.ckpt", masks=Masks({"other.weight": torch.ones(2, 2, dtype=torch.bool)}))
    assert not list(tmp_path.iterdir())


def test_fit_goes_on_from_it_with_its_masks(here, tiny):
    torch.manual_seed(0)
    net = models.make("lenet_12", num_classes=10, in_channels=1, image_size=8)
    masks = select(magnitude(net), density=0.3)
    masks.apply_(net)
    smallnets.save(net, "start.ckpt", masks=masks)
    assert main(tiny("fit", "--name=on", "--model.init_from=start.ckpt", "--model.check_masks=step")) == 0
    trained = here / "lightning_logs/on/run-1/checkpoints/last.ckpt"
    assert load_masks(trained) == masks
    after = smallnets.load(trained)
    for name, mask in masks.items():
        assert torch.equal(after.get_parameter(name) != 0, mask)
        assert not torch.equal(after.get_parameter(name), net.get_parameter(name)), "it was trained"
