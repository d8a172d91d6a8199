"""Every config in configs/: it parses, builds the network whose count it names, plans a sound run, and trains.

A config opens with its command lines, and each `# smallnets fit ...` may be followed, before the next one, by

    # parameters: 272,474                           the network's exact count (`measure.count`), as it is trained
    # Health warns: kind, kind                      what Health finds in the plan, the rate and the statistics

both of which are checked; without the second line of a command that of the file's first command holds, and without
that nothing may be found. In the commands DIR stands for the folder of the data and CHECKPOINT for a trained network.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smallnets import data
from smallnets.callbacks import EMA, LotteryTicket, ParameterBudget
from smallnets.cli import TRAINER_VERBS, main
from smallnets.config import expand_arguments
from smallnets.data.arrays import Arrays, Part
from smallnets.data.source import Source
from smallnets.measure import count
from smallnets.optim import Length, plan_findings, rate_far_from_reference
from smallnets.results import read_row
from smallnets.training.classifier import Classifier
from smallnets.training.health import strange_statistics
from smallnets.verbs import trainer

pytestmark = pytest.mark.filterwarnings(
    "default::smallnets.callbacks.HealthWarning",
    # Adadelta has none; the monitor of rates says so.
    "ignore:You have set log_momentum=True",
)

ROOT = Path(__file__).parents[1]
# The checkout's own folder may be called so too.
FILES = [
    f for f in sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.yaml")) if "/studies/" not in f
]
# The training split's size, and the published statistics of the sets whose own are given in a config.
TRAIN_IMAGES = {"CIFAR10": 45_000, "CIFAR100": 45_000, "MNIST": 54_000, "ImageNet64": 1_153_050, "Digits": 1_348}
CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_STATISTICS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
STATISTICS = {"CIFAR10": CIFAR10_STATISTICS, "CIFAR100": CIFAR100_STATISTICS}
# Files whose header must name a count: all that choose a network, but the quick start.
NETWORK_FOLDERS = ("cifar10", "cifar100", "mnist", "imagenet64", "lottery", "recipes")


@dataclass
class Command:
    """One command line of a header, and what the header says of it."""

    file: str
    words: list[str]
    parameters: int | None = None
    warns: list[str] = field(default_factory=list)

    @property
    def verb(self) -> str:
        return self.words[0]

    def argv(self, **places: str) -> list[str]:
        """The arguments of `main`, with paths that hold from any folder."""
        words = [places.get(w, w) for w in self.words]
        return [str(ROOT / w) if w.startswith("configs/") else w for w in words]


def commands(file: str) -> list[Command]:
    """The command lines in a config's header, in its order."""
    header = []
    for line in (ROOT / file).read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    text = re.sub(r"\\\n", " ", "\n".join(header))
    found: list[Command] = []
    given: set[int] = set()
    for line in text.splitlines():
        if line.startswith("smallnets "):
            found.append(Command(file, shlex.split(line)[1:]))
        fits = [c for c in found if c.verb == "fit"]
        if fits and (match := re.search(r"\bparameters: ([\d,]+)$", line)):
            fits[-1].parameters = int(match[1].replace(",", ""))
        if fits and (match := re.match(r"Health warns: (.*)", line)):
            fits[-1].warns = [] if match[1] == "nothing" else match[1].split(", ")
            given.add(id(fits[-1]))
    fits = [c for c in found if c.verb == "fit"]
    for command in fits[1:]:
        if id(command) not in given:
            command.warns = fits[0].warns
    return found


COMMANDS = [c for file in FILES for c in commands(file) if c.verb in TRAINER_VERBS]
FITS = [c for c in COMMANDS if c.verb == "fit"]
FIRST = {file: next(c for c in FITS if c.file == file) for file in FILES if any(c.file == file for c in FITS)}


def label(command: Command) -> str:
    name = next((w.removeprefix("--name=") for w in command.words if w.startswith("--name=")), "")
    return f"{command.file.removeprefix('configs/')} {command.verb} {name}".strip()


