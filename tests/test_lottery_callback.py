"""`LotteryTicket` in a fit: equal, bit for bit, to a plain loop; killed and resumed; on two processes; fast."""

import copy
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from test_interruption import checkpoint, equal, process
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

import smallnets
from smallnets.callbacks import EMA, Health, LotteryTicket
from smallnets.callbacks.rounds import LOTTERY_KEY
from smallnets.cli import main
from smallnets.data import Digits, chunks
from smallnets.errors import UserError
from smallnets.pruning import Masks
from smallnets.results import read_row
from smallnets.surgery import to_quaternion
from smallnets.training.classifier import Classifier
from smallnets.training.seeding import seed_step

pytestmark = pytest.mark.filterwarnings(
    "default::smallnets.callbacks.HealthWarning",
    # The plain loop moves its schedule on to the rewind point.
    "ignore:Detected call of `lr_scheduler.step",
)

EPOCHS, ROUNDS, STEPS = 3, 2, 5  # 200 digits in batches of 40


def digits(channels=1):
    return Digits(image_size=8, in_channels=channels, train_size=200, batch_size=40, augment=["crop"])


def optimizer(parameters):
    return SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def schedule(by):
    return CosineAnnealingLR(by, T_max=EPOCHS * STEPS)


def plain_tickets(net, k, rounds=ROUNDS, fraction=0.3):
    """The lottery by hand: the reference. Gives (masks, weights and buffers at the end) of every round."""
    data = digits(net.in_channels)
    data.setup("fit")
    names = list(Masks.dense(net))
    loader = data.train_dataloader()

    def train(net, masks, first):
        sgd = optimizer(net.parameters())
        rate = schedule(sgd)
        for _ in range(first):
            rate.step()
        taken = {}
        for epoch in range(EPOCHS):
            loader.set_epoch(epoch)
            for number, batch in enumerate(loader):
                step = epoch * STEPS + number
                if step == k:
                    taken = copy.deepcopy(net.state_dict())
                if step < first:
                    continue
                images, labels = data.on_after_batch_transfer(batch, 0)
                seed_step(torch.device("cpu"), 7, epoch, number, 0)
                sgd.zero_grad()
                cross_entropy(net(images), labels).backward()
                sgd.step()
                with torch.no_grad():
                    for name, mask in masks.items():
                        net.get_parameter(name).mul_(mask)
                rate.step()
        return taken

    masks = {name: torch.ones_like(net.get_parameter(name)) for name in names}
    rewound = train(net, masks, 0)
    tickets = [(masks, copy.deepcopy(net.state_dict()))]
    for _ in range(rounds):
        flat = torch.cat([(net.get_parameter(n).detach().abs() - 1 + masks[n]).flatten() for n in names])
        kept = int(sum(int(m.sum()) for m in masks.values()))
        kept -= -int(-fraction * kept // 1)
        keep = torch.zeros_like(flat)
        keep[flat.argsort(descending=True, stable=True)[:kept]] = 1
        parts = keep.split([masks[n].numel() for n in names])
        masks = {n: part.view_as(masks[n]) for n, part in zip(names, parts, strict=True)}
        net.load_state_dict(rewound)
        with torch.no_grad():
            for name, mask in masks.items():
                net.get_parameter(name).mul_(mask)
        train(net, masks, k)
        tickets.append((masks, copy.deepcopy(net.state_dict())))
    return tickets


def fitted(
    net,
    callback,
    folder,
    *more,
    epochs=EPOCHS * (ROUNDS + 1),
    fast=False,
    make=schedule,
    interval="step",
    resume=None,
    **options,
):
    """One fit from Python, as a user's script would do it; gives module and trainer."""
    L.seed_everything(7, verbose=False)
    module = Classifier(net, optimizer, make, interval=interval, fast=fast)
    best = ModelCheckpoint(
        folder / "rounds", monitor="val/accuracy", mode="max", filename="best", enable_version_counter=False
    )
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, use_distributed_sampler=False, callbacks=[callback, *more, best],
        **options,
    )  # fmt: skip
    trainer.fit(module, digits(net.in_channels), ckpt_path=resume, weights_only=resume and True)
    return module, trainer


