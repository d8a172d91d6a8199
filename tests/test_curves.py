"""One-shot curves: which weights each method removes, and the verb that evaluates them in one pass."""

import csv
import shutil

import pandas
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import smallnets
from smallnets import models
from smallnets.cli import main
from smallnets.errors import UserError
from smallnets.pruning.curves import accuracies, pruned_copy
from smallnets.results import read_row

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")


def small():
    torch.manual_seed(0)
    return models.ResNet(blocks=[1, 1], channels=[8, 12])


def convolutions(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.3, 0.35, 0.5, 0.9, 1.0])
def test_layer_and_inputs_remove_what_torch_removes(fraction):
    """torch rounds half to even, we half up of what is kept; at these fractions no layer has a half."""
    net = small()
    for method, remove in {
        "layer": lambda m: prune.l1_unstructured(m, "weight", fraction),
        "inputs": lambda m: prune.ln_structured(m, "weight", fraction, n=1, dim=1),
    }.items():
        ours, masks = pruned_copy(net, fraction, method)
        theirs = small()
        for name, module in convolutions(theirs).items():
            remove(module)
            prune.remove(module, "weight")
            mine = ours.get_submodule(name).weight
            assert torch.equal(mine, module.weight), (method, name)
            assert torch.equal(masks[f"{name}.weight"], theirs.get_submodule(name).weight != 0)
        assert torch.equal(ours.head.weight, net.head.weight), "the head stays whole"


def test_global_removes_the_smallest_of_all_layers():
    net = small()
    ours, masks = pruned_copy(net, 0.6, "global")
    pieces = {name: module.weight.detach().abs() for name, module in convolutions(net).items()}
    every = torch.cat([each.flatten() for each in pieces.values()]).sort().values
    total = len(every)
    gone = total - round(0.4 * total)
    limit = every[gone - 1]
    for name, weight in pieces.items():
        assert torch.equal(masks[f"{name}.weight"], weight > limit)
    assert sum(int((m.weight == 0).sum()) for m in convolutions(ours).values()) == gone


def test_channels_make_the_network_smaller_and_leave_one_at_the_end():
    net = small()
    half, masks = pruned_copy(net, 0.5, "channels")
    assert masks is None
    dense = [m.out_channels for m in convolutions(net).values()]
    assert set(dense) == {8, 12}
    assert [m.out_channels for m in convolutions(half).values()] == [width // 2 for width in dense]
    end, _ = pruned_copy(net, 1.0, "channels")
    assert {m.out_channels for m in convolutions(end).values()} == {1}


def test_a_network_without_convolutions_is_pruned_in_its_linear_layers():
    net = models.make("lenet_300_100")
    masks = pruned_copy(net, 0.25, "layer", image_size=28, in_channels=1)[1]
    assert masks is not None and len(masks) == 3
    assert masks.kept == sum(layer.total - round(0.25 * layer.total) for layer in masks.layers)


def test_mistakes():
    with pytest.raises(UserError, match="one of layer, global, inputs, channels, not 'l1'"):
        pruned_copy(small(), 0.5, "l1")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"lies in 0..1, got 1.5"):
        pruned_copy(small(), 1.5, "layer")


class Says(nn.Module):
    """Always the same class."""

    def __init__(self, which):
        super().__init__()
        self.which = which

    def forward(self, images):
        assert not self.training
        return nn.functional.one_hot(torch.full((len(images),), self.which), 3).float()


def test_accuracies_come_from_one_pass():
    passes = []

    def batches():
        passes.append(1)
        yield torch.zeros(3, 1), torch.tensor([0, 0, 1])
        yield torch.zeros(1, 1), torch.tensor([2])

    nets = [Says(which) for which in (0, 1, 2)]
    assert accuracies(nets, batches()) == [0.5, 0.25, 0.25]
    assert passes == [1]
    assert all(net.training for net in nets)
    with pytest.raises(UserError, match="at least one batch"):
        accuracies(nets, [])