class Noise(Source):
    """Random images: four of each class in the training part, so that validation has one too, two in the test part."""

    def __init__(self, classes: int, channels: int, size: int) -> None:
        self.classes, self.shape = classes, (channels, size, size)

    def read(self, part: Part) -> Arrays:
        labels = torch.arange(self.classes).repeat(4 if part == "train" else 2)
        generator = torch.Generator().manual_seed(len(labels))
        images = torch.randint(256, (len(labels), *self.shape), dtype=torch.uint8, generator=generator)
        return Arrays(images, labels, [str(i) for i in range(self.classes)])


@pytest.fixture(autouse=True)
def stand_in_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets that have to be downloaded are random images of their form."""

    def make_source(self: data.ImageData) -> Source:
        return Noise(self.num_classes, self.in_channels, self.image_size)

    for cls in (data.CIFAR10, data.CIFAR100, data.MNIST, data.ImageNet64):
        monkeypatch.setattr(cls, "make_source", make_source)


class Parsed(trainer.TrainerCLI):
    """The command line's parser alone: no checkpoint is looked for, nothing is built or run."""

    def _parse_ckpt_path(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


@pytest.fixture(scope="module")
def parse() -> Callable[[list[str]], Any]:
    """`parse(argv)`: the parser and what it makes of a command line. One a verb, which takes most of the time."""
    parsers: dict[str, Any] = {}

    def parser_of(verb: str) -> Any:
        built: list[Parsed] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Parsed, "__init__", _keep(Parsed.__init__, built))
            patch.setattr(trainer, "TrainerCLI", Parsed)
            patch.delenv("PL_GLOBAL_SEED", raising=False)
            assert main([verb, "--data=Digits", "--model.net=lenet_12"]) == 0
        return built[0].parser

    def parsed(argv: list[str]) -> Any:
        if argv[0] not in parsers:
            parsers[argv[0]] = parser_of(argv[0])
        parser = parsers[argv[0]]
        return parser, parser.parse_args([argv[0], *expand_arguments(argv[1:])])

    return parsed


def _keep(init: Callable[..., None], built: list[Any]) -> Callable[..., None]:
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        built.append(self)
        init(self, *args, **kwargs)

    return wrapped


# -- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_a_config_is_a_page_that_opens_with_its_commands(file):
    text = (ROOT / file).read_text()
    assert isinstance(yaml.safe_load(text), dict)
    assert all(len(line) <= 120 for line in text.splitlines())
    assert text.startswith("# smallnets "), "the first line is the command"
    found = commands(file)
    for command in found:
        named = [word for word in command.words if word.startswith("configs/")]
        assert file in named and all((ROOT / name).is_file() for name in named), command.words
    if file.split("/")[1] in NETWORK_FOLDERS:
        assert [c.verb for c in found[:2]] == ["fit", "test"]
        assert "Measured: " in text
    if file.split("/")[1] in NETWORK_FOLDERS and "net" in yaml.safe_load(text)["model"]:
        assert found[0].parameters is not None, "the header names the count: # parameters: N"


def test_runs_of_different_commands_do_not_share_a_name():
    names = [name_of(c) for c in FITS if "callbacks/" not in c.file]
    assert "" not in names
    assert sorted(names) == sorted(set(names))


def name_of(command: Command) -> str:
    """The --name of a command, or the `name` of the last of its configs that has one."""
    given = [w.removeprefix("--name=") for w in command.words if w.startswith("--name=")]
    configs = [yaml.safe_load((ROOT / w).read_text()) for w in command.words if w.startswith("configs/")]
    return (given or [c["name"] for c in reversed(configs) if c.get("name")] or [""])[0]