@pytest.fixture(params=["own"])
def net(own, monkeypatch, request):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    import own_nets

    torch.manual_seed(3)
    return own_nets.Net(10) if request.param == "own" else to_quaternion(own_nets.Net(10, in_channels=3))


def assert_tickets(folder, tickets):
    for number, (masks, state) in enumerate(tickets):
        path = folder / f"rounds/round-{number}.ckpt"
        assert equal(smallnets.load(path).state_dict(), state), f"the weights of round {number}"
        stored = checkpoint(path)["smallnets"]["masks"]
        if number == 0:
            assert stored is None
        else:
            assert Masks.from_state_dict(stored) == Masks({n: m.bool() for n, m in masks.items()}), number


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("net", "k", "rewind_to"),
    [("own", 0, "0it"), ("own", 5, "1ep"), ("own", 7, "7it"), ("quaternion", 7, "7it")],
    indirect=["net"],
)
def test_the_tickets_are_those_of_a_plain_loop(net, tmp_path, monkeypatch, k, rewind_to, fast):
    """BatchNorm, dropout, augmentation, momentum, weight decay, a schedule by the step; bit for bit."""
    monkeypatch.setattr(chunks, "STEPS", 2)
    expected = plain_tickets(copy.deepcopy(net), k)
    lottery = LotteryTicket(ROUNDS, EPOCHS, fraction=0.3, rewind_to=rewind_to)
    epochs = EPOCHS + ROUNDS * (EPOCHS - k // STEPS)
    _, trainer = fitted(net, lottery, tmp_path, epochs=epochs, fast=fast)
    assert_tickets(tmp_path, expected)
    assert trainer.global_step == EPOCHS * STEPS + ROUNDS * (EPOCHS * STEPS - k)
    assert equal(net.state_dict(), expected[-1][1])


def round_starts():
    """What a round finds before its first step, and what the optimizer's rate is in each step."""

    class Looks(L.Callback):
        def __init__(self):
            self.starts, self.rates, self.trained = [], [], []

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.rates.append(optimizer.param_groups[0]["lr"])

        def on_train_batch_start(self, trainer, module, batch, number):
            if trainer.current_epoch in (EPOCHS, 2 * EPOCHS) and number == 0:
                empty = not trainer.optimizers[0].state
                self.starts.append((copy.deepcopy(module.net.state_dict()), module.masks, empty))

        def on_train_epoch_end(self, trainer, module):
            self.trained.append(copy.deepcopy(module.net.state_dict()))

    return Looks()


@pytest.mark.parametrize("rewind", ["weights", "rate", "none"])
def test_a_round_starts_with_masked_weights_an_empty_optimizer_and_its_rate(net, tmp_path, rewind):
    looks, first = round_starts(), copy.deepcopy(net.state_dict())
    fitted(net, LotteryTicket(ROUNDS, EPOCHS, rewind=rewind), tmp_path, looks)
    assert len(looks.starts) == ROUNDS
    for number, (state, masks, empty) in enumerate(looks.starts, 1):
        assert empty
        origin = first if rewind == "weights" else looks.trained[number * EPOCHS - 1]
        for name, value in state.items():
            expected = origin[name] * masks[name] if name in masks else origin[name]
            assert torch.equal(value, expected), name
    dense = looks.rates[: EPOCHS * STEPS]
    assert dense[0] == 0.05 and dense[-1] < 0.001
    later = looks.rates[EPOCHS * STEPS :]
    assert later == ([dense[-1]] * len(later) if rewind == "none" else dense * ROUNDS)


def test_a_schedule_by_the_epoch_stands_where_it_stood(net, tmp_path):
    looks = round_starts()
    lottery = LotteryTicket(ROUNDS, EPOCHS, rewind_to="7it")
    fitted(net, lottery, tmp_path, looks, epochs=7, make=lambda by: StepLR(by, 1, 0.5), interval="epoch")
    dense = [rate for rate in (0.05, 0.025, 0.0125) for _ in range(STEPS)]
    assert looks.rates == dense + dense[7:] * ROUNDS


def test_counts_follow_the_recursion_and_the_record_tells_every_round(net, tmp_path):
    lottery = LotteryTicket(ROUNDS, EPOCHS, fraction=0.2)
    fitted(net, lottery, tmp_path)
    rounds = lottery.record["rounds"]
    # 72 + 320 weights; ceil(78.4) and ceil(62.6) are pruned.
    assert [each["kept"] for each in rounds] == [392, 313, 250]
    assert [each["round"] for each in rounds] == [0, 1, 2]
    assert rounds[2]["layers"].keys() == {"body.0", "body.6"}
    kept = rounds[2]["layers"]["body.0"] * 72 + rounds[2]["layers"]["body.6"] * 320
    assert round(kept) == 250
    for each in rounds:
        assert each["seconds"] > 0 and each["epochs"] == EPOCHS
        assert each["val_accuracy"] <= each["val_accuracy_best"] <= 1
        assert each["checkpoint"] == f"rounds/round-{each['round']}.ckpt"


@pytest.mark.parametrize("rewind", ["weights", "rate", "none"])
def test_rounds_from_a_stored_dense_training_are_those_of_a_lottery_that_trained_it(net, tmp_path, rewind):
    """Bit for bit, weights, averages and masks; whatever the first one rewound, and from another initial network."""

    def rounds(folder, net, how, epochs, **more):
        lottery = LotteryTicket(ROUNDS, EPOCHS, fraction=0.3, rewind_to="7it", rewind=how, **more)
        fitted(net, lottery, folder, EMA(0.5), epochs=epochs)
        return lottery.record

    dense, other = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        other.body[0].weight.add_(1)
    whole = rounds(tmp_path / "whole", net, rewind, 7)
    rounds(tmp_path / "weights", dense, "weights", 7)
    path = tmp_path / "weights/rounds/round-0.ckpt"
    taken = rounds(tmp_path / "taken", other, rewind, 4, from_round=str(path))
    for number in (1, 2):
        one, same = (checkpoint(tmp_path / f"{run}/rounds/round-{number}.ckpt") for run in ("whole", "taken"))
        for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "smallnets"):
            assert equal(one[part], same[part]), (number, part)
    assert taken["from_round"] == str(path) and not (tmp_path / "taken/rounds/round-0.ckpt").exists()

    def told(record):
        return [{k: v for k, v in each.items() if k != "seconds"} for each in record["rounds"]]

    assert told(taken) == told(whole)


