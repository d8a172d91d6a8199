"""A study's file to its cells, digests and command lines; a mistake in it is one clear error before a run."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from study_helpers import Options

from smallnets.cli import main
from smallnets.errors import UserError
from smallnets.measure import Budget
from smallnets.results.row import write_json
from smallnets.studies import search_space
from smallnets.studies import study as study_module
from smallnets.studies.digest import settings_digest
from smallnets.studies.execute import killed_by, last_error, run_environment, was_killed
from smallnets.studies.plan import Plan, make_plan, stored_plan
from smallnets.studies.progress import duration, seconds_left
from smallnets.studies.spec_file import LIMITS
from smallnets.studies.state import RunLock, State, next_command, state_of, write_record
from smallnets.studies.study import Study

ROOT = Path(__file__).parents[1]
LR = "model.optimizer.lr"


@pytest.fixture(scope="module")
def fit():
    """The parser of `fit` itself."""
    from smallnets.verbs.resolve import FitResolver

    return FitResolver()


def study(folder: Path, small: bool = False, **spec: Any) -> Study:
    path = folder / "s.yaml"
    path.write_text(json.dumps({"asks": "What?", **spec}))
    return Study.read(path, small)


def plan(folder: Path, resolver: Any = None, **spec: Any) -> Plan:
    return make_plan(study(folder, **spec), folder, resolver or Options())


def test_axes_zips_and_named_cells_are_crossed(tmp_path):
    made = study(
        tmp_path,
        set={"trainer.max_epochs": 3, LR: 9},
        cells={"plain": None, "wide": {"model.net.channels": [8, 16]}},
        axes={LR: [0.1, "1e-4"]},
        zip={"data.batch_size": [64, 128], "model.warmup": [0, 5]},
    )
    names = [cell.name for cell in made.cells]
    assert names == [
        f"{cell},lr={lr},batch_size={zipped}"
        for cell in ("plain", "wide") for lr in ("0.1", "1e-4") for zipped in ("64,warmup=0", "128,warmup=5")
    ]  # fmt: skip
    last = made.cells[-1]
    assert last.axes == {"cells": "wide", "lr": 0.0001, "batch_size": 128, "warmup": 5}
    assert last.options[LR] == "1e-4" and last.options["trainer.max_epochs"] == 3
    assert last.options["model.net.channels"] == [8, 16] and "model.net.channels" not in made.cells[0].options


def test_values_may_have_names_and_be_sets_of_options(tmp_path):
    sets = {
        "sgd": {"model.optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}},
        "adam": {"model.optimizer": "Adam"},
    }
    made = study(
        tmp_path,
        axes={"optimizer": sets, "model.net": ["resnet20", "vgg16"], "data.augment": {"none": [], "some": ["crop"]}},
    )
    assert [cell.name for cell in made.cells][:3] == ["sgd,resnet20,none", "sgd,resnet20,some", "sgd,vgg16,none"]
    assert made.cells[0].axes == {"optimizer": "sgd", "net": "resnet20", "augment": "none"}
    # A class stands before its arguments, whatever the order of the axes.
    assert list(made.cells[0].options) == ["model.optimizer", "model.net", "data.augment", LR]


def test_seeds_are_a_number_or_a_list_and_quick_replaces(tmp_path):
    quick = {"set": {"trainer.max_epochs": 1}, "seeds": [7], "keep": 1}
    spec = {
        "axes": {LR: [1, 2], "trainer.max_epochs": [50]},
        "seeds": 3,
        "quick": quick,
        "stated": {"lr=2,max_epochs=50": {"val_accuracy": 0.5}},
    }
    whole, small = study(tmp_path, **spec), study(tmp_path, small=True, **spec)
    assert whole.seeds == [0, 1, 2] and len(whole.cells) == 2 and whole.name == "s"
    assert small.seeds == [7] and len(small.cells) == 1 and small.name == "s-quick"
    assert small.cells[0].options["trainer.max_epochs"] == 1 and whole.cells[0].options["trainer.max_epochs"] == 50


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"axes": {LR: []}}, "axes: model.optimizer.lr: a list of values is expected, got []"),
        ({"axes": {LR: 0.1}}, "axes: model.optimizer.lr: a list of values is expected, got 0.1"),
        ({"zip": {LR: [1, 2], "model.warmup": [1]}}, "equal lengths are expected, got model.optimizer.lr: 2, model.w"),
        ({"axes": {LR: [1]}, "zip": {LR: [2]}}, "model.optimizer.lr is set by two axes"),
        ({"axes": {LR: [1, 1]}}, "two values of an axis are both called 'lr=1'"),
        ({"axes": {"seed_everything": [1]}}, "seed_everything is not set here: seeds says it"),
        ({"set": {"run": "x"}}, "set: run is not set here"),
        ({"axis": {LR: [1]}}, "a study has no 'axis'; nearest: axes"),
        ({"seeds": 0}, "seeds: how many, or a list of different whole numbers, is expected, got 0"),
        ({"seeds": [1, 1]}, "got [1, 1]"),
        ({"seeds": True}, "got True"),
        ({"asks": ""}, "asks: one sentence"),
        ({"base": "none.yaml"}, "there is no config"),
        ({"axes": {LR: [1]}, "stated": {"lr=2": {"val_accuracy": 0.9}}}, "no cell is called 'lr=2'; nearest: lr=1"),
        ({"axes": {LR: [1]}, "stated": {"lr=1": {"val_accuracy": 93.1}}}, "an accuracy is a share of 1, got 93.1"),
        ({"quick": {"epochs": 3}}, "quick has no 'epochs'"),
        ({"name": "a/b"}, "name is the name of one folder, got 'a/b'"),
        ({"metrics": "val_accuracy"}, "metrics: a list"),
        ({"test": "no"}, "test: true or false is expected"),
        ({"budget": {"params": 1}}, "budget has no 'params'; nearest: parameters"),
        ({"zip": [1]}, "zip: a mapping from options to lists of values, or a list of such, is expected, got [1]"),
        ({"set": {"config": "a.yaml"}}, "set: config is not set here: base says it, or a cell"),
        ({"axes": [LR]}, "axes: a mapping is expected, got list"),
    ],
)  # fmt: skip
def test_each_mistake_is_told(tmp_path, spec, message):
    with pytest.raises(UserError) as told:
        study(tmp_path, **spec)
    assert message in str(told.value) and str(told.value).startswith(f"study {tmp_path}/s.yaml: ")


def test_a_file_that_is_missing_empty_or_no_yaml_is_told(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("axes: {a: [1")
    (tmp_path / "empty.yaml").write_text("")
    for name, message in (("none", "No such file"), ("bad.yaml", "is not YAML"), ("empty.yaml", "must hold options")):
        assert main(["study", "run", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("smallnets: error: study ") and error.count("\n") <= 2
    assert main(["study", "rum", "x"]) == 2
    assert main(["study", "run", str(tmp_path / "none"), "--quick"]) == 2


def test_a_misspelt_option_is_told_with_the_nearest_before_anything_is_written(fit, tmp_path):
    base = {"base": str(ROOT / "configs/quickstart.yaml")}
    for option, message in (
        ("model.optimiser.lr", "no option --model.optimiser.lr; nearest: --model.optimizer"),
        ("model.net.chanels", "takes no 'chanels'; nearest: channels"),
        ("trainer.max_epochs", "--trainer.max_epochs: int or null expected, got many"),
    ):
        with pytest.raises(UserError) as told:
            plan(tmp_path, fit, **base, axes={option: ["many"]})
        assert message in str(told.value) and f"cell {option.rpartition('.')[2]}=many: " in str(told.value)
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]


def test_a_digest_is_of_what_decides_the_result(fit, tmp_path):
    """Defaults, the seed, names, the place of a named set and what is only shown are not in it."""
    base = ["--config", str(ROOT / "configs/quickstart.yaml")]

    def digest(*more: str) -> str:
        return settings_digest(fit.settings([*base, *more]))

    first = digest()
    same = (
        ["--seed_everything=5"], ["--name=x"], ["--data.root=elsewhere"], ["--look.images=3"], ["--model.mixup=0.0"],
        ["--trainer.enable_progress_bar=false"], ["--model.optimizer.dampening=0.0"], ["--trainer.accelerator=auto"],
        ["--checkpoint_every=3"],
    )  # fmt: skip
    assert {digest(*options) for options in same} == {first}
    other = ["--model.optimizer.lr=0.2"], ["--model.mixup=0.1"], ["--data.split_seed=1"], ["--trainer.max_epochs=3"]
    digests = {digest(*options) for options in other}
    assert len(digests) == len(other) and first not in digests
    settings = fit.settings(base)
    assert settings["trainer"] == {"max_epochs": 25}
    assert settings["model"]["optimizer"]["init_args"].keys() == {"lr", "momentum", "weight_decay", "nesterov"}

    folder = ["--data=ImageFolder", "--data.image_size=32"]
    assert digest(*folder, "--data.root=a") != digest(*folder, "--data.root=b")


def test_cells_that_are_the_same_clash(fit, tmp_path):
    base = str(ROOT / "configs/quickstart.yaml")
    with pytest.raises(UserError, match=r"cell lr=1e-1 is the same as lr=0.1: their settings do not differ"):
        plan(tmp_path, fit, base=base, axes={LR: [0.1, "1e-1"]})


def test_a_budget_leaves_cells_out_and_not_all_of_them(fit, tmp_path):
    nets = {
        "axes": {"model.net": ["lenet_300_100", "conv2"]},
        "set": {"data": "MNIST", "model.optimizer": "SGD", LR: 0.1},
    }
    made = plan(tmp_path, fit, budget={"parameters": "300k"}, **nets)
    assert [cell.cell for cell in made.cells] == ["lenet_300_100"]
    assert "limit 300,000" in made.excluded["conv2"]
    with pytest.raises(
        UserError, match="every cell is over the budget, lenet_300_100 with parameters 266,610 > limit 10"
    ):
        plan(tmp_path, fit, budget={"parameters": 10}, **nets)
    with pytest.raises(UserError, match="budget parameters must be a whole number"):
        plan(tmp_path, fit, budget={"parameters": "few"}, **nets)


def test_the_command_lines_say_what_the_digests_are_of(fit, tmp_path, monkeypatch):
    """Also when the base is edited after planning: the lines name copies."""
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "base.yaml"
    base.write_text((ROOT / "configs/quickstart.yaml").read_text())
    made = make_plan(study(Path(), base="base.yaml", axes={LR: [0.1, 0.2]}, seeds=2), Path(), fit)
    made.write()
    base.write_text(base.read_text().replace("batch_size: 64", "batch_size: 65"))
    lines = [shlex.split(line) for line in made.commands()]
    assert [line[1] for line in lines] == ["fit", "test"] * 4
    for run, line in zip(made.runs(), lines[::2], strict=True):
        assert settings_digest(fit.settings(line[2:])) == run.cell.digest == run.name[-8:]
        assert f"--seed_everything={run.seed}" in line and f"--run={run.name}" in line
    assert lines[1] == ["smallnets", "test", "--config", f"lightning_logs/s/{next(made.runs()).name}/config.yaml"]
    # The first seed of every cell, then the second.
    assert [(run.cell.cell, run.seed) for run in made.runs()] == [
        ("lr=0.1", 0),
        ("lr=0.2", 0),
        ("lr=0.1", 1),
        ("lr=0.2", 1),
    ]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("file", sorted((ROOT / "configs/studies").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_study_of_the_project_can_be_planned(fit, tmp_path, file, quick):
    if quick and "quick" not in yaml.safe_load(file.read_text()):
        pytest.skip("no quick form")
    made = make_plan(Study.read(file, quick), tmp_path, fit)
    assert made.cells and made.seeds


def test_a_plan_is_read_back_until_its_sources_change(tmp_path):
    made = plan(tmp_path, axes={LR: [1, 2]}, stated={"lr=1": {"val_accuracy": 0.9}})
    made.write()
    assert stored_plan(Study.read(tmp_path / "s.yaml"), tmp_path) == made
    assert stored_plan(study(tmp_path, axes={LR: [1, 2, 3]}), tmp_path) is None


def test_a_renamed_cell_keeps_its_runs(tmp_path):
    first = plan(tmp_path, cells={"old": {LR: 1}})
    run = next(first.runs())
    write_record(first, run, state="done")
    renamed = plan(tmp_path, cells={"new": {LR: 1}})
    assert next(renamed.runs()).name == run.name and run.name.startswith("old-seed0-")


def test_where_a_run_stands_is_told_by_its_folder(tmp_path):
    made = plan(tmp_path, axes={LR: [1]})
    run = next(made.runs())
    folder = made.run_folder(run)
    assert state_of(made, run) is State.NEW
    folder.checkpoints.mkdir(parents=True)
    (folder.path / "config.yaml").touch()
    assert state_of(made, run) is State.BEGUN
    assert "--ckpt_path=last" not in next_command(made, run, State.BEGUN) and not folder.path.exists()
    folder.checkpoints.mkdir(parents=True)
    folder.last.touch()
    assert next_command(made, run, State.BEGUN)[-1] == "--ckpt_path=last" and folder.last.exists()
    row = {"schema": 1, "status": "running", "test_accuracy": None, "test_reads": 0}
    for status, accuracy, expected in (
        ("running", None, State.BEGUN), ("interrupted", None, State.BEGUN), ("failed", None, State.FAILED),
        ("finished", None, State.TRAINED), ("finished", 0.5, State.DONE),
    ):  # fmt: skip
        write_json(folder.path / "row.json", {**row, "status": status, "test_accuracy": accuracy})
        assert state_of(made, run) is expected
    (folder.path / "row.json").write_text('{"schema": 1, "sta')
    assert state_of(made, run) is State.BEGUN
    write_json(folder.path / "row.json", {**row, "status": "failed"})
    assert state_of(made, run, again=True) is State.BEGUN


def test_a_lock_is_one_holders(tmp_path):
    one, two = RunLock(tmp_path / "a.lock"), RunLock(tmp_path / "a.lock")
    assert not one.held() and one.acquire() and one.taken_here()
    assert two.held() and not two.acquire()
    one.release()
    assert not two.held() and two.acquire()
    two.release()


def test_the_time_left_is_that_of_the_runs_so_far(tmp_path):
    """Cell lr=1 took 10 s and 20 s, lr=2 took 40 s: 15 and 40 a run; lr=3, unknown, the mean of both, 27.5."""
    made = plan(tmp_path, axes={LR: [1, 2, 3]}, seeds=2)
    runs = {run.name: run for run in made.runs()}
    names = list(runs)
    states = dict.fromkeys(names, State.NEW)
    assert seconds_left(made, runs, states, {}, {}, 1) is None
    took = {names[0]: 10.0, names[1]: 40.0, names[3]: 20.0}
    states |= dict.fromkeys(took, State.DONE)
    left = [name for name in names if name not in took]
    assert [runs[name].cell.cell for name in left] == ["lr=3", "lr=2", "lr=3"]
    assert seconds_left(made, runs, states, took, {}, 1) == 27.5 + 40 + 27.5
    assert seconds_left(made, runs, states, took, {}, 2) == (27.5 + 40 + 27.5) / 2
    assert seconds_left(made, runs, states, took, {}, 9) == 40, "no sooner than the longest"
    assert seconds_left(made, runs, states, took, {left[0]: 7.5}, 1) == 20 + 40 + 27.5
    # Nothing is done yet; a run that has 2 of 4 epochs behind it after 6 s will take 12, and so will the five others.
    (made.folder.path / names[0]).mkdir(parents=True)
    (made.folder.path / names[0] / "metrics.csv").write_text("epoch,step\n0,5\n1,9\n")
    runs[names[0]].cell.settings["trainer"] = {"max_epochs": 4}
    assert seconds_left(made, runs, dict.fromkeys(names, State.NEW), {}, {names[0]: 6.0}, 1) == 6 + 5 * 12
    assert [duration(s) for s in (45, 120, 7140, 7260, 200_000)] == ["45 s", "2 min", "119 min", "2 h 1 min", "2 d 7 h"]


def test_slots_share_cores_and_gpus(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert run_environment(0, 3)["OMP_NUM_THREADS"] == "2" and run_environment(0, 20)["OMP_NUM_THREADS"] == "1"
    assert "PL_GLOBAL_SEED" not in run_environment(0, 1)
    assert [run_environment(n, 5, ["0", "1"]).get("CUDA_VISIBLE_DEVICES") for n in range(3)] == ["0", "1", "0"]
    assert "CUDA_VISIBLE_DEVICES" not in run_environment(0, 1, ["0", "1"])
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert run_environment(0, 3)["OMP_NUM_THREADS"] == "7"


def test_the_error_of_a_command_is_its_last_words(tmp_path):
    log = tmp_path / "log"
    log.write_text("$ smallnets fit\nepoch 1\nsmallnets: error: over its budget\nlargest layers: a\n")
    assert last_error(log) == "over its budget largest layers: a"
    log.write_text(log.read_text() + "$ smallnets fit\nTraceback\nMemoryError: no room\n")
    assert last_error(log) == "MemoryError: no room"
    log.write_text(log.read_text() + "$ smallnets fit\n")
    assert last_error(log) == "no output"
    assert was_killed(-9) and was_killed(137) and not was_killed(1) and killed_by(-9) == killed_by(137) == "SIGKILL"


def test_a_budget_limits_all_that_a_budget_can(tmp_path):
    assert [each.name for each in dataclasses.fields(Budget)] == list(LIMITS)
    (tmp_path / "s.yaml").write_text(
        json.dumps({"asks": "?", "axes": {"a.b": [1]}, "budget": {"activation_bytes": "64k"}})
    )
    assert Study.read(tmp_path / "s.yaml").budget == {"activation_bytes": "64k"}


def test_the_page_and_the_help_name_every_key(capsys):
    page = (ROOT / "docs/studies.md").read_text()
    for verb, module in (("study", study_module), ("search", search_space)):
        assert main([verb, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        for key in (*module.KEYS, *module.QUICK_KEYS):
            assert f"`{key}`" in page and re.search(rf"[ :]{key}[,; ]", shown), key
