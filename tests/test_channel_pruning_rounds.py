"""ChannelPruning while and after a network trains: rounds, budgets, controls, interruption, ranks."""

import copy
import csv
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_interruption import checkpoint, equal, process
from test_tensorboard import assert_pictures
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

import smallnets
from smallnets import models
from smallnets.callbacks import EMA, ChannelPruning, ParameterBudget
from smallnets.callbacks.layer_bars import layer_bars
from smallnets.callbacks.structure import digest
from smallnets.cli import main
from smallnets.data import Digits, chunks
from smallnets.data.seeds import global_seed, mix
from smallnets.errors import UserError
from smallnets.measure import Budget, BudgetExceeded, count
from smallnets.pruning import fresh_like, prune_channels, prune_to
from smallnets.pruning.channel_plan import ChannelPlan
from smallnets.pruning.structured import channel_groups
from smallnets.results import read_row
from smallnets.training.classifier import Classifier

pytestmark = [
    pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]
IMAGE = {"image_size": 8, "in_channels": 1}
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "smallnets")
NET = ("--model.net.blocks=[1,1]", "--model.net.channels=[8,16]")
# Three epochs of two steps: a round after each of the first two.
TWO_ROUNDS = {"ratio": 0.5, "rounds": 2, "every": "1ep"}


def resnet():
    """5,122 parameters; four groups: 8 and 8 channels in the first stage, 16 and 16 in the second."""
    torch.manual_seed(0)
    return models.ResNet(blocks=[1, 1], channels=[8, 16], in_channels=1)


def widths(net):
    return [group.width for group in channel_groups(net, **IMAGE)]


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def digits(**given):
    return Digits(**{**IMAGE, "train_size": 80, "batch_size": 40, "augment": ["crop"], **given})


def classifier(net=None, **given):
    options = {"scheduler": lambda o: CosineAnnealingLR(o, T_max=6), "interval": "step", **given}
    return Classifier(net or resnet(), optimizer=lambda p: SGD(p, lr=0.05, momentum=0.9), **options)


def fit(module, *callbacks, ckpt_path=None, data=None, **given):
    trainer = L.Trainer(
        **{"max_epochs": 3, "num_sanity_val_steps": 0, "use_distributed_sampler": False, **given},
        callbacks=list(callbacks), accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )  # fmt: skip
    trainer.fit(module, datamodule=data or digits(), ckpt_path=ckpt_path)
    return trainer


def options(**given):
    return ["--trainer.callbacks+=ChannelPruning", *[f"--trainer.callbacks.{k}={v}" for k, v in given.items()]]