def test_a_stored_dense_training_of_another_lottery_is_refused(net, tmp_path):
    fitted(net, LotteryTicket(ROUNDS, EPOCHS, fraction=0.3), tmp_path / "a")
    path = str(tmp_path / "a/rounds/round-{}.ckpt")
    for number, epochs, options, says in (
        (1, 6, {}, "round-1.ckpt is of round 1, and 0 is needed here"),
        (0, 6, {"rewind_to": "2it"}, "rewinds to step 0, and 2 is needed here"),
        (0, 8, {"epochs_per_round": 4}, "has epochs_per_round 3, and 4 is needed here"),
        (0, 9, {}, r"max_epochs must be 6, got 9: 2 rounds of 3"),
    ):
        plan = {"rounds": ROUNDS, "epochs_per_round": EPOCHS, **options}
        with pytest.raises(UserError, match=says):
            fitted(net, LotteryTicket(**plan, from_round=path.format(number)), tmp_path / "b", epochs=epochs)
    with pytest.raises(UserError, match=r"round-0.ckpt is of another network than this Net"):
        fitted(
            type(net)(10, width=4), LotteryTicket(ROUNDS, EPOCHS, from_round=path.format(0)), tmp_path / "b", epochs=6
        )


def test_a_checkpoint_that_knows_no_from_round_is_of_a_lottery_without_it(net, tmp_path):
    """Of a version that had no such setting: it goes on without, and with one it is of another lottery."""
    fitted(net, LotteryTicket(ROUNDS, EPOCHS, fraction=0.3), tmp_path / "a", epochs=9)
    old = checkpoint(tmp_path / "a/rounds/round-0.ckpt")
    del old[LOTTERY_KEY]["settings"]["from_round"]
    trainer = SimpleNamespace(state=SimpleNamespace(fn=TrainerFn.FITTING))
    LotteryTicket(ROUNDS, EPOCHS, fraction=0.3).on_load_checkpoint(trainer, None, old)
    other = LotteryTicket(ROUNDS, EPOCHS, fraction=0.3, from_round="a/round-0.ckpt")
    with pytest.raises(UserError, match=r"of another lottery: from_round=None \(now round-0.ckpt\)"):
        other.on_load_checkpoint(trainer, None, old)


