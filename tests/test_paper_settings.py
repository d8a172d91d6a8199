"""Every cell of a document's study has the settings that the document gives it, defaults included."""

from pathlib import Path
from typing import Any

import pytest
from paper_facts import FIGURES, said
from test_paper_studies import FOLDER, NAMES, resolver

from smallnets.studies.plan import arguments
from smallnets.studies.search_space import Search
from smallnets.studies.study import Study

SEARCHES = Path(__file__).parent.parent / "configs/search"
# What a callback's settings are here: those that a document speaks of.
OF_CALLBACKS = {
    "LotteryTicket": ("fraction", "rounds", "epochs_per_round", "scope", "unit"),
    "PruningSchedule": ("density", "scope", "at", "curve", "end"),
    "ChannelPruning": ("ratio", "ratios", "parameters", "scope", "criterion", "at"),
}
# The numbers of a schedule: its first one, by what it is called, and others.
BY = {"MultiStepLR": "milestones", "StepLR": "step_size", "CosineAnnealingLR": "T_max", "LinearLR": "total_iters",
      "CyclicLR": "step_size_up"}  # fmt: skip
MORE = {"LinearLR": ("start_factor",), "CyclicLR": ("mode", "base_lr", "max_lr")}


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a resolved configuration, flat, under the names of `paper_facts`."""
    data, model, trainer = config["data"]["init_args"], config["model"], config["trainer"]
    optimizer = model["optimizer"]["init_args"]
    found = {
        "data": _name(config["data"]), "batch": data["batch_size"], **{k: data[k] for k in ("augment", "mean", "std")},
        "optimizer": _name(model["optimizer"]),
        **{name: optimizer.get(name) for name in ("lr", "momentum", "nesterov", "weight_decay")},
        **{name: model[name] for name in ("label_smoothing", "interval", "warmup")},
        "scheduler": None, "by": None, "gamma": None, "epochs": trainer["max_epochs"],
    }  # fmt: skip
    if "final_lr" in optimizer:
        found |= {"final_lr": optimizer["final_lr"], "bound_gamma": optimizer["gamma"]}
    if model["scheduler"]:
        name, numbers = _name(model["scheduler"]), model["scheduler"]["init_args"]
        found |= {"scheduler": name, "by": numbers[BY[name]], **{k: numbers[k] for k in MORE.get(name, ())}}
        found["gamma"] = numbers["gamma"] if name in ("MultiStepLR", "StepLR") else None
    for callback in trainer["callbacks"] or []:
        if (name := _name(callback)) in OF_CALLBACKS:
            found[name] = {k: callback["init_args"][k] for k in OF_CALLBACKS[name]}
    return found


def _name(spec: dict[str, Any]) -> str:
    return spec["class_path"].rpartition(".")[2]


def expected(study: str, cell: str) -> dict[str, Any]:
    """What the documents say, in the form of `settings_of`: of a callback what is not said is at its default."""
    wanted = said(study, cell)
    for name, defaults in (
        ("PruningSchedule", {"at": None, "curve": "one_shot", "end": None}),
        ("ChannelPruning", {"ratio": None, "ratios": None, "parameters": None, "scope": "global", "at": None}),
    ):
        if name in wanted:
            wanted[name] = {**defaults, **wanted[name]}
    return wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_cells_settings_are_those_of_its_document(name: str) -> None:
    study, fit = Study.read(FOLDER / f"{name}.yaml"), resolver()
    for cell in study.cells:
        found = settings_of(fit._plain(fit._parse(arguments(study, cell))))
        wanted = expected(name, cell.name)
        if ratios := found.get("ChannelPruning", {}).get("ratios"):
            # In the order of the convolutions: two of each of the eight blocks.
            assert list(ratios) == [f"stages.{s}.{b}.conv{c}" for s in range(4) for b in range(2) for c in (1, 2)]
            found["ChannelPruning"]["ratios"] = list(ratios.values())
        density = found.get("PruningSchedule", {}).get("density")
        if density is not None:
            assert density == pytest.approx(wanted["PruningSchedule"].pop("density"), abs=1e-12)
            del found["PruningSchedule"]["density"]
        if found["scheduler"] == "LinearLR":
            assert found.pop("start_factor") == pytest.approx(wanted.pop("start_factor"))
        assert found == wanted, cell.name


@pytest.mark.parametrize("name", FIGURES)
def test_all_figures_that_are_stated_of_a_cell_are_there(name: str) -> None:
    stated = Study.read(FOLDER / f"{name}.yaml").stated
    for cell, figures in FIGURES[name].items():
        assert stated[cell] == pytest.approx(figures), cell
    # Of a cell that is not listed there is the one figure beside its count.
    assert all(len(figures) == 1 for cell, figures in stated.items() if cell not in FIGURES[name])


@pytest.mark.parametrize(
    ("name", "optimizers", "batches", "trials", "epochs"),
    [
        ("004_optuna", ["SGD", "RMSprop", "Adam", "Adadelta", "Adagrad", "ASGD"], [64, 128, 192, 256], 30, 25),
        ("004_read_sgd_rmsprop", ["SGD", "RMSprop"], [128, 192, 256], 10, 20),
        ("004_read_others", ["Adam", "Adadelta", "Adagrad", "ASGD"], [128, 192, 256], 10, 20),
    ],
)
def test_document_004s_searches(name, optimizers, batches, trials, epochs) -> None:
    made = Search.read(SEARCHES / f"{name}.yaml")
    space = {dimension.name: dimension for dimension in made.space}
    assert list(space["model.optimizer"].choices) == optimizers
    assert list(space["data.batch_size"].choices) == [str(n) for n in batches]
    rate = space["model.optimizer.lr"]
    assert (rate.low, rate.high, rate.log) == (1e-5, 0.1, True)
    assert (made.trials, made.sampler, list(made.pruner)) == (trials, ("tpe", {}), ["median"])
    drawn = made.draw(lambda d: next(iter(d.choices)) if d.choices else d.low)
    fit = resolver()
    found = settings_of(fit._plain(fit._parse(made.arguments(drawn))))
    assert found["epochs"] == epochs and found["augment"] == ["autoaugment", "crop", "flip"]
    dead = {name: dimension.choices for name, dimension in space.items() if not any(dimension.choices.values())}
    if name.startswith("004_read"):
        # Its two dropouts were drawn and never called.
        assert {k: list(v) for k, v in dead.items() if v} == {
            "dropout_rate": ["0", "0.1"],
            "dropout_rate2": ["0", "0.1", "0.2"],
        }
    else:
        assert not {k: v for k, v in dead.items() if v}
