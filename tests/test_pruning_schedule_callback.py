"""`PruningSchedule`: when and how far it prunes, what it writes down, and what it refuses."""

import csv
import random
from itertools import pairwise
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_interruption import checkpoint, equal, process
from test_tensorboard import assert_pictures
from torch.nn.functional import cross_entropy
from torch.optim import SGD

import smallnets
from smallnets.callbacks import EMA, ParameterBudget, PruningSchedule
from smallnets.callbacks.layer_bars import layer_bars
from smallnets.callbacks.record import RunRecord
from smallnets.cli import main
from smallnets.data import Digits, chunks
from smallnets.data.loader import BatchLoader
from smallnets.data.seeds import mix
from smallnets.errors import RunError, UserError
from smallnets.measure import BudgetExceeded, count
from smallnets.models import LeNet
from smallnets.pruning import Masks, select
from smallnets.pruning.criteria import Movement, magnitude, taylor
from smallnets.pruning.sizes import kept_macs, packed_bytes
from smallnets.results import read_row
from smallnets.results.load import load_masks
from smallnets.surgery import to_quaternion
from smallnets.training.classifier import Classifier

pytestmark = [
    pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*"),
]
# An epoch of five steps, and what decides the weights and the pruning of a finished run.
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "smallnets")
CUBIC = {"density": 0.1, "curve": "cubic", "start": "1it", "end": "8it", "every": "3it"}


def options(**given):
    """The command line of a PruningSchedule."""
    return ["--trainer.callbacks+=PruningSchedule", *[f"--trainer.callbacks.{k}={v}" for k, v in given.items()]]


def digits(channels=1):
    return Digits(image_size=8, in_channels=channels, train_size=200, batch_size=40, augment=["crop"])


def classifier(net=None, **given):
    torch.manual_seed(0)
    net = net or LeNet(hidden_widths=[12], image_size=8, in_channels=1)
    return Classifier(net, optimizer=lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3), **given)


def fit(module, *callbacks, data=None, ckpt_path=None, **given):
    trainer = L.Trainer(
        **{"max_epochs": 2, "num_sanity_val_steps": 0, "use_distributed_sampler": False, **given},
        callbacks=list(callbacks), accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )  # fmt: skip
    trainer.fit(
        module,
        data,
        data,
        datamodule=None if data else digits(getattr(module.net, "in_channels", 1)),
        ckpt_path=ckpt_path,
    )
    return trainer


class Watch(L.Callback):
    """Weights after each step, before masks are set anew at it, and masks before each step."""

    def __init__(self):
        self.masks, self.weights = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.masks.append(module.masks)
        self.weights.append({k: v.detach().clone() for k, v in module.net.named_parameters()})


# -- a budget of nonzero parameters -----------------------------------------------------------------------------------


# 768 + 120 weights that have masks and 22 biases: 910 parameters. Half of the weights are left: 444 + 22.
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("at", ["1it", "7it", "10it"])
def test_a_limit_on_nonzero_parameters_waits_for_the_last_masks(here, at, first, fast):
    watch, budget, half = Watch(), ParameterBudget(nonzero_parameters=466), PruningSchedule(density=0.5, at=at)
    fit(classifier(fast=fast), watch, *((budget, half) if first else (half, budget)))
    with pytest.raises(BudgetExceeded, match=r"nonzero_parameters 466 > limit 465\n"):
        fit(classifier(), watch, ParameterBudget(nonzero_parameters=465), PruningSchedule(density=0.5, at=at))
    if not fast:  # broken right after the change, not by the next batch
        assert len(watch.masks) == 10 + int(at.removesuffix("it"))


def test_other_limits_do_not_wait_and_a_fit_that_stops_before_the_masks_is_over(here):
    def run(limits, *more, **given):
        watch = Watch()
        with pytest.raises(BudgetExceeded) as caught:
            fit(classifier(), watch, ParameterBudget(**limits), PruningSchedule(density=0.5, at="7it"), *more, **given)
        return str(caught.value).splitlines()[0].partition(": ")[2], len(watch.masks)

    assert run({"nonzero_parameters": 466, "parameters": 909}) == ("parameters 910 > limit 909", 1)

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    assert run({"nonzero_parameters": 466}, Stop()) == ("nonzero_parameters 910 > limit 466", 5)