def test_average_and_health_begin_a_round_as_they_begin_a_fit(net, tmp_path):
    """At the first step of round 2 they hold what they held at the first step of the run, but for where they began."""
    states = []

    class Looks(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, number):
            if trainer.current_epoch in (0, 2 * EPOCHS) and number == 0:
                ema, health = (next(c for c in trainer.callbacks if isinstance(c, kind)) for kind in (EMA, Health))
                average = {k: vars(ema)[k] for k in vars(EMA()) if k not in ("_first_step", "_last_step")}
                begins = trainer.global_step - ema._first_step, trainer.current_epoch - health._since
                states.append((copy.deepcopy(average), begins, trainer.global_step))

    fitted(net, LotteryTicket(ROUNDS, EPOCHS), tmp_path, EMA(0.5, start_step=3), Health(), Looks())
    (first, places, _), (later, again, step) = states
    assert step == 2 * EPOCHS * STEPS and first["_average"] is None
    assert later == first and again == places == (0, 0)


def test_a_rounds_figures_are_of_its_own_epochs(net, tmp_path):
    """Validated every second epoch: of 3-epoch rounds, 0 and 2 end with an epoch that was not."""
    lottery = LotteryTicket(ROUNDS, EPOCHS, fraction=0.3)
    fitted(net, lottery, tmp_path, check_val_every_n_epoch=2)
    rounds = lottery.record["rounds"]
    assert [each["val_accuracy"] is None for each in rounds] == [True, False, True]
    assert [each["val_loss"] is None for each in rounds] == [True, False, True]
    assert all(each["val_accuracy_best"] is not None and each["train_loss"] is not None for each in rounds)
    with pytest.raises(UserError, match=r"check_val_every_n_epoch=4: a round of 3 epochs may have no validation"):
        fitted(net, LotteryTicket(ROUNDS, EPOCHS), tmp_path / "b", check_val_every_n_epoch=4)


@pytest.mark.parametrize("net", ["quaternion"], indirect=True)
@pytest.mark.parametrize(("unit", "scope"), [("component", "layer"), ("quaternion", "layer"), ("quaternion", "global")])
def test_a_lottery_of_components_and_of_whole_quaternions(net, tmp_path, unit, scope):
    lottery = LotteryTicket(ROUNDS, EPOCHS, fraction=0.3, scope=scope, unit=unit)
    module, _ = fitted(net, lottery, tmp_path)
    # The convolution has 72 weights, 18 quaternions: 18 - 6 - 4 = 8; the real head 320 - 96 - 68 = 156.
    quaternion, *_ = (module.masks[name] for name in module.masks)
    assert [each["kept"] for each in lottery.record["rounds"]] == [392, 4 * 12 + 224, 4 * 8 + 156]
    assert [int(part.sum()) for part in quaternion.chunk(4)] == [8] * 4
    same = all(torch.equal(part, quaternion.chunk(4)[0]) for part in quaternion.chunk(4))
    assert same == (unit == "quaternion")
    assert lottery.record["plan"]["unit"] == unit


