"""`narrow_NAME` with a limit: the widest network of that shape, by one option of the command line."""

import json

import pytest
import torch
import yaml

import smallnets
from smallnets import models
from smallnets.cli import main
from smallnets.config import expand_config, expand_net
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.models.spec import spec_of
from smallnets.pruning import Narrow


def parameters(channels: list[int], classes: int) -> int:
    """Of a CIFAR ResNet-18 with these channels, from the definition: two blocks a stage, projections at three."""
    first, *_ = channels
    total, before = 27 * first + 2 * first, first
    for width in channels:
        total += 9 * before * width + 27 * width**2 + 8 * width
        total += before * width + 2 * width if before != width else 0
        before = width
    return total + before * classes + classes


@pytest.mark.parametrize("limit", [198_603, 198_602, 11_173_961, 99_999_999])
def test_the_widest_that_fits_and_the_next_does_not(limit):
    """All factors at which a width of 64, 128, 256, 512 changes are those of the last."""
    widths = [[max(1, k * full // 512) for full in (64, 128, 256, 512)] for k in range(1, 513)]
    assert parameters(widths[-1], 10) == 11_173_962
    best = [each for each in widths if parameters(each, 10) <= limit][-1]
    net = Narrow("resnet18", parameters=limit)
    assert type(net) is models.ResNet and net.channels == best
    assert count(net).parameters == parameters(best, 10)


def test_it_starts_as_its_class_with_these_numbers():
    torch.manual_seed(5)
    net = Narrow("resnet20", macs="5M", num_classes=100, in_channels=1, image_size=16)
    assert count(net, 16, 1).macs <= 5_000_000
    torch.manual_seed(5)
    again = models.resnet20(100, channels=net.channels, in_channels=1)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_quaternion_widths_stay_multiples_of_four():
    net = Narrow("quaternion_resnet18", parameters="200k")
    assert all(width % 4 == 0 for width in net.of["init_args"]["channels"])
    assert count(net).parameters <= 200_000 < 2_800_000


def test_a_name_is_written_out_with_all_its_numbers():
    spec = expand_net("narrow_resnet20")
    assert spec["class_path"] == "smallnets.pruning.Narrow"
    assert spec["init_args"]["of"] == "resnet20" and spec["init_args"]["parameters"] is None
    config = expand_config({"model": {"net": {"class_path": "narrow_resnet20", "init_args": {"parameters": "1M"}}}})
    assert config["model"]["net"]["init_args"]["parameters"] == "1M"
    with pytest.raises(UserError, match="resnet20"):
        expand_net("narrow_resnet21")


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "needs a limit"), (["--model.net.parameters=20"], "narrowest"), (["--model.net.paramters=1M"], "paramters")],
)
def test_a_mistake_is_told_in_one_line(options, message, capsys):
    assert main(["summary", "--model.net=narrow_resnet20", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_run_and_its_checkpoint_need_nothing_of_it(here, tiny):
    assert main(tiny("fit", "--name=w", "--model.net.parameters=20k", net="narrow_resnet20")) == 0
    run = here / "lightning_logs/w/run-1"
    row = json.loads((run / "row.json").read_text())
    assert row["parameters"] == 19_051 <= 20_000 and row["status"] == "finished"
    net = smallnets.load(run / "checkpoints/best.ckpt")
    spec = spec_of(net)
    assert spec is not None and spec["class_path"] == "smallnets.models.ResNet"
    assert count(net, 8, 1).parameters == 19_051
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["net"]["init_args"]["parameters"] == "20k"
    assert main(["test", "--config", str(run / "config.yaml")]) == 0
    assert main(tiny("fit", "--name=w", "--run=run-1", "--ckpt_path=last", "--model.net.parameters=20k",
                     "--trainer.max_epochs=3", net="narrow_resnet20")) == 0  # fmt: skip
    assert json.loads((run / "row.json").read_text())["epochs"] == 3