# -- what the commands mean --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=label)
def test_a_command_builds_the_network_and_the_plan_that_its_header_names(command, parse, tmp_path):
    parser, config = parse(command.argv(DIR=str(tmp_path), CHECKPOINT=str(tmp_path / "best.ckpt")))
    options = config[command.verb]
    options.model.init_from = None
    if command.verb != "fit":
        return
    with torch.device("meta"):  # shapes alone are asked for
        built = parser.instantiate(config).fit
    model, module = built.model, built.data
    assert isinstance(model, Classifier)
    counts = count(model.net, image_size=module.image_size, in_channels=module.in_channels)
    callbacks = built.trainer.callbacks or []
    # Any other callback may change the network before it is trained: then the count is that of the run, below.
    if all(isinstance(c, (ParameterBudget, EMA, LotteryTicket)) for c in callbacks):
        assert counts.parameters == (command.parameters or counts.parameters)
        for budget in [c.budget for c in callbacks if isinstance(c, ParameterBudget)]:
            budget.require(counts, command.file)
    assert found_by_health(model, module, options, callbacks) == sorted(command.warns)


def found_by_health(model: Classifier, module: data.ImageData, options: Any, callbacks: list[Any]) -> list[str]:
    """The kinds that Health would find before the first step, at the full size of the data set."""
    rounds = [c for c in callbacks if isinstance(c, LotteryTicket)]
    epochs = rounds[0].schedule_epochs if rounds else options.trainer.max_epochs
    steps = epochs * ceil(TRAIN_IMAGES[module.name] / module.batch_size)
    found, rate = plan_findings(model.optimizer_factory, model.make_schedule, model.interval, Length(epochs, steps))
    kinds = [kind for kind, _ in found]
    optimizer = model.optimizer_factory([torch.nn.Parameter(torch.zeros(1))])
    if rate_far_from_reference(optimizer, rate, module.batch_size):
        kinds.append("rate_far_from_reference")
    mean, std = options.data.init_args.get("mean"), options.data.init_args.get("std")
    if (mean or std) and strange_statistics(mean, std, *STATISTICS[module.name]):
        kinds.append("strange_statistics")
    return sorted(kinds)


def test_the_configs_cover_the_recipes_of_the_documents():
    def of(prefix: str) -> set[int | None]:
        return {c.parameters for c in FITS if c.file.startswith(f"configs/recipes/{prefix}")}

    for optimizer in ("sgdm", "adam", "adabound"):
        ten = {11_173_962, 701_466, 9_786_378, 840_010, 504_266, 15_245_130, 955_098}
        hundred = {11_220_132, 713_076, 9_832_548, 851_620, 521_636, 15_291_300, 966_708}
        assert of(f"000_{optimizer}") == ten | hundred
    assert of("001_") == {6_964_106, 7_978_856, 21_289_802, 272_474, 11_171_146}
    table5 = {4_978_810, 4_969_776, 4_988_256, 5_326_506, 4_623_178, 6_412_362, 11_773_258, 701_466}
    assert table5 < of("002_")
    assert {2_777_674, 11_173_962} <= of("004_")


# -- running -----------------------------------------------------------------------------------------------------------

SMALL = (
    "--data.batch_size=2", "--data.eval_batch_size=4", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=2", "--trainer.accelerator=cpu",
    "--look.graph=false",
    "--health.grace_epochs=2",  # nothing is learned from noise, and that is not judged
)  # fmt: skip

# What does not fit into two batches.
SHORTER = {
    "configs/callbacks/prune_cubic.yaml": [
        f"--trainer.callbacks.{option}={time}" for option, time in (("start", "0it"), ("end", "2it"), ("every", "1it"))
    ],
    "configs/callbacks/prune_channels.yaml": [
        f"--trainer.callbacks.{option}={value}" for option, value in (("rounds", 1), ("every", "null"), ("at", "1ep"))
    ],
    "configs/callbacks/qat.yaml": ["--trainer.callbacks.start=0it"],
    "configs/callbacks/prune_channels_budget.yaml": ["--trainer.callbacks.at=1ep"],
}
# Of the callback of a lottery, which is the last of its config: round 1 is rewound to step 1 of an epoch of two.
LOTTERY = [
    "--trainer.callbacks.rounds=1", "--trainer.callbacks.epochs_per_round=1", "--trainer.callbacks.rewind_to=1it",
    "--trainer.max_epochs=2",
]  # fmt: skip


def is_lottery(file: str) -> bool:
    return "LotteryTicket" in (ROOT / file).read_text()


SHORTER |= {file: LOTTERY for file in FILES if is_lottery(file)}