def test_a_trial_that_its_pruner_stops_before_the_masks_is_pruned_and_not_over_the_budget(here):
    record = RunRecord(here / "run")

    class Pruner(L.Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                trainer.should_stop = True
                record.prune()

    fit(classifier(), ParameterBudget(nonzero_parameters=466), PruningSchedule(density=0.5, at="7it"), Pruner(), record)
    row = read_row(here / "run")
    assert (row["status"], row["error"], row["epochs"], row["nonzero_parameters"]) == ("pruned", None, 1, 910)


def test_the_nonzero_count_is_logged_before_and_after_the_masks(here, tiny):
    more = ["--trainer.callbacks+=ParameterBudget", "--trainer.callbacks.nonzero_parameters=466"]
    assert main(tiny("fit", *options(density=0.5, at="7it"), *more)) == 0
    rows = csv.DictReader((here / "lightning_logs/digits-lenet/run-1/metrics.csv").read_text().splitlines())
    found = {row["step"]: row["budget/nonzero_parameters"] for row in rows if row.get("budget/nonzero_parameters")}
    assert found == {"0": "910", "7": "466"}


# -- when and how far --------------------------------------------------------------------------------------------------


def test_a_cubic_schedule_keeps_exactly_what_it_says_after_each_step(here):
    watch, schedule, module = Watch(), PruningSchedule(**CUBIC), classifier()
    fit(module, watch, schedule)
    # From 1 to 0.1 between steps 1 and 8: at step 4, 3 of 7 have passed, at step 7, 6 of 7.
    at4, at7 = (0.1 + 0.9 * (1 - x) ** 3 for x in (3 / 7, 6 / 7))
    kept = [888] * 4 + [round(888 * at4)] * 3 + [round(888 * at7)] + [89] * 2
    assert [888 if masks is None else masks.kept for masks in watch.masks] == kept
    assert module.masks.kept == 89
    assert [(r["step"], r["kept"]) for r in schedule.record["rounds"]] == [(4, kept[4]), (7, kept[7]), (8, 89)]
    module.masks.check(module.net)


def test_one_shot_before_at_a_step_and_after_training(here):
    for at, dense_steps in (("0it", 0), ("3it", 3), ("1ep", 5), ("10it", 10), ("2ep", 10)):
        watch, module = Watch(), classifier()
        fit(module, watch, PruningSchedule(density=0.5, at=at))
        assert [masks is None for masks in watch.masks] == [True] * dense_steps + [False] * (10 - dense_steps)
        assert module.masks.kept == 444
        module.masks.check(module.net)
        assert sum(int((w == 0).sum()) for w in module.masks.weights(module.net).values()) == 444


def test_the_choice_is_that_of_the_functions(here):
    """Magnitude by hand at step 3, movement by hand over four steps of the plain loop in which it accumulates."""
    watch, module = Watch(), classifier()
    fit(module, watch, PruningSchedule(density=0.3, at="3it", scope="layer", densities="erk", exclude=["head.2"]))
    before = LeNet(hidden_widths=[12], image_size=8, in_channels=1)
    before.load_state_dict(
        {**before.state_dict(), **fit_weights(3)}  # the same run, without pruning, after three steps
    )
    layers = Masks.dense(before, exclude=["head.2"])
    expected = select(magnitude(before, layers), density=0.3, scope="layer", densities="erk", masks=layers)
    assert watch.masks[3] == expected == module.masks


def fit_weights(steps):
    watch = Watch()
    fit(classifier(), watch)
    return watch.weights[steps]


def test_movement_sums_the_steps_before_the_cut(here):
    class Gradients(L.Callback):
        """The sums by the function, in a loop that knows nothing of the schedule."""

        def on_before_optimizer_step(self, trainer, module, optimizer):
            if trainer.global_step == 0:
                self.movement = Movement(module.net)
            if trainer.global_step < 4:
                self.movement.update(module.net)

    gradients, module = Gradients(), classifier()
    fit(module, gradients, PruningSchedule(density=0.3, criterion="movement", at="4it"))
    assert module.masks == select(gradients.movement.scores(), density=0.3)


@pytest.mark.parametrize("fast", [False, True])
def test_a_criterion_that_needs_data_sees_images_of_its_own_place(here, monkeypatch, fast):
    monkeypatch.setattr(chunks, "STEPS", 2)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    watch, module = Watch(), classifier(fast=fast)
    fit(module, watch, PruningSchedule(density=0.3, criterion="taylor", at="3it", batches=2))
    data = digits()
    data.setup("fit")
    loader = data.train_dataloader()
    own = BatchLoader(loader.images, loader.labels, loader.indices, batch_size=40, seed=mix(7, 6, 3), train=False)
    batches = [data.on_after_batch_transfer(batch, 0) for batch, _ in zip(own, range(2), strict=False)]
    net = LeNet(hidden_widths=[12], image_size=8, in_channels=1)
    net.load_state_dict({**net.state_dict(), **fit_weights(3)})
    assert module.masks == select(taylor(net, batches, cross_entropy), density=0.3)


def test_looking_at_data_disturbs_nothing(here, own):
    """At density 1 nothing is removed: the run is that without the callback, dropout and augmentation included."""
    from own_nets import Net

    states = []
    for callbacks in ([], [PruningSchedule(density=1, criterion="grasp", at="3it")]):
        torch.manual_seed(0)
        module = classifier(Net(10))
        fit(module, *callbacks)
        states.append(module.net.state_dict())
    assert equal(*states)


def test_pruning_goes_on_from_masks_that_are_there(here):
    module = classifier()
    fit(module, PruningSchedule(density=0.2, at="0it"))
    before = module.masks
    with pytest.raises(UserError, match=r"keep 0.2005 of the weights already, .* 0.2679 at step 4: .*must not rise"):
        fit(module, PruningSchedule(**CUBIC))
    fit(module, PruningSchedule(**{**CUBIC, "initial": 0.2}))
    assert module.masks.kept == 89 and (module.masks & before) == module.masks


@pytest.mark.parametrize("criterion", ["gradient_magnitude", "movement", "random"])
def test_what_was_removed_stays_removed(here, criterion):
    """Gradients of removed weights may be the largest of all."""
    watch, module = Watch(), classifier()
    fit(module, watch, PruningSchedule(**{**CUBIC, "every": "1it", "start": "0it"}, criterion=criterion))
    masks = [each for each in [*watch.masks, module.masks] if each is not None]
    assert all((earlier & later) == later for earlier, later in pairwise(masks))
    assert masks[0].kept > masks[-1].kept == 89


def test_fit_twice(here):
    schedule, kept = PruningSchedule(**CUBIC), []
    for _ in range(2):
        module = classifier()
        fit(module, schedule)
        kept.append((module.masks, module.net.state_dict(), schedule.record))
    assert equal(kept[0][1], kept[1][1]) and kept[0][0] == kept[1][0] and kept[0][2] == kept[1][2]
    # One trainer that goes on: so does the schedule.
    module, schedule = classifier(), PruningSchedule(**{**CUBIC, "end": "10it"})
    trainer = fit(module, schedule, max_epochs=2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, datamodule=digits())
    assert trainer.global_step == 15 and module.masks.kept == 89
    assert [r["step"] for r in schedule.record["rounds"]] == [4, 7, 10]


def test_accumulated_batches_count_once(here):
    module, schedule = classifier(), PruningSchedule(density=0.5, at="6it")
    fit(module, schedule, accumulate_grad_batches=2)
    assert module.masks.kept == 444 and schedule.record["rounds"][0]["step"] == 6
    with pytest.raises(UserError, match=r"ends at 7it \(step 7\), after the run, which takes 6 steps"):
        fit(classifier(), PruningSchedule(density=0.5, at="7it"), accumulate_grad_batches=2)


def test_the_best_checkpoint_is_of_the_latest_density(here, tiny):
    """The dense first epoch is far better than the second, in which nearly all is removed."""
    assert main(tiny("fit", *options(density=0.02, at="9it"), "--name=one", "--model.optimizer.lr=0.2")) == 0
    folder = here / "lightning_logs/one/run-1"
    best = checkpoint(folder / "checkpoints/best.ckpt")
    assert best["global_step"] == 10 and load_masks(folder / "checkpoints/best.ckpt").kept == 18
    with (folder / "metrics.csv").open() as file:
        dense, pruned = (float(r["val/accuracy"]) for r in csv.DictReader(file) if r["val/accuracy"])
    assert dense > pruned == pytest.approx(read_row(folder)["val_accuracy"], abs=1e-6)


# -- what is written down ----------------------------------------------------------------------------------------------


def test_each_change_is_seen_in_the_row_the_curves_and_a_line(here, tiny, capsys):
    given = options(density=0.1, curve="linear", end="8it", every="4it", exclude="[head.2]")
    assert main(tiny("fit", *given, "--name=one")) == 0
    out = capsys.readouterr().out
    assert "PruningSchedule: after step 4 density 0.5495, 422 of 768 kept, 542 of 888 MACs\n" in out
    assert "PruningSchedule: after step 8 density 0.1003, 77 of 768 kept, 197 of 888 MACs\n" in out
    assert out.count("PruningSchedule") == 2
    folder = here / "lightning_logs/one/run-1"
    net = smallnets.load(folder / "checkpoints/last.ckpt")
    masks = load_masks(folder / "checkpoints/last.ckpt")
    row = read_row(folder)
    (entry,) = row["pruning"]
    assert (entry["callback"], entry["criterion"], entry["curve"]) == ("PruningSchedule", "magnitude", "linear")
    assert entry["layers"] == {"head.0.weight": {"kept": 77, "total": 768}}
    first, last = entry["rounds"]
    assert {k: first[k] for k in ("step", "kept", "removed", "total")} == {
        "step": 4, "kept": 422, "removed": 346, "total": 768,
    }  # fmt: skip
    assert first["kept_by_layer"] == {"head.0.weight": 422}
    assert last == {
        "step": 8, "density": 77 / 768, "kept": 77, "removed": 691, "total": 768,
        "macs": kept_macs(count(net, image_size=8, in_channels=1), masks), "packed_bytes": packed_bytes(net, masks),
        "kept_by_layer": {"head.0.weight": 77},
    }  # fmt: skip
    assert row["nonzero_parameters"] == row["parameters"] - 691

    with (folder / "metrics.csv").open() as file:
        rows = {int(r["step"]): r for r in csv.DictReader(file)}
    assert {k: rows[7][k] for k in ("density/total", "density/head.0", "pruning/kept", "pruning/removed")} == {
        "density/total": "0.1002604", "density/head.0": "0.1002604", "pruning/kept": "77", "pruning/removed": "691",
    }  # fmt: skip
    assert (rows[3]["pruning/kept"], rows[7]["pruning/packed_bytes"]) == ("422", str(packed_bytes(net, masks)))
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [e.step for e in events.Scalars("density/head.0")] == [3, 7]
    assert [round(e.value, 4) for e in events.Scalars("density/total")] == [0.5495, 0.1003]
    pictures = {3: layer_bars({"head.0": (422, 768)}), 7: layer_bars({"head.0": (77, 768)})}
    assert_pictures(events, "layers/masks", pictures)


def test_channel_pruning_is_in_the_row_too(here, tiny):
    ratios = ("--trainer.callbacks+=ChannelPruning", '--trainer.callbacks.ratios={"stages.*.conv1": 0.5}')
    net = ("--model.net.blocks=[1]", "--model.net.channels=[8]")
    assert main(tiny("fit", *net, *ratios, *options(density=0.5, at="2it"), "--name=one", net="ResNet")) == 0
    channels, weights = read_row(here / "lightning_logs/one/run-1")["pruning"]
    assert (channels["callback"], weights["callback"]) == ("ChannelPruning", "PruningSchedule")
    assert channels["before"]["parameters"] > channels["after"]["parameters"]
    # Masks are of the narrow network: 8 * 9 in the stem, twice 8 * 4 * 9 in the block, 80 in the head.
    assert weights["rounds"][0]["total"] == 72 + 576 + 80


def test_a_run_without_pruning_has_an_empty_entry(here, tiny):
    assert main(tiny("fit", "--name=one")) == 0
    assert read_row(here / "lightning_logs/one/run-1")["pruning"] == []


# -- interruption ------------------------------------------------------------------------------------------------------

HARD = {
    "magnitude, averaged": ([EMA], {"criterion": "magnitude"}),
    "movement": ([], {"criterion": "movement"}),
    "taylor, by the layer": ([], {"criterion": "taylor", "scope": "layer", "densities": "erk", "batches": 2}),
    "whole quaternions": ([EMA], {"criterion": "movement", "unit": "quaternion"}),
}


@pytest.mark.parametrize(("others", "how"), HARD.values(), ids=HARD.keys())
def test_resumed_from_any_step_it_ends_where_the_uninterrupted_run_ends(here, own, others, how):
    from own_nets import Net

    def callbacks(**given):
        save = ModelCheckpoint(save_top_k=-1, every_n_train_steps=1, filename="{step}", **given)
        return [PruningSchedule(**CUBIC, **how), *[other(decay=0.5) for other in others], save]

    def net():
        return to_quaternion(Net(10, in_channels=3)) if "unit" in how else Net(10)

    fit(classifier(net()), *callbacks(dirpath=here / "whole"))
    whole = checkpoint(here / "whole/step=10.ckpt")
    assert Masks.from_state_dict(whole["smallnets"]["masks"]).density == pytest.approx(0.1, abs=1e-2)
    for step in (1, 2, 3, 4, 6, 7, 8, 9):  # at 5 Lightning would leave out the end of the epoch
        fit(
            classifier(net()), *callbacks(dirpath=here / f"from{step}"),
            ckpt_path=here / f"whole/step={step}.ckpt",
        )  # fmt: skip
        again = checkpoint(here / f"from{step}/step=10.ckpt")
        for part in PARTS:
            assert equal(whole[part], again[part]), f"{part}, resumed from step {step}"
        state = "PruningSchedule"
        assert equal(whole["callbacks"][state], again["callbacks"][state]), f"resumed from step {step}"


def test_killed_at_a_step_of_the_schedule_before_its_checkpoint(here, tiny, own):
    """SIGKILL right after a round: the checkpoint is of the step before, or of the round before."""
    step = random.SystemRandom().choice([4, 7, 8])
    given = options(**CUBIC, criterion="movement")
    run = tiny("fit", *given, "--data.augment=[crop]", "--checkpoint_every=3", net="own_nets.Net")
    assert main([*run, "--name=whole"]) == 0
    kill = ["--trainer.callbacks+=own_nets.KillAt", f"--trainer.callbacks.step={step}"]
    died = process([*run, "--name=cut", *kill])
    assert died.returncode == -9, died.stderr
    folders = [here / f"lightning_logs/{name}/run-1" for name in ("whole", "cut")]
    assert checkpoint(folders[1] / "checkpoints/last.ckpt")["global_step"] == {4: 3, 7: 6, 8: 6}[step]
    assert main([*run, "--name=cut", "--ckpt_path=last"]) == 0
    for which in ("last", "best"):
        a, b = (checkpoint(folder / f"checkpoints/{which}.ckpt") for folder in folders)
        for part in PARTS:
            assert equal(a[part], b[part]), f"{part} of {which}.ckpt, killed after step {step}"
    rows = [read_row(folder) for folder in folders]
    for name in ("pruning", "val_accuracy", "val_loss_last", "train_loss_last", "nonzero_parameters"):
        assert rows[0][name] == rows[1][name], name
    texts = [(folder / "metrics.csv").read_text() for folder in folders]
    assert texts[0] == texts[1]


def test_a_resume_with_another_schedule_is_refused(here, tiny, capsys):
    assert main(tiny("fit", *options(**CUBIC), "--name=one")) == 0
    more = ["--name=one", "--ckpt_path=last", "--trainer.max_epochs=3"]
    assert main(tiny("fit", *options(**{**CUBIC, "density": 0.2, "every": "2it"}), *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert "keeps its pruning schedule: density was 0.1, now 0.2, every was 3it, now 2it" in error[-1]
    assert main(tiny("fit", "--name=dense")) == 0
    more[0] = "--name=dense"
    assert main(tiny("fit", *options(density=0.2, at="12it"), *more)) == 2
    assert "trainer.callbacks was None, now PruningSchedule" in capsys.readouterr().err
    more[0] = "--name=one"
    assert main(tiny("fit", *options(**CUBIC), *more)) == 0
    assert load_masks(here / "lightning_logs/one/run-1/checkpoints/last.ckpt").kept == 89


def test_a_resume_whose_epochs_have_other_steps_is_refused(here):
    save = ModelCheckpoint(dirpath=here / "c", save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    fit(classifier(), PruningSchedule(density=0.5, at="1ep"), save)
    with pytest.raises(UserError, match=r"stands at step 5, and its masks were not made by this schedule \(step 3\)"):
        fit(
            classifier(), PruningSchedule(density=0.5, at="1ep"), ckpt_path=here / "c/epoch=0.ckpt",
            limit_train_batches=3, max_epochs=4,
        )  # fmt: skip


# -- the fast mode and ranks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "grasp"])
def test_the_fast_mode_ends_as_the_default_mode(here, tiny, own, monkeypatch, criterion):
    monkeypatch.setattr(chunks, "STEPS", 2)
    run = tiny("fit", *options(**CUBIC, criterion=criterion), "--data.augment=[crop]", net="own_nets.Net")
    for name, more in {"plain": [], "fast": ["--model.fast=true"]}.items():
        assert main([*run, f"--name={name}", *more, "--model.check_masks=step"]) == 0
    folders = [here / f"lightning_logs/{name}/run-1" for name in ("plain", "fast")]
    a, b = (checkpoint(folder / "checkpoints/last.ckpt") for folder in folders)
    for part in PARTS:
        assert equal(a[part], b[part]), part
    assert read_row(folders[0])["pruning"] == read_row(folders[1])["pruning"]
    assert (folders[0] / "metrics.csv").read_text() == (folders[1] / "metrics.csv").read_text()


RANKS = """
import torch
from lightning.pytorch.callbacks import Callback
from smallnets.pruning import named
from smallnets.errors import UserError


class Ranks(Callback):
    def on_fit_end(self, trainer, module):
        kept = {"masks": module.masks.state_dict(), "state": module.net.state_dict()}
        torch.save(kept, f"rank{trainer.global_rank}.pt")


class OnlyRankZeroChooses(Callback):
    def on_train_start(self, trainer, module):
        if trainer.global_rank:
            named.CRITERIA["taylor"] = None


class Fails(Callback):
    def on_train_start(self, trainer, module):
        if not trainer.global_rank:
            def scores(net, masks, given):
                raise UserError("no scores on this rank")
            named.CRITERIA["magnitude"] = named.Criterion(scores)
"""


TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=20"]


def test_two_processes_hold_the_same_masks(here, tiny, own):
    (own / "ranks.py").write_text(RANKS)
    given = options(**CUBIC, criterion="taylor")
    only = ["--trainer.callbacks+=ranks.OnlyRankZeroChooses", "--trainer.callbacks+=ranks.Ranks"]
    run = tiny("fit", *TWO, *given, *only, net="own_nets.Net")
    done = process([*run, "--name=whole", "--checkpoint_every=3"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PruningSchedule: after step 8 ") == 1, "rank 0 alone prints"
    a, b = (torch.load(here / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert equal(a, b)
    masks = Masks.from_state_dict(a["masks"])
    assert masks.kept == round(masks.total / 10)


@pytest.mark.thorough
def test_two_processes_fail_together(here, tiny, own):
    (own / "ranks.py").write_text(RANKS)
    fails = [*options(density=0.5, at="3it"), "--trainer.callbacks+=ranks.Fails", "--name=fails"]
    died = process(tiny("fit", *TWO, *fails, net="own_nets.Net"))
    assert died.returncode == 1
    assert "PruningSchedule at step 3: no scores on this rank" in died.stderr


# -- what is refused ---------------------------------------------------------------------------------------------------

BAD = [
    ({"density": 1.2, "at": "0it"}, "a density from 0 to 1, the share that is kept, got 1.2"),
    ({"density": -0.1, "end": "5it", "curve": "cubic"}, "density must be a density from 0 to 1"),
    ({"density": 0.5}, "a one_shot schedule needs `at`"),
    ({"density": 0.5, "at": "3"}, "a time is a whole number with its unit, such as 500it or 2ep, got '3'"),
    ({"density": 0.5, "at": "3it", "end": "5it"}, "a one_shot schedule has `at` and no end"),
    ({"density": 0.5, "at": "3it", "initial": 0.9}, "a one_shot schedule has no initial density, got 0.9"),
    ({"density": 0.5, "curve": "linear"}, "a linear schedule needs `end`"),
    ({"density": 0.5, "curve": "linear", "end": "5it", "at": "1it"}, "`at` is for one_shot"),
    ({"density": 0.5, "curve": "linear", "end": "5it", "start": "5it"}, "must end after its start"),
    ({"density": 0.5, "curve": "linear", "end": "5it", "initial": 0.4}, "must not rise: initial is 0.4, final 0.5"),
    ({"density": 0.5, "at": "0it", "criterion": "magnitud"}, "nearest: magnitude"),
    ({"density": 0.5, "at": "0it", "batches": 0}, "batches must be 1 or more, got 0"),
    ({"density": 0.5, "at": "0it", "rounds": 0}, "rounds must be 1 or more, got 0"),
    ({"density": 0.5, "at": "0it", "criterion": "synflow", "unit": "component"}, "it has no unit component"),
]


@pytest.mark.parametrize(("given", "says"), BAD)
def test_bad_settings_are_refused_at_once(given, says):
    with pytest.raises(UserError) as caught:
        PruningSchedule(**given)
    assert says in str(caught.value)


LATER = [
    ({"density": 0.5, "at": "11it"}, "ends at 11it (step 11), after the run, which takes 10 steps"),
    ({"density": 0.5, "at": "3ep"}, "ends at 3ep (step 15), after the run, which takes 10 steps"),
    ({"density": 0.5, "curve": "cubic", "start": "4it", "end": "1ep"}, None),
    ({"density": 0.5, "curve": "cubic", "start": "6it", "end": "1ep"}, "must end after its start 6it, got end 1ep"),
    ({"density": 0.5, "at": "1it", "include": ["hed"]}, "include pattern 'hed' matches none"),
    ({"density": 0.5, "at": "1it", "exclude": ["stages.*"]}, "exclude pattern 'stages.*' matches none"),
    ({"density": 0.001, "at": "1it"}, "1 of 888 weights are too few for 2 layers"),
    ({"density": 0.5, "at": "1it", "densities": "erk"}, "densities are those of scope='layer'"),
    ({"density": 0.5, "at": "1it", "floor": 121}, "head.2.weight has 120 weights left and cannot keep 121"),
    ({"density": 0.5, "at": "0it", "criterion": "movement"}, "movement has seen no step at 0it"),
    ({"density": 0.5, "at": "0it", "unit": "quaternion"}, "unit quaternion: LeNet has no quaternion weights"),
    ({"density": 0.5, "at": "1it", "criterion": "grasp", "batches": 6}, "batches=6, but an epoch has 5"),
]


@pytest.mark.parametrize(("given", "says"), LATER)
def test_what_the_run_cannot_have_is_refused_before_its_first_step(here, given, says):
    watch = Watch()
    if says is None:
        fit(classifier(), watch, PruningSchedule(**given))
        return
    with pytest.raises(UserError) as caught:
        fit(classifier(), watch, PruningSchedule(**given))
    assert says in str(caught.value)
    assert watch.masks == [], "no step was taken"


def test_masks_of_other_layers_or_shapes_are_refused(here, tiny, capsys):
    module = classifier()
    fit(module, PruningSchedule(density=0.5, at="0it", exclude=["head.2"]))
    with pytest.raises(UserError, match=r"masks already, of other layers .*: head.2.weight in one of them only"):
        fit(module, PruningSchedule(density=0.3, at="0it"))
    # Channels that are removed below masks of a checkpoint.
    net = ("--model.net.blocks=[1]", "--model.net.channels=[8]")
    assert main(tiny("fit", *net, *options(density=0.5, at="2it"), "--name=one", net="ResNet")) == 0
    start = f"--model.init_from={here}/lightning_logs/one/run-1/checkpoints/last.ckpt"
    ratios = ("--trainer.callbacks+=ChannelPruning", '--trainer.callbacks.ratios={"stages.*.conv1": 0.5}')
    command = tiny("fit", *net, start, *ratios, *options(density=0.3, at="2it"), "--name=two", net="ResNet")
    assert main(command) == 2
    assert "stages.0.0.conv1.weight: the mask is of 8x8x3x3, the weight of 4x8x3x3" in capsys.readouterr().err


def test_strategies_and_modules_that_cannot_have_masks_are_refused():
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy), precision="32-true")
    with pytest.raises(UserError, match=r"^PruningSchedule needs whole weights .* FSDPStrategy shards them: use ddp$"):
        PruningSchedule(density=0.5, at="0it").setup(trainer, classifier(), "fit")
    trainer.strategy = None
    with pytest.raises(UserError, match="sets the masks of a Classifier, not of a LightningModule"):
        PruningSchedule(density=0.5, at="0it").setup(trainer, L.LightningModule(), "fit")
    trainer.precision = "16-mixed"
    with pytest.raises(UserError, match="movement sums gradients, which overflow in 16-mixed"):
        PruningSchedule(density=0.5, at="1it", criterion="movement").setup(trainer, classifier(), "fit")


def test_two_schedules_are_refused(here, tiny, capsys):
    assert main(tiny("fit", *options(density=0.5, at="1it"), *options(density=0.4, at="2it"))) == 2
    assert "more than one stateful callback of type `PruningSchedule`" in capsys.readouterr().err


def test_a_criterion_of_data_needs_a_data_module(here):
    class Batches:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter([(torch.rand(4, 1, 8, 8), torch.arange(4))] * 5)

    with pytest.raises(UserError, match="taylor needs training images from a data module of smallnets"):
        fit(classifier(), PruningSchedule(density=0.5, at="1it", criterion="taylor"), data=Batches())
    module = classifier()
    fit(module, PruningSchedule(density=0.5, at="1it"), data=Batches())
    assert module.masks.kept == 444


def test_scores_that_are_not_numbers_break_the_run(here):
    class Spoil(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            module.net.head[0].weight.grad[:] = float("nan")

    with pytest.raises(RunError, match=r"PruningSchedule at step 2: head.0.weight: 768 of 768 scores are NaN"):
        fit(classifier(), Spoil(), PruningSchedule(density=0.5, at="2it"))