def test_the_verb_writes_every_point_and_its_dense_one_is_the_runs_accuracy(here, tiny, capsys):
    assert main(tiny("fit", "--name=one")) == 0
    folder = here / "lightning_logs/one/run-1"
    figure = capsys.readouterr()
    command = ["curves", str(folder / "checkpoints/best.ckpt"), "--fractions", "0,0.5,1", "--device", "cpu"]
    assert main(command) == 0
    with (folder / "curves.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [(p["method"], p["fraction"]) for p in points] == [
        (m, f) for m in ("layer", "global", "inputs", "channels") for f in ("0.0", "0.5", "1.0")
    ]
    row = read_row(folder)
    for point in points:
        if point["fraction"] == "0.0":
            assert float(point["accuracy"]) == row["val_accuracy"], figure
            assert int(point["parameters"]) == int(point["nonzero_parameters"]) == row["parameters"]
    assert row["test_reads"] == 0
    frame = pandas.read_csv(folder / "curves-figure.csv")
    ours = frame[frame["source"] == "one-shot"]
    assert [tuple(line) for line in ours[["method", "fraction", "accuracy"]].values] == [
        (p["method"], float(p["fraction"]), float(p["accuracy"])) for p in points
    ]
    stated = frame[frame["source"] == "document 000"]
    assert set(stated["method"]) == {"layer", "global", "inputs"}, "the document has no physical removal"
    assert stated[(stated["method"] == "global") & (stated["fraction"] == 0.75)]["accuracy"].tolist() == [0.9455]
    assert (folder / "curves-figure.svg").read_text().startswith("<svg")


def test_fine_tuning_keeps_what_was_removed_and_an_ended_run_is_not_run_again(here, tiny, capsys):
    assert main(tiny("fit", "--name=one")) == 0
    dense = here / "lightning_logs/one/run-1/checkpoints/best.ckpt"
    command = ["curves", str(dense), "--fractions", "0.5", "--methods", "layer,channels", "--fine_tune", "1"]
    more = ["--", "--model.optimizer.lr=0.005"]
    assert main([*command, *more]) == 0
    runs = here / "lightning_logs/one-curves"
    folders = [next(each for each in runs.glob(f"run-1-{m}-0.5-1ep-*") if each.is_dir()) for m in ("layer", "channels")]
    masked, smaller = (smallnets.load(folder / "checkpoints/last.ckpt") for folder in folders)
    dense_net = smallnets.load(dense)
    before = pruned_copy(dense_net, 0.5, "layer", image_size=8, in_channels=1)[1]
    for name, mask in before.items():
        assert torch.equal(masked.get_parameter(name) != 0, mask)
        assert not torch.equal(masked.get_parameter(name)[mask], dense_net.get_parameter(name)[mask]), "it was trained"
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in dense_net.parameters())
    with (dense.parent.parent / "curves.csv").open() as file:
        points = list(csv.DictReader(file))
    rows = [read_row(folder) for folder in folders]
    assert [float(p["fine_tuned"]) for p in points] == [row["val_accuracy"] for row in rows]
    assert rows[0]["config"]["model"]["optimizer"]["init_args"]["lr"] == 0.005
    stamps = [path.stat().st_mtime_ns for path in sorted(runs.glob("*/row.json"))]
    assert main([*command, *more]) == 0
    assert [path.stat().st_mtime_ns for path in sorted(runs.glob("*/row.json"))] == stamps
    # Cut off before its first checkpoint, it is begun again; with other arguments it is another run.
    shutil.rmtree(folders[0])
    folders[0].mkdir()
    (folders[0] / "config.yaml").write_text("")
    layer = [*command[:-4], "--methods", "layer", "--fine_tune", "1"]
    assert main([*layer, *more]) == 0
    assert read_row(folders[0])["val_accuracy"] == rows[0]["val_accuracy"]
    assert main([*layer, "--", "--model.optimizer.lr=0.1"]) == 0
    assert len(list(runs.glob("*/row.json"))) == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
        (["nowhere.ckpt", "--methods", "l1"], "--methods are of layer, global, inputs, channels, not 'l1'"),
        (["nowhere.ckpt", "--fractions", "0,2"], "--fractions are shares to remove in 0..1, got '0,2'"),
        ([], "the following arguments are required: CKPT"),
    ],
)
def test_the_verbs_mistakes(here, capsys, arguments, says):
    assert main(["curves", *arguments]) == 2
    assert says in capsys.readouterr().err
