"""`smallnets connect`: the line between networks whose ends are known from their rows."""

import json

import pytest
import torch

import smallnets
from smallnets.cli import main
from smallnets.pruning.connectivity import interpolated, overlap
from smallnets.pruning.curves import accuracies
from smallnets.pruning.lottery import restore_, snapshot
from smallnets.results import read_row
from smallnets.results.load import load_masks

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")


def last(name):
    return f"lightning_logs/{name}/run-1/checkpoints/last.ckpt"


def connect(capsys, *argv):
    capsys.readouterr()
    assert main(["connect", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_ends_are_the_rows_and_the_middle_is_the_mean_network(here, tiny, own, capsys):
    for seed in (1, 2):
        assert main(tiny("fit", f"--data.order_seed={seed}", f"--name=child-{seed}", net="own_nets.Net")) == 0
    found = connect(capsys, last("child-1"), last("child-2"), "--points", "3")
    rows = [read_row(here / f"lightning_logs/child-{seed}/run-1") for seed in (1, 2)]
    assert found["errors"][::2] == pytest.approx([1 - row["val_accuracy_last"] for row in rows], abs=1e-6)
    assert found["images"] == 150 and found["masks"] is None and found["alphas"] == [0, 0.5, 1]
    assert found["barrier"] == pytest.approx(
        max(found["errors"]) - (found["errors"][0] + found["errors"][2]) / 2, abs=2e-6
    )

    from smallnets.data import Digits

    data = Digits(image_size=8, in_channels=1)
    data.setup("validate")
    nets = [smallnets.load(last(f"child-{seed}")) for seed in (1, 2)]
    restore_(nets[0], interpolated(*map(snapshot, nets), 0.5))
    images = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert found["errors"][1] == pytest.approx(1 - accuracies(nets[:1], images)[0], abs=1e-6)

    anew = connect(capsys, last("child-1"), last("child-2"), "--points", "3", "--recalibrate", "2")
    assert anew["recalibrated_on"] == 2 and anew["errors"] != found["errors"], "other statistics, other errors"
    assert main(["connect", last("child-1"), last("child-2")]) == 0
    out = capsys.readouterr().out
    assert out.count("error") == 11 and "points: highest" in out and "Jaccard" not in out


def test_the_masks_of_two_rounds_beside_chance(here, tiny, capsys):
    assert main(tiny(
        "fit", "--trainer.callbacks+=LotteryTicket", "--trainer.callbacks.rounds=2", "--trainer.max_epochs=3",
        "--trainer.callbacks.epochs_per_round=1", "--trainer.callbacks.fraction=0.5", "--name=lot",
    )) == 0  # fmt: skip
    rounds = [last("lot").replace("last", f"round-{n}") for n in (1, 2)]
    found = connect(capsys, *rounds, "--points", "3")["masks"]
    assert found["jaccard"] == pytest.approx(0.5, abs=1e-3), "half of the first, and nothing else"
    assert found["chance"] == pytest.approx(overlap(*map(load_masks, rounds)).chance, abs=1e-6)
    assert found["kept"][1] == found["kept"][0] // 2
    assert main(["connect", *rounds]) == 0
    assert "masks: Jaccard 0.5" in capsys.readouterr().out


def test_what_cannot_be_connected_is_told(here, tiny, capsys):
    assert main(tiny("fit", "--trainer.max_epochs=1", "--name=a")) == 0
    assert main(tiny("fit", "--trainer.max_epochs=1", "--name=b", "--data.split_seed=1")) == 0
    assert main(tiny("fit", "--trainer.max_epochs=1", "--name=c", net="lenet_300_100")) == 0
    torch.save(torch.load(last("a"), weights_only=True), "alone.ckpt")
    for argv, says in (
        ([last("a"), last("b")], "split_seed 1"), ([last("a"), last("c")], "another network"),
        (["alone.ckpt", last("a")], "lies in no run's checkpoints folder"),
        ([last("a"), last("a"), "--points", "2"], "points must be a whole number, 3 or more, got 2"),
        ([last("a"), last("a"), "--recalibrate", "-1"], "--recalibrate is 0 or more"),
        ([last("a"), "none.ckpt"], "no checkpoint at none.ckpt"),
    ):  # fmt: skip
        assert main(["connect", *argv]) == 2
        assert says in capsys.readouterr().err