def test_the_best_checkpoint_is_that_of_the_last_round(net, tmp_path):
    fitted(net, LotteryTicket(ROUNDS, EPOCHS), tmp_path)
    best = checkpoint(tmp_path / "rounds/best.ckpt")
    assert best["epoch"] >= 2 * EPOCHS
    assert Masks.from_state_dict(best["smallnets"]["masks"]).kept == 250


def test_a_callback_serves_a_second_fit(net, tmp_path):
    lottery, again = LotteryTicket(ROUNDS, EPOCHS), copy.deepcopy(net)
    fitted(net, lottery, tmp_path / "a")
    one = [{k: v for k, v in each.items() if k != "seconds"} for each in lottery.record["rounds"]]
    fitted(again, lottery, tmp_path / "b")
    assert equal(net.state_dict(), again.state_dict())
    assert [{k: v for k, v in each.items() if k != "seconds"} for each in lottery.record["rounds"]] == one


# -- the command line: killed and resumed, two processes, fast --------------------------------------------------------

HARD = (
    "--data.augment=[crop,flip]", "--model.mixup=0.2", "--model.interval=step", "--model.warmup=4",
    "--model.scheduler=CosineAnnealingLR", "--model.scheduler.T_max=11",
    "--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.8",
    "--trainer.callbacks+=LotteryTicket", "--trainer.callbacks.rounds=2", "--trainer.callbacks.epochs_per_round=3",
)  # fmt: skip
TICKET = (
    "--trainer.callbacks+=LotteryTicket",
    "--trainer.callbacks.rounds=2",
    "--trainer.callbacks.epochs_per_round=3",
)
LATE = (*HARD, "--trainer.callbacks.rewind_to=7it", "--trainer.max_epochs=7")  # 15 + 8 + 8 steps
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch", "smallnets")


def assert_same_runs(here, a, b):
    folders = [here / f"lightning_logs/{name}/run-1" for name in (a, b)]
    for file in ("last", "round-0", "round-1", "round-2"):
        left, right = (checkpoint(folder / f"checkpoints/{file}.ckpt") for folder in folders)
        for part in PARTS:
            assert equal(left[part], right[part]), (file, part)
        for part in ("weights", "standing", "final", "plan", "round"):
            assert equal(left[LOTTERY_KEY][part], right[LOTTERY_KEY][part]), (file, part)
    for figure in ("val_accuracy", "val_loss_last", "train_loss_last", "steps", "epochs", "nonzero_parameters"):
        assert read_row(folders[0])[figure] == read_row(folders[1])[figure], figure
    assert len({(folder / "metrics.csv").read_text() for folder in folders}) == 1


UNIT = "--trainer.callbacks.unit=quaternion"


# In the middle of a later epoch; within the part of an epoch that a round begins with; at the end of a round; in the
# dense training before the rewind point, and with a checkpoint of exactly that point (step 7).
@pytest.mark.parametrize(
    ("net", "step", "more"),
    [
        ("own_nets.Net", 26, []),
        *(pytest.param(*case, marks=pytest.mark.thorough) for case in (
            ("own_nets.Net", 29, []), ("own_nets.Net", 24, []), ("own_nets.Net", 4, []), ("own_nets.Net", 8, []),
            ("quaternion", 26, [UNIT]),
        )),
    ],
)  # fmt: skip
def test_killed_in_a_round_and_resumed_it_ends_where_the_uninterrupted_run_ends(here, tiny, own, net, step, more):
    run = tiny("fit", *LATE, *more, "--checkpoint_every=1", net=net)
    assert main([*run, "--name=whole"]) == 0
    kill = ["--trainer.callbacks+=own_nets.KillAt", f"--trainer.callbacks.step={step}"]
    died = process([*run, "--name=cut", *kill])
    assert died.returncode == -9, died.stderr
    assert checkpoint(here / "lightning_logs/cut/run-1/checkpoints/last.ckpt")["global_step"] == step - 1
    assert main([*run, "--name=cut", "--ckpt_path=last"]) == 0
    assert_same_runs(here, "whole", "cut")