@pytest.fixture
def trained(here: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """`trained(command)` runs a header's command for two training and two validation batches; gives the run's row."""

    def fit(command: Command, name: str = "tried") -> dict[str, Any]:
        argv = command.argv(DIR=str(here))
        if "CHECKPOINT" in argv:
            fit(FIRST["configs/recipes/001_resnet20.yaml"], "before")
            argv[argv.index("CHECKPOINT")] = "lightning_logs/before/run-1/checkpoints/best.ckpt"
        assert main([*argv, *SMALL, *SHORTER.get(command.file, ()), f"--name={name}"]) == 0
        row = read_row(here / f"lightning_logs/{name}/run-1")
        assert row is not None
        return row

    yield fit
    # Checkpoints of all configs together would be gigabytes.
    shutil.rmtree(here)


@pytest.mark.parametrize("file", FIRST)
def test_a_config_runs_for_two_batches(file, trained):
    command = FIRST[file]
    row = trained(command)
    assert (row["status"], row["epochs"], row["steps"]) == ("finished", *((2, 3) if is_lottery(file) else (1, 2)))
    assert 0 <= row["val_accuracy"] <= 1
    if command.parameters is not None:
        assert row["parameters"] == command.parameters


def test_the_two_commands_of_a_config_make_a_run_and_its_test_figure(here):
    fit, test = commands("configs/cifar10/resnet20.yaml")
    assert main([*fit.argv(DIR=str(here)), *SMALL]) == 0
    assert main([*test.argv(DIR=str(here)), *SMALL, "--data.eval_batch_size=64"]) == 0
    row = read_row(here / "lightning_logs/cifar10-resnet20/run-1")
    assert row is not None and row["test_reads"] == 1 and 0 <= row["test_accuracy"] <= 1


# -- configs that are added to others ----------------------------------------------------------------------------------


def config_options(*names: str) -> list[str]:
    return [word for name in names for word in ("--config", str(ROOT / "configs" / name))]


def callbacks_of(options: Any) -> list[str]:
    return [c.class_path.rpartition(".")[2] for c in options.trainer.callbacks or []]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["quickstart.yaml", "callbacks/ema.yaml"], ["EMA"]),
        (["quickstart.yaml", "callbacks/budget_1m.yaml", "callbacks/ema.yaml"], ["ParameterBudget", "EMA"]),
        (["quickstart.yaml", "callbacks/ema.yaml", "callbacks/budget_1m.yaml"], ["EMA", "ParameterBudget"]),
        (["callbacks/ema.yaml", "quickstart.yaml"], ["EMA"]),
        (["cifar10/res26_avvari.yaml", "callbacks/ema.yaml"], ["ParameterBudget", "EMA"]),
        (["callbacks/ema.yaml", "cifar10/res26_avvari.yaml"], ["EMA", "ParameterBudget"]),
    ],
)
def test_callback_configs_are_added_to_what_is_there(names, expected, parse):
    options = parse(["fit", *config_options(*names)])[1].fit
    assert callbacks_of(options) == expected
    assert all(c.class_path.startswith("smallnets.") for c in options.trainer.callbacks)


def test_a_strict_health_and_a_budget_reach_the_run(parse):
    options = parse(["fit", *config_options("quickstart.yaml", "callbacks/health_strict.yaml")])[1].fit
    assert (options.health.on_chance, options.health.check_every, options.health.grace_epochs) == ("stop", 10, 1)
    for size, limit in (("1m", "1M"), ("5m", "5M")):
        options = parse(["fit", *config_options("quickstart.yaml", f"callbacks/budget_{size}.yaml")])[1].fit
        assert options.trainer.callbacks[0].init_args.parameters == limit


def test_a_budget_config_breaks_a_run_that_is_over_it(here, capsys):
    argv = ["fit", *config_options("cifar10/conv4.yaml", "callbacks/budget_1m.yaml"), *SMALL]
    assert main([*argv, f"--data.root={here}"]) == 1
    error = capsys.readouterr().err
    assert "2,425,930" in error and "1,000,000" in error