class Watch(L.Callback):
    """Before each step: the network, rate, and how many parameters the optimizer has state of, and has."""

    def __init__(self):
        self.nets, self.rates, self.states, self.trained = [], [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        (optimizer,) = trainer.optimizers
        self.nets.append(copy.deepcopy(module.net))
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.states.append(len(optimizer.state))
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.trained.append(mine == {id(p) for p in module.net.parameters()})

    def on_before_optimizer_step(self, trainer, module, optimizer):
        assert all(p.grad is not None for p in module.net.parameters())


# -- the plan, in plain PyTorch ----------------------------------------------------------------------------------------


def test_shares_and_budgets_after_each_round():
    linear = ChannelPlan(ratio=0.29, rounds=2)
    assert [math.floor(linear.share_after(k) * 200) for k in (1, 2)] == [29, 58]  # 0.29 * 200 is 57.999... in floats
    geometric = ChannelPlan(ratio=0.75, rounds=2, curve="geometric")
    assert [geometric.share_after(k) for k in (1, 2)] == [0.5, 0.75]
    for curve, limits in (("linear", (700, 400)), ("geometric", (632, 400))):  # 400 * 2.5 ** 0.5 is 632.4...
        plan = ChannelPlan(budget=Budget(parameters=400, macs=90), rounds=2, curve=curve)
        whole = {"parameters": 1_000, "macs": 80}
        assert tuple(plan.budget_after(k, whole).parameters for k in (1, 2)) == limits
        assert plan.budget_after(1, whole).macs == 90, "a limit that is kept already stays"


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_after_each_round_are_those_of_the_whole_network(scope):
    net, plan = resnet(), ChannelPlan(ratio=0.7, scope=scope, rounds=3, floor=1)
    whole = plan.measure(net, **IMAGE)
    assert list(whole.values()) == [8, 8, 16, 16]
    for number in (1, 2, 3):
        plan.prune(net, number, whole, **IMAGE)
        now = [len(net.get_submodule(name).weight) for name in whole]
        if scope == "layer":
            assert now == [w - w * 7 * number // 30 for w in whole.values()]
        else:
            assert sum(now) == 48 - 48 * 7 * number // 30
    once = prune_channels(resnet(), 0.7, scope=scope, **IMAGE)
    alone = ChannelPlan(ratio=0.7, scope=scope)
    assert equal(dict(alone.prune(resnet(), 1, whole, **IMAGE).state_dict()), dict(once.state_dict()))


def test_a_group_that_is_down_to_one_channel_is_counted_still():
    """At 0.9 the narrow groups have one channel left after round one, and are no longer among the groups."""
    net, plan = resnet(), ChannelPlan(ratio=0.9, scope="global", criterion="random", rounds=3)
    whole = plan.measure(net, **IMAGE)
    for number in (1, 2, 3):
        plan.prune(net, number, whole, seed=number, **IMAGE)
    assert sum(len(net.get_submodule(name).weight) for name in whole) == 48 - 43


# -- in a fit ----------------------------------------------------------------------------------------------------------


def test_between_rounds_it_trains_on_with_a_new_optimizer_and_the_same_schedule(here):
    watch, plain, pruning = Watch(), Watch(), ChannelPruning(**TWO_ROUNDS)
    fit(classifier(), watch, pruning)
    fit(classifier(), plain)
    assert [parameters(n) for n in watch.nets[:2]] == [5_122] * 2
    assert [sum(widths(n)) for n in watch.nets] == [48, 48, 36, 36, 24, 24]
    assert watch.rates == plain.rates, "the rate goes on"
    full = len(list(resnet().parameters()))
    assert watch.states == [0, full, 0, full, 0, full] and all(watch.trained)
    assert [each["step"] for each in pruning.record["rounds"]] == [2, 4]


def test_the_choice_is_that_of_the_functions(here):
    """What the callback leaves equals, bitwise, the plan's functions on the weights that the fit had at that step."""

    class Before(L.Callback):
        def on_train_epoch_start(self, trainer, module):
            self.net = copy.deepcopy(module.net)

    before, module, budget = Before(), classifier(), {"parameters": 2_000, "scope": "layer", "multiple": 2}
    watch = Watch()
    fit(module, before, ChannelPruning(**budget, at="2ep"), watch)
    expected = prune_to(before.net, Budget(parameters=2_000), scope="layer", multiple=2, **IMAGE)
    assert equal(dict(watch.nets[4].state_dict()), dict(expected.state_dict()))
    assert parameters(watch.nets[3]) == 5_122 > 2_000 >= parameters(module.net)


def test_after_training(here):
    save = ModelCheckpoint(dirpath=here, filename="last")
    watch, pruning, module = Watch(), ChannelPruning(ratio=0.5, at="3ep"), classifier()
    trainer = fit(module, watch, pruning, save)
    assert {sum(widths(n)) for n in watch.nets} == {48} and sum(widths(module.net)) == 24
    stored = checkpoint(here / "last.ckpt")
    assert equal(dict(stored["state_dict"]), dict(module.state_dict()))
    assert stored["optimizer_states"][0]["state"] == {}
    assert [each["step"] for each in pruning.record["rounds"]] == [6]
    assert trainer.callback_metrics["val/loss"].isfinite()
    # Fine-tuning, a second fit with the same callback, prunes no further.
    fit(module, watch, pruning)
    assert sum(widths(module.net)) == 24 and len(pruning.record["rounds"]) == 1


def test_criteria_that_need_data_see_the_same_images_at_the_same_step(here):
    nets = []
    for fast in (False, True):
        watch = Watch() if not fast else None
        module = classifier(fast=fast)
        fit(module, ChannelPruning(ratio=0.4, criterion="taylor", at="0ep", batches=2), *[watch] * (not fast))
        assert sum(widths(module.net)) == 48 - 19
        nets.append(dict(module.net.state_dict()))
    assert equal(nets[0], nets[1])


def test_ema_and_gradient_accumulation(here):
    class Average(L.Callback):
        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
            shown.append(sum(widths(copy.deepcopy(module.net))))

    shown: list[int] = []
    module, pruning = classifier(), ChannelPruning(**TWO_ROUNDS)
    fit(module, EMA(decay=0.5), pruning, Average(), accumulate_grad_batches=2, data=digits(train_size=160))
    assert sorted(set(shown), reverse=True) == [48, 36, 24]
    assert [each["step"] for each in pruning.record["rounds"]] == [2, 4] and sum(widths(module.net)) == 24


# -- what is written down, and the budget ------------------------------------------------------------------------------


def test_rounds_are_in_the_row_the_curves_and_lines_and_best_is_of_the_last(here, tiny, capsys):
    given = [*options(ratio=0.5, rounds=2, every="2it", curve="geometric"), "--data.batch_size=100"]
    budget = ["--trainer.callbacks+=ParameterBudget", "--trainer.callbacks.parameters=3k"]
    run = tiny("fit", *NET, *budget, *given, "--trainer.max_epochs=3", "--name=one", net="ResNet")
    assert main(run) == 0
    out = capsys.readouterr().out
    assert "ChannelPruning: round 1 of 2, step 2: 5,122 -> " in out and "ChannelPruning: round 2 of 2, step 4: " in out
    folder = here / "lightning_logs/one/run-1"
    row, net = read_row(folder), smallnets.load(folder / "checkpoints/best.ckpt")
    counts = count(net, **IMAGE)
    (entry,) = row["pruning"]
    first, last = entry["rounds"]
    assert (first["step"], last["step"]) == (2, 4) and first["after"] == last["before"]
    assert entry["before"] == first["before"] and entry["after"] == last["after"]
    assert {k: v for k, v in last["after"].items() if k != "nonzero_parameters"} == {
        "parameters": counts.parameters, "macs": counts.macs, "bytes": counts.bytes,
    }  # fmt: skip
    layers = (torch.nn.Conv2d, torch.nn.Linear)
    assert entry["widths"] == {n: len(m.weight) for n, m in net.named_modules() if isinstance(m, layers)}
    # Output channels of all layers.
    assert [sum(each["widths"].values()) for each in (first, last)] == [first["kept_channels"], last["kept_channels"]]
    assert sum(entry["widths_before"].values()) == first["kept_channels"] + first["removed_channels"]
    assert first["kept_channels"] == last["kept_channels"] + last["removed_channels"]
    assert last["widths"] == entry["widths"] and first["widths"].keys() == last["widths"].keys()
    assert (entry["ratio"], entry["curve"], row["parameters"]) == (0.5, "geometric", counts.parameters)
    with (folder / "metrics.csv").open() as file:
        rows = {int(r["step"]): r for r in csv.DictReader(file)}
    assert rows[2]["channels/parameters"] == str(first["after"]["parameters"])
    assert (rows[4]["channels/macs"], rows[4]["channels/conv1"]) == (str(counts.macs), str(len(net.conv1.weight)))
    # The budget is checked, and logged, when no round is ahead; the dense network is over it.
    assert rows[4]["budget/parameters"] == str(counts.parameters) and not rows[0].get("budget/parameters")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [e.step for e in events.Scalars("channels/head")] == [2, 4]
    whole = entry["widths_before"]
    pictures = {
        each["step"]: layer_bars({n: (each["widths"][n], whole[n]) for n, _ in net.named_modules() if n in whole})
        for each in (first, last)
    }
    assert_pictures(events, "layers/channels", pictures)


@pytest.mark.parametrize("at", ["2ep", "3ep"])
def test_a_budget_that_the_last_round_misses_breaks_the_run_there(here, at):
    watch = Watch()
    with pytest.raises(BudgetExceeded, match="limit 100"):
        fit(classifier(), watch, ParameterBudget(parameters=100), ChannelPruning(ratio=0.5, at=at))
    assert len(watch.nets) == 2 * int(at[0])


# -- controls ----------------------------------------------------------------------------------------------------------


def test_controls_have_the_shape_or_the_size_and_fresh_weights(here):
    start = resnet()
    pruned = prune_channels(copy.deepcopy(start), 0.5, **IMAGE)
    for control in ("scratch", "narrow"):
        watch, module = Watch(), classifier(copy.deepcopy(start))
        fit(module, watch, ChannelPruning(**TWO_ROUNDS, control=control), ParameterBudget(parameters="5k"))
        net = watch.nets[0]
        if control == "scratch":
            seed = mix(mix(global_seed(), 5), 0)
            assert equal(dict(net.state_dict()), dict(fresh_like(pruned, seed).state_dict()))
        else:
            # The widest ResNet of widths 8f and 16f with no more parameters.
            narrower = [models.ResNet(blocks=[1, 1], channels=[max(1, w // 2), w], in_channels=1) for w in range(1, 17)]
            best = max(n for n in map(parameters, narrower) if n <= parameters(pruned))
            assert parameters(net) == best < 5_122
        assert len(watch.nets) == 6 and parameters(module.net) == parameters(net), "as long as the other"


def test_the_network_of_init_from_is_what_a_control_without_a_request_is_of(here, tiny):
    assert main(tiny("fit", *NET, *options(ratio=0.5, at="1ep"), "--name=one", net="ResNet")) == 0
    path = here / "lightning_logs/one/run-1/checkpoints/last.ckpt"
    pruned = smallnets.load(path)
    for control in ("scratch", "narrow"):
        run = tiny(
            "fit", *NET, *options(control=control), f"--model.init_from={path}", f"--name={control}", net="ResNet"
        )
        assert main(run) == 0
        # Resumed, it has the control's widths again.
        assert main([*run, "--ckpt_path=last", "--trainer.max_epochs=3"]) == 0
        net = smallnets.load(here / f"lightning_logs/{control}/run-1/checkpoints/last.ckpt")
        same = {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in pruned.state_dict().items()}
        assert same == (control == "scratch") and parameters(net) <= parameters(pruned)


# -- interruption ------------------------------------------------------------------------------------------------------

HARD = {
    "averaged, in steps": (lambda: [EMA(decay=0.5)], TWO_ROUNDS, {}),
    "taylor to a budget": (
        list,
        {**TWO_ROUNDS, "ratio": None, "macs": 20_000, "criterion": "taylor", "batches": 2},
        {},
    ),
    "at the end": (list, {"ratio": 0.5, "criterion": "random", "at": "3ep"}, {"interval": "epoch", "warmup": 1}),
}


@pytest.mark.parametrize(("others", "how", "module"), HARD.values(), ids=HARD.keys())
def test_resumed_from_any_step_it_ends_where_the_uninterrupted_run_ends(here, others, how, module):
    def callbacks(folder):
        each = ModelCheckpoint(dirpath=folder, save_top_k=-1, every_n_train_steps=1, filename="{step}")
        epochs = ModelCheckpoint(dirpath=folder, save_top_k=-1, save_on_train_epoch_end=True, filename="{epoch}")
        return [ChannelPruning(**how), *others(), each, epochs]

    data = {"train_size": 120}  # three steps an epoch
    fit(classifier(**module), *callbacks(here / "whole"), data=digits(**data))
    whole = checkpoint(here / "whole/epoch=2.ckpt")
    for name in ("step=1", "step=2", "epoch=0", "step=4", "step=5", "epoch=1", "step=7", "step=8"):
        folder = here / f"from{name}"
        fit(classifier(**module), *callbacks(folder), ckpt_path=here / f"whole/{name}.ckpt", data=digits(**data))
        again = checkpoint(folder / "epoch=2.ckpt")
        for part in PARTS:
            assert equal(whole[part], again[part]), f"{part}, resumed from {name}"
        (key,) = [k for k in whole["callbacks"] if k.startswith("ChannelPruning")]
        assert equal(whole["callbacks"][key], again["callbacks"][key]), f"resumed from {name}"


KILL = '''
import os, signal
from lightning.pytorch.callbacks import Callback


class KillInside(Callback):
    """Gone when the epoch has begun at that step: right after the change, or before it where this one comes first."""

    def __init__(self, step: int):
        self.step = step

    def on_train_epoch_start(self, trainer, module):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.mark.parametrize(
    ("how", "fast"),
    [("first", "false"), ("last", "true"), pytest.param("within", "false", marks=pytest.mark.slow)],
)
def test_killed_right_before_or_after_a_change(here, tiny, own, how, fast):
    (own / "kill.py").write_text(KILL)
    kill = ["--trainer.callbacks+=kill.KillInside", "--trainer.callbacks.step=2"]
    if how == "within":
        kill = ["--trainer.callbacks+=own_nets.KillAt", "--trainer.callbacks.step=3"]
    pruning = options(ratio=0.5, rounds=2, every="1ep")
    more = ["--data.augment=[crop]", "--data.batch_size=100", "--trainer.max_epochs=3", f"--model.fast={fast}"]
    step = ["--checkpoint_every=1"] * (how == "within")
    run = tiny("fit", *NET, *more, *step, net="ResNet")
    assert main([*run, *pruning, "--name=whole"]) == 0
    died = process([*run, *(kill + pruning if how == "first" else pruning + kill), "--name=cut"])
    assert died.returncode == -9, died.stderr
    assert main([*run, *pruning, "--name=cut", "--ckpt_path=last"]) == 0
    folders = [here / f"lightning_logs/{name}/run-1" for name in ("whole", "cut")]
    for which in ("last", "best"):
        a, b = (checkpoint(folder / f"checkpoints/{which}.ckpt") for folder in folders)
        for part in PARTS:
            assert equal(a[part], b[part]), f"{part} of {which}.ckpt"
    assert read_row(folders[0])["pruning"] == read_row(folders[1])["pruning"]
    assert (folders[0] / "metrics.csv").read_text() == (folders[1] / "metrics.csv").read_text()


@pytest.mark.filterwarnings("default:Be aware that when using `ckpt_path`")
def test_a_resume_with_another_schedule_is_refused(here, tiny, capsys):
    run = tiny("fit", *NET, "--name=one", "--data.batch_size=100", net="ResNet")
    assert main([*run, *options(ratio=0.5, at="1ep")]) == 0
    more = ["--ckpt_path=last", "--trainer.max_epochs=3"]
    assert main([*run, *options(ratio=0.6, at="1ep"), *more]) == 2
    assert "with these ratios or settings (ratio was 0.5, now 0.6)" in capsys.readouterr().err


@pytest.mark.filterwarnings("default:Be aware that when using `ckpt_path`")
def test_a_resume_whose_epochs_have_other_steps_is_refused(here):
    save = ModelCheckpoint(dirpath=here / "c", save_top_k=-1, save_on_train_epoch_end=True, filename="{epoch}")
    fit(classifier(), ChannelPruning(ratio=0.5, at="1ep"), save)
    with pytest.raises(UserError, match=r"stands at step 4 with rounds at \[2\], and .* would have them at \[1\]"):
        fit(
            classifier(), ChannelPruning(ratio=0.5, at="1ep"), ckpt_path=here / "c/epoch=1.ckpt", max_epochs=9,
            limit_train_batches=1,
        )  # fmt: skip


def test_the_fast_mode_ends_as_the_default_mode(here, tiny, monkeypatch):
    monkeypatch.setattr(chunks, "STEPS", 2)
    run = tiny("fit", *NET, *options(**TWO_ROUNDS), "--data.augment=[crop]", "--trainer.max_epochs=3", net="ResNet")
    for name, more in {"plain": [], "fast": ["--model.fast=true"]}.items():
        assert main([*run, f"--name={name}", *more]) == 0
    folders = [here / f"lightning_logs/{name}/run-1" for name in ("plain", "fast")]
    a, b = (checkpoint(folder / "checkpoints/last.ckpt") for folder in folders)
    for part in PARTS:
        assert equal(a[part], b[part]), part
    assert (folders[0] / "metrics.csv").read_text() == (folders[1] / "metrics.csv").read_text()


# -- ranks -------------------------------------------------------------------------------------------------------------

RANKS = '''
import torch
from lightning.pytorch.callbacks import Callback
from smallnets.callbacks import channels, structure
from smallnets.errors import UserError
from smallnets.pruning.channel_plan import ChannelPlan


class Ranks(Callback):
    """The parameters that each rank holds before each step. On ranks other than 0 nothing may be chosen."""

    def on_train_start(self, trainer, module):
        self.seen = []
        if trainer.global_rank:
            ChannelPlan.prune = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append({name: p.detach().clone() for name, p in module.net.named_parameters()})

    def on_fit_end(self, trainer, module):
        self.on_train_batch_start(trainer, module, None, 0)
        torch.save(self.seen, f"rank{trainer.global_rank}.pt")


class Fails(Callback):
    def on_train_start(self, trainer, module):
        def prune(*args, **kwargs):
            raise UserError("no choice on this rank")
        ChannelPlan.prune = prune
'''


@pytest.mark.parametrize(
    ("strategy", "fast"), [("ddp_fork", "true"), ("ddp_fork_find_unused_parameters_true", "false")]
)
def test_two_processes_hold_the_same_network_at_every_step(here, tiny, own, strategy, fast):
    """Without a new DDP wrapper the second strategy raises nothing, and the ranks diverge."""
    (own / "ranks.py").write_text(RANKS)
    two = ["--trainer.devices=2", f"--trainer.strategy={strategy}", "--data.batch_size=20", f"--model.fast={fast}"]
    ranks = ["--trainer.callbacks+=ranks.Ranks", "--trainer.max_epochs=3"]
    done = process(tiny("fit", *NET, *two, *options(**TWO_ROUNDS), *ranks, "--name=one", net="ResNet"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ChannelPruning: round") == 2, "rank 0 alone prints"
    a, b = (torch.load(here / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(a) == 16 and equal(a, b)
    assert len({sum(len(value) for value in seen.values()) for seen in a}) == 3, "widths of three networks"


@pytest.mark.slow
def test_two_processes_fail_together(here, tiny, own):
    (own / "ranks.py").write_text(RANKS)
    two = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", "--data.batch_size=20"]
    died = process(
        tiny("fit", *NET, *two, *options(ratio=0.5, at="1ep"), "--trainer.callbacks+=ranks.Fails", net="ResNet")
    )
    assert died.returncode == 1 and "no choice on this rank" in died.stderr


# -- what is refused ---------------------------------------------------------------------------------------------------

BAD = [
    ({"ratio": 1.0}, "ratio must be a number from 0 to below 1, got 1.0"),
    ({"ratio": -0.1}, "ratio must be a number from 0 to below 1, got -0.1"),
    ({"ratio": 0.5, "parameters": "1M"}, "one of ratios, ratio and a budget, got ratio and budget"),
    ({"ratios": {"conv1": 0.5}, "ratio": 0.5}, "got ratios and ratio"),
    ({}, "ChannelPruning needs ratios (names or patterns"),
    ({"ratios": {"conv1": 0.5}, "rounds": 2, "every": "1ep"}, "they take no rounds; ratio does"),
    ({"ratios": {"conv1": 0.5}, "multiple": 8}, "they take no multiple"),
    ({"ratio": 0.5, "at": "3"}, "a whole number with its unit, such as 500it or 2ep, got '3'"),
    ({"ratio": 0.5, "rounds": 2}, "2 rounds need `every`, such as 2ep"),
    ({"ratio": 0.5, "rounds": 2, "every": "0ep"}, "every must be at least 1ep, got 0ep"),
    ({"ratio": 0.5, "rounds": 2, "every": "1ep", "start": "4it"}, "start and every need one unit, got 4it and 1ep"),
    ({"ratio": 0.5, "rounds": 2, "every": "1ep", "at": "1ep"}, "`at` is for a single round"),
    ({"ratio": 0.5, "every": "1ep"}, "start and every are for two rounds or more"),
    ({"ratio": 0.5, "rounds": 0}, "rounds must be"),
    ({"ratio": 0.5, "batches": 0}, "batches must be"),
    ({"ratio": 0.5, "criterion": "bn"}, "criterion must be one of l1, l2, random, bn_scale, taylor, fpgm"),
    ({"ratio": 0.5, "scope": "all"}, "scope must be one of global, layer"),
    ({"ratio": 0.5, "curve": "cubic"}, "curve must be one of linear, geometric, got 'cubic'"),
    ({"parameters": "many"}, "budget parameters must be a whole number"),
    ({"ratio": 0.5, "control": "dense"}, "control must be scratch or narrow, got 'dense'"),
    ({"ratio": 0.5, "criterion": "taylor", "control": "scratch"}, "before there are training images for 'taylor'"),
    ({"ratio": 0.5, "exclude": "conv1"}, "exclude takes a list of patterns, got the string 'conv1'"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "says"), BAD)
def test_bad_settings_are_refused_at_once(given, says):
    with pytest.raises(UserError) as caught:
        ChannelPruning(**given)
    assert says in str(caught.value)


LATER = [
    ({"ratio": 0.5, "at": "4ep"}, "last round is at step 8, after the run, which takes 6 steps"),
    ({"ratio": 0.5, "at": "3it"}, "changes the network between epochs, and step 3 is within one of 2 steps"),
    ({"ratio": 0.5, "rounds": 4, "every": "1ep"}, "last round is at step 8, after the run"),
    ({"ratio": 0.5, "at": "1ep", "exclude": ["conv9"]}, "'conv9' matches none of"),
    ({"ratios": {"conv9": 0.5}, "at": "1ep"}, "'conv9' matches none of"),
    ({"parameters": 100, "at": "1ep", "floor": 4}, "cannot be pruned to its budget: the smallest network of floor 4"),
    ({"ratio": 0.9, "at": "1ep", "floor": 4}, "the floor of 4 lets 32 go"),
    ({"ratio": 0.9, "at": "1ep", "multiple": 4}, "widths in multiples of 4 and the floor of 1 let 32 go"),
    ({"ratio": 0.5, "at": "1ep", "criterion": "taylor", "batches": 3}, "batches=3, but an epoch has 2"),
]


@pytest.mark.parametrize(("given", "says"), LATER)
def test_what_the_run_cannot_have_is_refused_before_its_first_step(here, given, says):
    watch = Watch()
    with pytest.raises(UserError) as caught:
        fit(classifier(), watch, ChannelPruning(**given))
    assert says in str(caught.value) and watch.nets == []


def test_masks_and_networks_that_cannot_be_followed_are_refused(here):
    masked = classifier()
    masked.set_masks(smallnets.pruning.select(smallnets.pruning.criteria.magnitude(masked.net), density=0.5))
    with pytest.raises(UserError, match="the network has masks, which are of the widths that it has"):
        fit(masked, ChannelPruning(ratio=0.5, at="1ep"))
    with pytest.raises(UserError, match="starts anew, and this network has masks"):
        fit(masked, ChannelPruning(ratio=0.5, control="scratch"))
    with pytest.raises(UserError, match="during training does not go with PruningSchedule"):
        both = [ChannelPruning(ratio=0.5, at="1ep"), smallnets.callbacks.PruningSchedule(density=0.5, at="1ep")]
        fit(classifier(), *both)

    class Data(torch.nn.Module):
        num_classes = 10

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 10, 8)

        def forward(self, images):
            return torch.from_numpy(self.layer(images).detach().numpy()).flatten(1)

    with pytest.raises(UserError, match="cannot be followed"):
        fit(classifier(Data()), ChannelPruning(ratio=0.5, at="1ep"))


def test_strategies_that_shard_are_refused():
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(UserError, match=r"^ChannelPruning needs whole weights .* FSDPStrategy shards them: use ddp$"):
        ChannelPruning(ratio=0.5).setup(trainer, classifier(), "fit")


def test_a_digest_sees_names_shapes_and_values():
    net, other = resnet(), resnet()
    assert digest(net) == digest(other)
    with torch.no_grad():
        other.bn1.running_mean[0] += 1e-7
    assert digest(net) != digest(other)