@pytest.mark.thorough
def test_killed_in_fine_tuning_the_rate_stays_constant(here, tiny, own):
    plan = ("--trainer.callbacks.rewind=none", "--trainer.max_epochs=9")
    run = tiny("fit", *HARD, *plan, "--checkpoint_every=1", net="own_nets.Net")
    assert main([*run, "--name=whole"]) == 0
    kill = ["--trainer.callbacks+=own_nets.KillAt", "--trainer.callbacks.step=33"]
    assert process([*run, "--name=cut", *kill]).returncode == -9
    assert main([*run, "--name=cut", "--ckpt_path=last"]) == 0
    assert_same_runs(here, "whole", "cut")


@pytest.mark.thorough
def test_the_fast_mode_ends_as_the_default_mode_also_when_it_was_killed(here, tiny, own, monkeypatch):
    monkeypatch.setattr(chunks, "STEPS", 2)
    run = tiny("fit", *LATE, net="own_nets.Net")
    assert main([*run, "--name=plain"]) == 0
    fast = [*run, "--model.fast=true", "--checkpoint_every=1"]
    assert main([*fast, "--name=fast"]) == 0
    assert_same_runs(here, "plain", "fast")
    kill = ["--trainer.callbacks+=own_nets.KillAt", "--trainer.callbacks.step=26"]
    patched = "import smallnets.data.chunks as c; c.STEPS = 2; from smallnets.cli import console; console()"
    # The part of an epoch that round 2 begins with has the chunks of steps 24, 25 and of 26.
    assert process([*fast, "--name=cut", *kill], program=patched).returncode == -9
    assert checkpoint(here / "lightning_logs/cut/run-1/checkpoints/last.ckpt")["global_step"] == 25
    assert main([*fast, "--name=cut", "--ckpt_path=last"]) == 0
    assert_same_runs(here, "plain", "cut")


@pytest.mark.thorough
@pytest.mark.parametrize(("net", "more", "kept"), [("own_nets.Net", [], 250), ("quaternion", [UNIT], 4 * 11 + 204)])
def test_two_processes_hold_the_same_masks_and_weights(here, tiny, own, tmp_path, net, more, kept):
    out = tmp_path / "ranks"
    out.mkdir()
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=20")
    hashes = ("--trainer.callbacks+=own_nets.RankHashes", f"--trainer.callbacks.folder={out}")
    late = (*TICKET, *more, "--trainer.callbacks.rewind_to=7it", "--trainer.max_epochs=7")
    run = tiny("fit", *two, *hashes, *late, net=net)
    done = process([*run, "--name=two"])
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(out / f"rank{r}.pt")["state"] for r in (0, 1))
    assert equal(a, b)
    masks = Masks.from_state_dict(
        checkpoint(here / "lightning_logs/two/run-1/checkpoints/last.ckpt")["smallnets"]["masks"]
    )
    assert masks.kept == kept
    for name, mask in masks.items():
        assert (a[name][~mask] == 0).all() and (b[name][~mask] == 0).all()


