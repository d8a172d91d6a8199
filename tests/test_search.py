"""`smallnets search`: the space, the laws of trials with a stand-in for `fit`, and real trials on digits."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from smallnets.cli import main
from smallnets.errors import RunError, UserError
from smallnets.measure import Counts
from smallnets.report.collect import collect
from smallnets.results import rows
from smallnets.results.row import write_json
from smallnets.studies.search import Trials
from smallnets.studies.search_space import Search
from smallnets.studies.trial import Ended
from smallnets.verbs.resolve import FitResolver
from smallnets.verbs.search import _Fit

ROOT = Path(__file__).parent.parent
LR, NET, MOMENTUM = "model.optimizer.lr", "model.net", "model.optimizer.momentum"
SPACE: dict[str, Any] = {
    "model.optimizer": {"choices": ["SGD", "Adam"]},
    LR: {"low": "1e-4", "high": 1, "log": True},
    MOMENTUM: {"low": 0, "high": 0.9, "step": 0.1, "when": {"model.optimizer": "SGD"}},
    "model.net.width": {"low": 1, "high": 8},
}


TWO = {"val_accuracy": "max", "macs": "min"}


def search(folder: Path, **spec: Any) -> Search:
    file = folder / "s.yaml"
    file.write_text(yaml.safe_dump({"asks": "Which?", "space": SPACE, **spec}, sort_keys=False))
    return Search.read(file)


class StandIn:
    """`fit` without training: the accuracy of five epochs is a formula of the options; a checkpoint an epoch."""

    def __init__(self, root: Path, die_at: int | None = None) -> None:
        self.root, self.die_at, self.epochs, self.trained = root, die_at, 0, list[str]()

    def settings(self, arguments: list[str]) -> dict[str, Any]:
        return {}

    def options(self, arguments: list[str]) -> dict[str, str]:
        return dict(a.removeprefix("--").split("=", 1) for a in arguments)

    def counts(self, arguments: list[str]) -> Counts:
        width = int(self.options(arguments)["model.net.width"])
        return Counts(parameters=100 * width, nonzero_parameters=100 * width, macs=10 * width, bytes=400 * width,
                      activation_bytes=1, layers=())  # fmt: skip

    def train(self, arguments: list[str], report: Any) -> None:
        given = self.options(arguments)
        folder = self.root / "lightning_logs" / given["name"] / given["run"]
        last = folder / "checkpoints/last.ckpt"
        start = int(last.read_text()) if given.get("ckpt_path") == "last" else 0
        self.trained.append(f"{given['run']}@{start}")
        last.parent.mkdir(parents=True, exist_ok=True)
        lr, width = float(given[LR]), int(given["model.net.width"])
        if lr > 0.5:
            raise RunError("NaN or infinity in the training loss by step 3")
        best = 0.0
        for epoch in range(start, 5):
            if self.epochs == self.die_at:
                raise KeyboardInterrupt
            self.epochs += 1
            accuracy = 0.1 * (epoch + 1) + width / 100 - abs(lr - 0.01)
            best = max(best, accuracy)
            last.write_text(str(epoch + 1))
            if report(epoch, accuracy):
                break
        row = {"schema": 1, "status": "finished", "val_accuracy": best, "macs": 10 * width, "parameters": 100 * width}
        write_json(folder / "row.json", row)


def told(trials: Trials) -> list[tuple[Any, ...]]:
    return [(t.number, t.state, t.values, t.options, t.error) for t in trials.ended()]


def quiet(text: str) -> None: ...


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_space_is_drawn_in_its_order_and_under_its_conditions(tmp_path):
    made = search(tmp_path, set={"data": "Digits", "data.batch_size": 9})
    lr, momentum, width = made.space[1:]
    assert (lr.low, lr.high, lr.log, lr.whole) == (1e-4, 1, True, False)
    assert momentum.step == 0.1 and not momentum.whole and width.whole
    values = {"model.optimizer": "Adam", LR: 0.5, MOMENTUM: 0.3, "model.net.width": 3}
    drawn = made.draw(lambda d: values[d.name])
    assert drawn == {"data": "Digits", "data.batch_size": 9, "model.optimizer": "Adam", LR: 0.5, "model.net.width": 3}
    assert made.draw(lambda d: {**values, "model.optimizer": "SGD"}[d.name])[MOMENTUM] == 0.3
    words = made.arguments({"model.net.channels": [1, 2], NET: "resnet20", "data": "Digits"})
    assert words == ["--data=Digits", "--model.net=resnet20", "--model.net.channels=[1, 2]"]


def test_a_choice_may_set_several_options(tmp_path):
    sets = {"size": {"choices": {"small": {NET: "resnet20", "data.batch_size": 8}, "large": {NET: "resnet56"}}},
            "model.warmup": {"low": 1, "high": 3, "when": {"size": ["large"]}}}  # fmt: skip
    made = search(tmp_path, space=sets)
    assert made.draw(lambda d: "small" if d.choices else 2) == {NET: "resnet20", "data.batch_size": 8}
    assert made.draw(lambda d: "large" if d.choices else 2) == {NET: "resnet56", "model.warmup": 2}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"space": {}}, "space"),
        ({"space": {LR: {"low": 1}}}, "high: a number is expected, got None"),
        ({"space": {LR: {"low": 2, "high": 1}}}, "low <= high"),
        ({"space": {LR: {"low": 0, "high": 1, "log": True}}}, "above 0 with log"),
        ({"space": {LR: {"lo": 0, "high": 1}}}, "nearest: low"),
        ({"space": {LR: {"choices": []}}}, "at least one value"),
        ({"space": {LR: {"low": 0, "high": 1, "when": {NET: "a"}}}}, "model.net is not chosen before it"),
        ({"space": {NET: {"choices": ["a"]}, LR: {"low": 0, "high": 1, "when": {NET: "b"}}}}, "has no 'b'; a"),
        ({"space": {"seed_everything": {"low": 0, "high": 1}}}, "is not set here"),
        ({"objectives": {"test_accuracy": "max"}}, "the test set is not searched on"),
        ({"objectives": {"macs": "less"}}, "max or min"),
        ({"objectives": TWO, "pruner": "median"}, "several objectives"),
        ({"pruner": "halving"}, "one of median, hyperband"),
        ({"sampler": "cmaes"}, "one of tpe, random, nsga2, grid"),
        ({"sampler": {"tpe": {"seed": 3}}}, "arguments are taken by nsga2 alone"),
        ({"sampler": "nsga2"}, "nsga2 is for several objectives"),
        ({"sampler": {"nsga2": {"population_size": 1}}, "objectives": TWO}, "at least 2 is expected, got 1"),
        ({"sampler": "grid"}, "model.optimizer.lr: choices, a step or whole numbers are expected"),
        (
            {
                "sampler": "grid",
                "space": {NET: {"choices": ["a"]}, "data.x": {"low": 0, "high": 1, "when": {NET: "a"}}},
            },
            "data.x: a grid has no dimensions with when",
        ),
        ({"budget": {"params": 3}}, "nearest: parameters"),
        ({"spaces": {}}, "nearest: space"),
        ({"trials": 0}, "at least 1"),
        ({"base": "no.yaml"}, "there is no config"),
    ],
)
def test_a_mistake_in_the_file_is_told(tmp_path, spec, message):
    with pytest.raises(UserError, match=re.escape(message)):
        search(tmp_path, **spec)


@pytest.mark.parametrize("file", sorted((ROOT / "configs/search").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_search_of_the_project_draws_options_that_fit_takes(file, resolver):
    for quick in (False, True):
        made = Search.read(file, quick)
        for end in (0, -1):
            options = made.draw(lambda d, end=end: list(d.choices)[end] if d.choices else (d.low, d.high)[end])
            settings = resolver.settings(made.arguments(options))
            assert settings["model"]["net"]["class_path"].startswith("smallnets.models.")


@pytest.fixture(scope="module")
def resolver() -> FitResolver:
    return FitResolver()


def test_every_dimension_of_document_004s_search_reaches_the_run(resolver):
    """Its dropout was never called, and its momentum drawn for optimizers without one."""
    made = Search.read(ROOT / "configs/search/004_optuna.yaml")
    first = {d.name: next(iter(d.choices)) if d.choices else d.low for d in made.space}
    before = resolver.settings(made.arguments(made.draw(lambda d: first[d.name])))
    for dimension in made.space:
        other = {**first, dimension.name: list(dimension.choices)[-1] if dimension.choices else dimension.high}
        assert resolver.settings(made.arguments(made.draw(lambda d, other=other: other[d.name]))) != before
    assert list(made.space[0].choices) == ["SGD", "RMSprop", "Adam", "Adadelta", "Adagrad", "ASGD"]


# -- the laws of trials ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "more"),
    [
        ("tpe", {"pruner": {"median": {"n_startup_trials": 3}}}),
        ("random", {"pruner": {"median": {"n_startup_trials": 3}}}),
        ({"nsga2": {"population_size": 6}}, {"objectives": TWO}),
    ],
    ids=["tpe", "random", "nsga2"],
)
def test_killed_and_started_again_it_finds_what_an_uninterrupted_search_finds(tmp_path, sampler, more):
    """In journals, which cost less than databases; that both find the same is a test below."""

    def trials(name: str, **spec: Any) -> Trials:
        journal = str(tmp_path / f"{name}.log")
        return Trials(search(tmp_path, **{"sampler": sampler, "seed": 5, **more, **spec}), tmp_path / name, journal)

    whole = trials("whole")
    whole.work(24, StandIn(tmp_path / "whole"), quiet)
    different = len({json.dumps(t.options, sort_keys=True) for t in whole.ended()})
    assert different == 24 if "pruner" in more else different > 12, "a child may be the same as a parent"
    assert {t.state for t in whole.ended()} >= ({"done", "pruned"} if "pruner" in more else {"done"})
    runs = []
    for _ in range(60):
        fit = StandIn(tmp_path / "cut", die_at=2)
        try:
            trials("cut").work(24, fit, quiet)
            break
        except KeyboardInterrupt:
            runs += fit.trained
    assert told(trials("cut")) == told(whole)
    assert any(not run.endswith("@0") for run in runs), "no trial was gone on with from a checkpoint"
    other = trials("other", seed=6)
    other.work(2, StandIn(tmp_path / "other"), quiet)
    assert other.ended()[0].options != whole.ended()[0].options


def test_nsga2_begins_at_random_and_then_inherits(tmp_path):
    found = {}
    for name, sampler in {"random": "random", "nsga2": {"nsga2": {"population_size": 6}}}.items():
        made = search(tmp_path, sampler=sampler, objectives=TWO, space={**SPACE, LR: {"low": 0.001, "high": 0.1}})
        trials = Trials(made, tmp_path / name, str(tmp_path / f"{name}.log"))
        trials.work(18, StandIn(tmp_path / name), quiet)
        found[name] = [t.chosen for t in trials.ended()]
    assert found["nsga2"][:6] == found["random"][:6] and found["nsga2"][6:] != found["random"][6:]
    first, rest = found["nsga2"][:6], found["nsga2"][6:]
    known = {t[LR] for t in first}
    assert any(t[LR] in known for t in rest), "no child has its parent's rate"
    assert not {t[LR] for t in found["random"][6:]} & known


def test_a_grid_makes_every_combination_once_in_the_files_order_and_ends(tmp_path):
    space = {
        "model.optimizer": {"choices": ["SGD", "Adam"]},
        LR: {"low": 0.1, "high": 0.3, "step": 0.1},
        "model.net.width": {"low": 3, "high": 4},
    }
    made, journal = search(tmp_path, sampler="grid", space=space), str(tmp_path / "trials.log")
    with pytest.raises(KeyboardInterrupt):
        Trials(made, tmp_path, journal).work(99, StandIn(tmp_path, die_at=12), quiet)
    trials = Trials(made, tmp_path, journal)
    trials.work(99, StandIn(tmp_path), quiet)
    drawn = [(t.chosen["model.optimizer"], round(t.chosen[LR], 6), t.chosen["model.net.width"]) for t in trials.ended()]
    assert drawn == [(net, lr, width) for net in ("SGD", "Adam") for lr in (0.1, 0.2, 0.3) for width in (3, 4)]
    assert made.at_most(99) == 12 and made.at_most(5) == 5


def test_over_the_budget_is_not_trained(tmp_path):
    made = search(tmp_path, budget={"parameters": 300}, sampler="tpe")
    fit, trials = StandIn(tmp_path), Trials(made, tmp_path, str(tmp_path / "trials.log"))
    trials.work(40, fit, quiet)
    ended = trials.ended()
    over = [t for t in ended if t.state == "over budget"]
    assert over and all(t.options["model.net.width"] > 3 and t.values is None for t in over)
    assert all(f"parameters {100 * t.options['model.net.width']} > limit 300" in str(t.error) for t in over)
    assert not any(t.folder.exists() for t in over)
    assert {t.options["model.net.width"] for t in ended if t not in over} <= {1, 2, 3}
    assert sorted(fit.trained) == sorted(f"{t.folder.name}@0" for t in ended if t not in over)
    # The sampler learns the limit: once it has started, most of what it draws is within it.
    assert sum(t.state == "over budget" for t in ended[-20:]) < sum(t.state == "over budget" for t in ended[:20])
    assert trials.best()[0].options["model.net.width"] <= 3


def test_diverged_and_failed_trials_are_recorded_as_such(tmp_path):
    class Failing(StandIn):
        def train(self, arguments: list[str], report: Any) -> None:
            if self.options(arguments)["model.net.width"] == "4":
                raise RuntimeError("out of memory")
            super().train(arguments, report)

    made = search(tmp_path, sampler="random", space={**SPACE, LR: {"low": 0.001, "high": 1}})
    trials = Trials(made, tmp_path, str(tmp_path / "trials.log"))
    trials.work(20, Failing(tmp_path), quiet)
    ended = trials.ended()
    for each in ended:
        expected = "diverged" if each.options[LR] > 0.5 else "done"
        expected = "failed" if each.options["model.net.width"] == 4 else expected
        assert each.state == expected and (each.error is None) == (expected == "done")
    assert {t.state for t in ended} == {"diverged", "failed", "done"}
    shares = trials.importances()
    assert set(shares) <= set(SPACE) and all(0 <= share <= 1 for share in shares.values())


def test_of_two_objectives_the_front_is_best(tmp_path):
    made = search(tmp_path, objectives=TWO, budget={"parameters": 600})
    trials = Trials(made, tmp_path)
    trials.work(20, StandIn(tmp_path), quiet)
    done = [t for t in trials.ended() if t.state == "done"]

    def better(a: Ended, b: Ended) -> bool:
        x, y = a.values, b.values
        assert x is not None and y is not None
        no_worse = x["val_accuracy"] >= y["val_accuracy"] and x["macs"] <= y["macs"]
        return no_worse and x != y

    front = [t.number for t in done if not any(better(other, t) for other in done)]
    assert sorted(t.number for t in trials.best()) == front and len(front) > 1


def test_a_journal_serves_as_well_and_a_changed_space_is_refused(tmp_path):
    made, journal = search(tmp_path, sampler="random"), str(tmp_path / "trials.log")
    trials = Trials(made, tmp_path, journal)
    trials.work(3, StandIn(tmp_path), quiet)
    trials.work(5, StandIn(tmp_path), quiet)
    sqlite = Trials(made, tmp_path / "b")
    sqlite.work(5, StandIn(tmp_path / "b"), quiet)
    assert told(Trials(made, tmp_path, journal)) == told(sqlite)
    with pytest.raises(UserError, match="was changed since its first trial"):
        Trials(search(tmp_path, sampler="random", seed=1), tmp_path, journal)
    Trials(search(tmp_path, sampler="random", trials=99), tmp_path, journal)


# -- real trials -------------------------------------------------------------------------------------------------------

DIGITS = {
    "data": "Digits", "data.image_size": 8, "data.in_channels": 1, "data.train_size": 200, "data.batch_size": 40,
    "trainer.max_epochs": 2, "trainer.accelerator": "cpu", "look.graph": False, NET: "lenet_300_100",
    "health.grace_epochs": 9,
    "model.optimizer": "SGD",
}  # fmt: skip
WIDTHS = {"choices": {"a": [8, 4], "b": [16, 8], "c": [64, 64]}}


def test_a_search_on_digits_from_the_command_line(here, capsys):
    space = {LR: {"low": 0.01, "high": 0.3, "log": True}, "model.net.hidden_widths": WIDTHS}
    spec = {"asks": "Which?", "set": DIGITS, "space": space, "budget": {"parameters": 3000}, "sampler": "random"}
    Path("s.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    assert main(["search", "s.yaml", "--trials", "5"]) == 0
    assert "[5/5] trial 4" in capsys.readouterr().out
    assert main(["search", "show", "s.yaml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    for trial in shown["trials"]:
        wide = trial["options"]["model.net.hidden_widths"] == [64, 64]  # 64*64+64 + 64*64+64 + 650 = 8,970
        assert trial["state"] == ("over budget" if wide else "done")
        row = Path(trial["folder"]) / "row.json"
        assert row.is_file() != wide
        if not wide:
            assert json.loads(row.read_text())["val_accuracy"] == trial["values"]["val_accuracy"]
    assert {t["state"] for t in shown["trials"]} == {"over budget", "done"}
    assert len(shown["best"]) == 1
    # A wrong option is told before the first trial.
    spec["space"] = {"model.net.hiden_widths": WIDTHS}
    Path("wrong.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    assert main(["search", "wrong.yaml"]) == 2
    assert "hiden_widths" in capsys.readouterr().err and not Path("lightning_logs/wrong").exists()


def test_a_pruned_trial_is_no_full_result(here):
    made = search(here, set=DIGITS, space={LR: {"low": 0.01, "high": 0.3}})
    arguments = made.arguments({**DIGITS, LR: 0.1})
    fit = _Fit(here)
    for run, stop in (("stopped", True), ("whole", False)):
        fit.train([*arguments, "--name=s", f"--run={run}"], lambda epoch, value, stop=stop: stop)
    left = {row["run"]: (row["status"], row["epochs"]) for row in rows("lightning_logs/s")}
    assert left == {"stopped": ("pruned", 1), "whole": ("finished", 2)}
    results = collect(["lightning_logs/s"])
    assert [row["run"] for row in results.rows] == ["whole"]
    assert results.problems == [
        "lightning_logs/s/stopped was stopped by its search's pruner (epochs: 1); it is left out"
    ]
    # Trained on by hand it is a run like any other.
    fit.train([*arguments, "--name=s", "--run=stopped", "--ckpt_path=last"], lambda epoch, value: False)
    assert {row["run"]: row["status"] for row in rows("lightning_logs/s")}["stopped"] == "finished"


@pytest.mark.slow
def test_the_best_is_trained_anew_on_fresh_seeds_and_tested(here, capsys):
    spec = {"asks": "Which?", "set": DIGITS, "space": {LR: {"low": 0.01, "high": 0.3}}, "confirm": {"seeds": 2}}
    Path("s.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    assert main(["search", "s.yaml", "--trials", "2", "--workers", "2"]) == 0
    capsys.readouterr()
    assert main(["search", "show", "s.yaml", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [t["state"] for t in shown["trials"]] == ["done"] * 2
    assert main(["search", "confirm", "s.yaml"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"trial {shown['best'][0]}: test accuracy 0\.\d+ \+- 0\.\d+ \(s\.d\.\) over 2 seeds", out)
    tested = [json.loads(p.read_text()) for p in Path("lightning_logs/s-confirm").glob("*/row.json")]
    assert sorted(row["seed"] for row in tested) == [1, 2] and all(row["test_reads"] == 1 for row in tested)


@pytest.mark.thorough
def test_a_search_that_is_killed_ends_where_an_uninterrupted_one_ends(here, own, capsys):
    space = {LR: {"low": 0.01, "high": 0.3, "log": True}, "model.net.width": {"choices": [4, 8]}}
    spec = {"asks": "Which?", "space": space, "pruner": "median",
            "set": {**DIGITS, NET: "own_nets.Net", "trainer.max_epochs": 3}}  # fmt: skip
    Path("s.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    command = [sys.executable, "-m", "smallnets", "search", str(here / "s.yaml"), "--trials=3", "--folder=cut"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=here)
    last, until = here / "cut/lightning_logs/s/trial-0001/checkpoints/last.ckpt", time.monotonic() + 200
    while not last.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert last.is_file()
    found = {}
    for folder in ("cut", "whole"):
        assert main(["search", str(here / "s.yaml"), "--trials=3", f"--folder={folder}"]) == 0
        capsys.readouterr()
        assert main(["search", "show", str(here / "s.yaml"), f"--folder={folder}", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        found[folder] = [{k: v for k, v in t.items() if k != "folder"} for t in shown["trials"]]
    assert found["cut"] == found["whole"] and len(found["whole"]) == 3
