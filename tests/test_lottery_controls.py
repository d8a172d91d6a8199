"""Controls: what differs from the ticket, what does not, and fits from a stored round."""

import copy

import pytest
import torch
from test_interruption import checkpoint, equal, process

import smallnets
from smallnets.callbacks import LotteryControl
from smallnets.callbacks.rounds import LOTTERY_KEY
from smallnets.cli import main
from smallnets.errors import UserError
from smallnets.pruning import Masks
from smallnets.pruning.connectivity import error_barrier
from smallnets.pruning.controls import random_erk_masks, random_masks, shuffled_masks
from smallnets.results import read_row

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")


def ticket():
    generator = torch.Generator().manual_seed(5)
    conv = torch.rand(8, 4, 3, 3, generator=generator) < 0.3
    conv[2], conv[3] = False, True
    return Masks({"conv.weight": conv, "head.weight": torch.rand(10, 32, generator=generator) < 0.6})


@pytest.mark.parametrize("make", [random_masks, shuffled_masks, random_erk_masks])
def test_controls_keep_as_many_and_are_functions_of_their_seed(make):
    masks, state = ticket(), torch.get_rng_state()
    one, same, other = make(masks, 1), make(masks, 1), make(masks, 2)
    assert one == same and one != other and one != masks
    assert one.kept == masks.kept
    assert torch.equal(state, torch.get_rng_state())


def test_what_each_control_leaves_as_it_is():
    masks = ticket()
    counts = [layer.kept for layer in masks.layers]
    assert [layer.kept for layer in random_masks(masks, 1).layers] == counts
    shuffled = shuffled_masks(masks, 1)
    for name, mask in masks.items():
        assert torch.equal(shuffled[name].flatten(1).sum(1), mask.flatten(1).sum(1)), name
    assert not shuffled["conv.weight"][2].any() and shuffled["conv.weight"][3].all()
    assert not torch.equal(
        random_masks(masks, 1)["conv.weight"].flatten(1).sum(1), masks["conv.weight"].flatten(1).sum(1)
    )
    assert [layer.kept for layer in random_erk_masks(masks, 1).layers] != counts


def test_every_place_is_equally_likely():
    masks = Masks({"a": torch.tensor([[True, False, False, False], [True, True, False, False]])})
    for make, expected in ((random_masks, [[0.375] * 4] * 2), (shuffled_masks, [[0.25] * 4, [0.5] * 4])):
        mean = torch.stack([make(masks, seed)["a"].float() for seed in range(2000)]).mean(0)
        assert torch.allclose(mean, torch.tensor(expected), atol=0.05), make.__name__


# -- fits from a stored round -----------------------------------------------------------------------------------------

RUN = (
    "--data.augment=[crop]", "--model.interval=step", "--model.scheduler=CosineAnnealingLR",
    "--model.scheduler.T_max=15", "--checkpoint_every=1",
)  # fmt: skip
TICKET = (
    "--trainer.callbacks+=LotteryTicket", "--trainer.callbacks.rounds=2", "--trainer.callbacks.epochs_per_round=3",
    "--trainer.callbacks.fraction=0.3", "--trainer.callbacks.rewind_to=7it", "--trainer.max_epochs=7", "--name=ticket",
)  # fmt: skip
ROUND = "lightning_logs/ticket/run-1/checkpoints/round-2.ckpt"


@pytest.fixture
def lottery(here, tiny, own):
    assert main(tiny("fit", *RUN, *TICKET, net="own_nets.Net")) == 0

    def control(name, epochs, *more):
        options = ("--trainer.callbacks+=LotteryControl", f"--trainer.callbacks.from_round={ROUND}")
        last = (f"--trainer.callbacks.control={name}", f"--trainer.max_epochs={epochs}", f"--name={name}")
        return tiny("fit", *RUN, *options, *last, *more, net="own_nets.Net")

    return control


def folder(here, name):
    return here / f"lightning_logs/{name}/run-1"


def masks_of(path):
    return Masks.from_state_dict(checkpoint(path)["smallnets"]["masks"])