def test_the_row_and_the_curves_tell_every_round_and_a_schedule_is_judged_by_its_round(here, tiny):
    plan = ("--model.scheduler=CosineAnnealingLR", "--model.scheduler.T_max=3", "--trainer.max_epochs=9")
    assert main(tiny("fit", *TICKET, *plan, "--name=one")) == 0
    folder = here / "lightning_logs/one/run-1"
    row = read_row(folder)
    assert not [each for each in row["health"] if each["kind"].startswith("schedule")]
    (told,) = [each for each in row["pruning"] if each["callback"] == "LotteryTicket"]
    assert told["plan"]["rewind_to"] == "0it"
    assert [each["kept"] for each in told["rounds"]] == [888, 710, 568]  # of 768 and 120
    assert row["nonzero_parameters"] == 568 + 22
    assert told["rounds"][2]["val_accuracy"] == row["val_accuracy_last"]
    lines = (folder / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("lottery/density")
    shown = {line.split(",")[1]: line.split(",")[column] for line in lines[1:] if line.split(",")[column]}
    assert shown == {"14": "1.0", "29": f"{710 / 888:.7g}", "44": f"{568 / 888:.7g}"}


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--trainer.max_epochs=8"], "max_epochs must be 9, got 8: 3 epochs of dense training and 2 rounds of 3"),
        (["--trainer.callbacks.rewind_to=1ep"], "max_epochs must be 7, got 9"),
        (["--trainer.callbacks.rewind_to=15it"], "rewind_to=15it is step 15: the dense training has 15 steps"),
        (["--trainer.callbacks.rewind_to=5"], "500it or 2ep"),
        (["--trainer.callbacks.fraction=1.0"], "fraction must lie between 0 and 1"),
        (["--trainer.callbacks.fraction=0"], "fraction must lie between 0 and 1"),
        (["--trainer.callbacks.densities=[0.5,0.6]"], "densities must fall: 0.6 comes after 0.5"),
        (["--trainer.callbacks.densities=[0.5]"], "2 numbers, one for each round"),
        (
            ["--trainer.callbacks.fraction=0.99", "--trainer.callbacks.scope=layer"],
            "round 2 would remove all 768 weights of head.0",
        ),
        (["--trainer.callbacks.fraction=0.999"], "round 1 would keep 0 weights of 2 layers"),
        (["--trainer.callbacks.head_rate_half=true"], "scope layer"),
        (["--trainer.callbacks.exclude=[nothing]"], "'nothing' matches none"),
        (
            ["--trainer.callbacks+=PruningSchedule", "--trainer.callbacks.density=0.5", "--trainer.callbacks.at=5it"],
            "both set the masks",
        ),
        (["--trainer.callbacks+=LotteryControl", "--trainer.callbacks.from_round=x"], "one lottery or control a fit"),
        (["--trainer.max_steps=10"], "leave --trainer.max_steps alone"),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"], "end the fit, not a round"),
    ],
)
def test_a_wrong_plan_is_refused_before_the_first_step(here, tiny, capsys, options, says):
    assert main(tiny("fit", *TICKET, "--trainer.max_epochs=9", *options)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) <= 3
    assert not list(here.rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_lottery_is_resumed_with_the_steps_that_it_had(net, tmp_path):
    fitted(net, LotteryTicket(ROUNDS, EPOCHS), tmp_path)
    path = tmp_path / "rounds/round-1.ckpt"
    with pytest.raises(UserError, match="an epoch has 4 steps here and 5 in the checkpoint's lottery"):
        fitted(copy.deepcopy(net), LotteryTicket(ROUNDS, EPOCHS), tmp_path, resume=path, limit_train_batches=4)


def test_a_run_goes_on_with_its_own_plan_only(here, tiny, capsys):
    run = tiny("fit", *TICKET, "--trainer.max_epochs=9", "--name=one")
    assert main(run) == 0
    for number in range(3):
        (here / f"lightning_logs/one/run-1/checkpoints/round-{number}.ckpt").unlink()
    assert main([*run, "--trainer.max_epochs=10", "--trainer.callbacks.fraction=0.3", "--ckpt_path=last"]) == 2
    assert "another lottery: fraction=0.2 (now 0.3)" in capsys.readouterr().err
    dense = tiny("fit", "--name=two")
    assert main(dense) == 0
    assert main([*dense, *TICKET, "--trainer.max_epochs=9", "--ckpt_path=last"]) == 2
    assert "trainer.callbacks was None, now LotteryTicket" in capsys.readouterr().err