def test_the_ticket_trained_again_is_the_round(here, lottery):
    """Weights, buffers, schedule, order, augmentation and dropout from step 7 on: bit for bit, also when killed."""
    command = lottery("ticket", 2, "--name=again")
    assert main(command) == 0
    stored, again = checkpoint(here / ROUND), checkpoint(folder(here, "again") / "checkpoints/last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(stored[part], again[part]), part
    assert stored["smallnets"]["masks"].keys() == again["smallnets"]["masks"].keys()
    kill = ["--trainer.callbacks+=own_nets.KillAt", "--trainer.callbacks.step=3"]
    assert process([*command, "--name=cut", *kill]).returncode == -9
    assert main([*command, "--name=cut", "--ckpt_path=last"]) == 0
    cut = checkpoint(folder(here, "cut") / "checkpoints/last.ckpt")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert equal(cut[part], again[part]), part


def test_each_control_trains_as_many_weights_from_its_start(here, lottery, capsys, monkeypatch):
    starts = {}
    began = LotteryControl.on_train_epoch_start

    def noting(self, trainer, module):
        began(self, trainer, module)
        if trainer.current_epoch == 0:
            starts[self.control] = (copy.deepcopy(module.net.state_dict()), trainer.optimizers[0].param_groups[0]["lr"])

    monkeypatch.setattr(LotteryControl, "on_train_epoch_start", noting)
    rewound = checkpoint(here / ROUND)[LOTTERY_KEY]["weights"]
    late = checkpoint(here / ROUND)[LOTTERY_KEY]["standing"]["groups"][0]["lr"]
    mine = masks_of(here / ROUND)
    assert late < 0.02
    for name in ("random_mask", "shuffled_mask", "one_shot"):
        assert main(lottery(name, 2)) == 0
    assert main(lottery("one_shot_as_long", 4)) == 0  # two rounds of two epochs
    for name in ("random_reinit", "random_erk", "snip", "grasp", "synflow"):
        assert main(lottery(name, 3)) == 0
    assert main(lottery("dense", 7)) == 0
    chosen = {name: masks_of(folder(here, name) / "checkpoints/last.ckpt") for name in starts if name != "dense"}
    assert chosen["one_shot_as_long"] == chosen["one_shot"]
    initial = starts["dense"][0]
    for name, masks in chosen.items():
        assert masks.kept == mine.kept, name
        assert (masks == mine) == (name == "random_reinit"), name
        state, rate = starts[name]
        late_start = name in ("random_mask", "shuffled_mask", "one_shot", "one_shot_as_long")
        assert rate == (late if late_start and name != "one_shot_as_long" else 0.02), name
        origin = rewound if late_start else initial
        same = all(
            torch.equal(value, origin[key] * masks[key] if key in masks else origin[key])
            for key, value in state.items()
        )
        assert same == (name != "random_reinit"), name
    assert [a.kept for a in chosen["random_mask"].layers] == [b.kept for b in mine.layers]
    dense = checkpoint(folder(here, "dense") / "checkpoints/last.ckpt")
    assert dense["smallnets"]["masks"] is None and dense["global_step"] == 35
    assert read_row(folder(here, "snip"))["status"] == "finished"
    # 4 epochs of 5 steps, but the two that the first of them had before step 7: as the ticket's first round.
    long = checkpoint(folder(here, "one_shot_as_long") / "checkpoints/last.ckpt")
    assert long["global_step"] == 4 * 5 - 2
    assert read_row(folder(here, "one_shot_as_long"))["pruning"][0]["rounds"][0]["epochs"] == 4

    trained = smallnets.load(here / ROUND.replace("round-2", "round-0"))
    weights = {key: trained.state_dict()[key].abs() for key in mine}
    least = min(weights[key][mask].min() for key, mask in chosen["one_shot"].items())
    most = max(weights[key][~mask].max() for key, mask in chosen["one_shot"].items())
    assert least >= most

    reinit = starts["random_reinit"][0]["body.6.weight"]
    kept = mine["body.6.weight"]
    assert not torch.equal(reinit[kept], initial["body.6.weight"][kept])
    assert main(lottery("random_reinit", 3, "--name=other", "--trainer.callbacks.mask_seed=9")) == 0
    assert not torch.equal(starts["random_reinit"][0]["body.6.weight"], reinit)


def test_the_dense_network_trained_again_from_its_rewind_point_is_round_0(here, tiny, own):
    """With the same seeds, bit for bit, where the optimizer has no memory to lose; with another order it is a child."""
    plain = (*RUN, "--model.optimizer.momentum=0")
    assert main(tiny("fit", *plain, *TICKET, net="own_nets.Net")) == 0
    parent = here / ROUND.replace("round-2", "round-0")
    first = (f"--trainer.callbacks.from_round={parent}", "--trainer.callbacks.control=ticket", "--trainer.max_epochs=2")
    for name, more in (("same", []), ("order", ["--data.order_seed=9"]), ("augment", ["--data.augment_seed=9"])):
        command = tiny("fit", *plain, "--trainer.callbacks+=LotteryControl", *first, *more, net="own_nets.Net")
        assert main([*command, f"--name={name}"]) == 0
        stored, child = checkpoint(parent), checkpoint(folder(here, name) / "checkpoints/last.ckpt")
        assert equal(stored["state_dict"], child["state_dict"]) == (name == "same"), name
        assert equal(stored["lr_schedulers"], child["lr_schedulers"]) and child["smallnets"]["masks"] is None
        (record,) = read_row(folder(here, name))["pruning"]
        assert (record["round"], record["density"], record["kept"]) == (0, 1, 392)
    same, order = (smallnets.load(folder(here, name) / "checkpoints/last.ckpt") for name in ("same", "order"))
    norm = lambda net: -float(net.body[6].weight.detach().norm())  # noqa: E731
    assert error_barrier(same, smallnets.load(parent), norm).height == 0
    assert error_barrier(same, order, norm).height > 0, "two places, and a line"


@pytest.mark.parametrize("net", ["lenet_12", "quaternion"])
def test_the_narrow_network_is_the_widest_with_as_few_parameters(here, tiny, own, capsys, net):
    """One width more is too much; drawn anew, dense, and loaded; killed and resumed too."""
    more = ["--model.net.of.init_args.width=32"] if net == "quaternion" else []
    assert main(tiny("fit", *RUN, *TICKET, *more, net=net)) == 0
    options = ("--trainer.callbacks+=LotteryControl", f"--trainer.callbacks.from_round={ROUND}")
    last = ("--trainer.callbacks.control=narrow", "--trainer.max_epochs=3")
    command = tiny("fit", *RUN, *options, *last, *more, net=net)
    assert main([*command, "--name=narrow"]) == 0
    parent, net_ = (smallnets.load(path) for path in (here / ROUND, folder(here, "narrow") / "checkpoints/last.ckpt"))
    every, masks = sum(p.numel() for p in parent.parameters()), masks_of(here / ROUND)
    limit, own_count = every - masks.total + masks.kept, sum(p.numel() for p in net_.parameters())
    (record,) = read_row(folder(here, "narrow"))["pruning"]
    assert (record["parameters"], record["density"]) == (own_count, masks.density)
    assert read_row(folder(here, "narrow"))["nonzero_parameters"] <= own_count <= limit
    if net == "lenet_12":
        width = net_.head[0].out_features
        assert own_count == 64 * width + width + 10 * width + 10 <= limit < own_count + 75
        assert width < 12
    else:
        width = net_.net.body[0].out_channels
        assert own_count == width * 9 + 2 * width + 10 * 4 * width + 10  # 4 components of gray-extended images
        assert width % 4 == 0 and width < 32 and own_count + 4 * 51 > limit
    assert checkpoint(folder(here, "narrow") / "checkpoints/last.ckpt")["smallnets"]["masks"] is None
    kill = ["--trainer.callbacks+=own_nets.KillAt", "--trainer.callbacks.step=7"]
    assert process([*command, "--name=cut", *kill]).returncode == -9
    assert main([*command, "--name=cut", "--ckpt_path=last"]) == 0
    whole, cut = (checkpoint(folder(here, name) / "checkpoints/last.ckpt") for name in ("narrow", "cut"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(whole[part], cut[part]), part
    assert main([*command, "--name=other", "--trainer.callbacks.mask_seed=9"]) == 0
    assert not equal(checkpoint(folder(here, "other") / "checkpoints/last.ckpt")["state_dict"], whole["state_dict"])


def test_controls_choose_whole_quaternions_where_their_lottery_did(here, tiny, own, capsys):
    unit = "--trainer.callbacks.unit=quaternion"
    assert main(tiny("fit", *RUN, *TICKET, unit, net="quaternion")) == 0
    mine = masks_of(here / ROUND)
    # 72 weights are 18 quaternions: 18 - 6 - 4 = 8; the real head 320 - 96 - 68 = 156.
    assert [layer.kept for layer in mine.layers] == [4 * 8, 156]
    options = ("--trainer.callbacks+=LotteryControl", f"--trainer.callbacks.from_round={ROUND}")
    for name in ("ticket", "random_mask", "shuffled_mask", "random_erk", "one_shot", "snip", "random_reinit"):
        epochs = 2 if name in ("ticket", "random_mask", "shuffled_mask", "one_shot") else 3
        last = (f"--trainer.callbacks.control={name}", f"--trainer.max_epochs={epochs}", f"--name={name}")
        assert main(tiny("fit", *RUN, *options, *last, net="quaternion")) == 0
        masks = masks_of(folder(here, name) / "checkpoints/last.ckpt")
        assert [layer.kept for layer in masks.layers] == [4 * 8, 156], name
        assert (masks == mine) == (name in ("ticket", "random_reinit")), name
        parts = masks["net.body.0.weight"].chunk(4)
        assert all(torch.equal(part, parts[0]) for part in parts), name
    last = ("--trainer.callbacks.control=synflow", "--trainer.max_epochs=3")
    assert main(tiny("fit", *RUN, *options, *last, net="quaternion")) == 2
    assert "synflow scores single weights, anew in rounds: it has no unit quaternion" in capsys.readouterr().err


def rounds(*numbers):
    return "[" + ", ".join(f'"{ROUND.replace("round-2", f"round-{n}")}"' for n in numbers) + "]"


@pytest.mark.parametrize("name", ["shuffled_mask", "snip", "random_reinit"])
def test_several_rounds_in_one_fit_are_those_of_a_fit_each(here, lottery, name):
    """Bit for bit, from the rewind point within an epoch and from the start; also when killed in the second."""
    each = 2 if name == "shuffled_mask" else 3
    for number in (2, 1):
        assert (
            main(lottery(name, each, f"--trainer.callbacks.from_round={rounds(number)}", f"--name=one-{number}")) == 0
        )
    both = lottery(name, 2 * each, f"--trainer.callbacks.from_round={rounds(2, 1)}")
    assert main([*both, "--name=both"]) == 0
    kill = ["--trainer.callbacks+=own_nets.KillAt", f"--trainer.callbacks.step={5 * each + 2}"]
    assert process([*both, "--name=cut", *kill]).returncode == -9
    assert main([*both, "--name=cut", "--ckpt_path=last"]) == 0
    for run in ("both", "cut"):
        (record,) = read_row(folder(here, run))["pruning"]
        for number, entry in zip((2, 1), record["rounds"], strict=True):
            alone = checkpoint(folder(here, f"one-{number}") / "checkpoints/last.ckpt")
            ours = checkpoint(folder(here, run) / "checkpoints" / f"round-{number}.ckpt")
            for part in ("state_dict", "optimizer_states", "lr_schedulers"):
                assert equal(alone[part], ours[part]), (run, number, part)
            assert equal(alone["smallnets"]["masks"], ours["smallnets"]["masks"])
            row = read_row(folder(here, f"one-{number}"))
            (single,) = row["pruning"][0]["rounds"]
            assert single["checkpoint"] == "checkpoints/last.ckpt" and single["epochs"] == each
            assert entry["checkpoint"] == f"checkpoints/round-{number}.ckpt"
            timed = ("seconds", "checkpoint")
            assert {k: v for k, v in entry.items() if k not in timed} == {
                k: v for k, v in single.items() if k not in timed
            }
            assert entry["val_accuracy_best"] == row["val_accuracy"], "of the round's epochs alone"
            assert entry["val_accuracy"] == row["val_accuracy_last"] and entry["from_round"].endswith(f"{number}.ckpt")


@pytest.mark.thorough
@pytest.mark.parametrize("control", ["random_mask", "narrow"])
def test_two_processes_hold_the_same_control(here, tiny, own, tmp_path, control):
    """From a round of a lottery that chose at random: the masks of one process, and equal weights on both ranks."""
    out = tmp_path / "ranks"
    out.mkdir()
    random = "--trainer.callbacks.criterion=random"
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=20")
    hashes = ("--trainer.callbacks+=own_nets.RankHashes", f"--trainer.callbacks.folder={out}")
    if control == "random_mask":
        done = process(tiny("fit", *RUN, *two, *hashes, *TICKET, random, net="own_nets.Net"))
        assert done.returncode == 0, done.stderr
        a, b = (torch.load(out / f"rank{r}.pt")["state"] for r in (0, 1))
        assert equal(a, b)
        assert main(tiny("fit", *RUN, *TICKET, random, "--name=alone", net="own_nets.Net")) == 0
        assert masks_of(here / ROUND) == masks_of(here / ROUND.replace("/ticket/", "/alone/")), "drawn, not found"
    else:
        assert main(tiny("fit", *RUN, *TICKET, net="own_nets.Net")) == 0
    options = ("--trainer.callbacks+=LotteryControl", f"--trainer.callbacks.from_round={here / ROUND}")
    last = (f"--trainer.callbacks.control={control}", f"--trainer.max_epochs={2 if control == 'random_mask' else 3}")
    done = process(tiny("fit", *RUN, *two, *hashes, *options, *last, "--name=two", net="own_nets.Net"))
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(out / f"rank{r}.pt")["state"] for r in (0, 1))
    assert equal(a, b) and equal(a, smallnets.load(folder(here, "two") / "checkpoints/last.ckpt").state_dict())
    if control == "random_mask":
        masks = masks_of(folder(here, "two") / "checkpoints/last.ckpt")
        assert [layer.kept for layer in masks.layers] == [layer.kept for layer in masks_of(here / ROUND).layers]
        assert all(not a[name][~mask].any() for name, mask in masks.items())
    else:
        assert a["body.0.weight"].shape[0] < 8


def test_the_dense_control_is_recorded(here, lottery):
    assert main(lottery("dense", 7)) == 0
    (record,) = read_row(folder(here, "dense"))["pruning"]
    assert record["control"] == "dense" and record["density"] == 1 and record["kept"] == record["total"] > 0
    assert [entry["epochs"] for entry in record["rounds"]] == [7]


WRONG = [
    ("random_mask", 3, [], "max_epochs must be 2 for random_mask of round 2, got 3"),
    ("snip", 2, [], "max_epochs must be 3 for snip of round 2, got 2"),
    ("dense", 3, [], "max_epochs must be 7 for dense of round 2, got 3"),
    ("ticket", 2, ["--data.batch_size=50"], "an epoch has 4 steps here and 5 in the lottery"),
    ("ticket", 2, ["--model.net.width=4"], "is of another network: body.0.weight"),
    ("random_mask", 2, [f"--trainer.callbacks.from_round={ROUND.replace('-2.ckpt', '-0.ckpt')}"],
     "-0.ckpt is of the dense training, without masks: random_mask takes a later round"),
    ("one_shot_as_long", 3, [], "max_epochs must be 4 for one_shot_as_long of round 2, got 3"),
    ("narrow", 3, [f"--trainer.callbacks.from_round={rounds(1, 2)}"], "one checkpoint is expected, got 2"),
    ("ticket", 2, ["--trainer.check_val_every_n_epoch=3"], "a round of 2 epochs may have no validation"),
    ("snip", 3, [f"--trainer.callbacks.from_round={rounds(1, 2)}"], "be 6 for snip of each of rounds 1, 2, got 3"),
    ("snip", 6, [f"--trainer.callbacks.from_round={rounds(2, 2)}"], "from_round names round 2 twice"),
    ("dense", 7, [f"--trainer.callbacks.from_round={rounds(1, 2)}"], "one checkpoint is expected, got 2"),
    ("snip", 3, ["--trainer.callbacks.from_round=[]"], "a checkpoint, or several, is expected, got 0"),
    ("ticket", 2, ["--trainer.callbacks.from_round=nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    ("ticket", 2, ["--trainer.callbacks.from_round=lightning_logs/plain/run-1/checkpoints/last.ckpt"],
     "not of a lottery"),
]  # fmt: skip


def test_a_control_that_compares_nothing_is_refused(lottery, tiny, capsys):
    assert main(tiny("fit", "--name=plain", net="own_nets.Net")) == 0
    for name, epochs, more, says in WRONG:
        assert main(lottery(name, epochs, *more, "--name=wrong")) == 2
        assert says in capsys.readouterr().err
    again = [*TICKET, "--name=other", "--seed_everything=3"]
    assert main(tiny("fit", *RUN, *again, net="own_nets.Net")) == 0
    both = f'["{ROUND}", "{ROUND.replace("ticket", "other").replace("-2.ckpt", "-1.ckpt")}"]'
    assert main(lottery("snip", 6, f"--trainer.callbacks.from_round={both}", "--name=wrong")) == 2
    assert "other/run-1/checkpoints/round-1.ckpt is of another lottery than" in capsys.readouterr().err


def test_an_unknown_control_is_named():
    with pytest.raises(UserError, match="control must be one of ticket, random_mask"):
        LotteryControl("round-1.ckpt", "magic")
