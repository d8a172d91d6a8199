"""`smallnets fit | validate | test | predict`: LightningCLI with a run folder, exact resume and short errors."""

import inspect
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smallnets.callbacks import Health
from smallnets.callbacks.bar import with_bar
from smallnets.callbacks.checkpoint import RenamedCheckpointIO
from smallnets.callbacks.interrupt import Interrupt
from smallnets.callbacks.look import TensorBoardLook
from smallnets.callbacks.look_test import TensorBoardTest
from smallnets.callbacks.record import unfinished_row
from smallnets.config import LINKED, expand_arguments
from smallnets.data import ImageData
from smallnets.errors import RunError, UserError
from smallnets.measure import count
from smallnets.models.name import name_of
from smallnets.models.spec import spec_of
from smallnets.requirements import require_free_port
from smallnets.results.load import CHECKPOINT_KEY, fake_quantized, network_of, read_checkpoint, require_same_network
from smallnets.results.resume import require_same_settings
from smallnets.results.row import read_row
from smallnets.results.run import RunFolder
from smallnets.results.test_ledger import begin_reading, end_reading, stored_figure
from smallnets.training.classifier import Classifier
from smallnets.training.predictions import write_predictions
from smallnets.verbs.attachments import fit_callbacks, fit_loggers
from smallnets.verbs.brief import BriefLightningParser
from smallnets.verbs.choice import Choice, first_process
from smallnets.verbs.messages import RESUME, as_user_errors, full_disk_in_threads, short_warnings, trainer_message

# What belongs to one command and not to the configuration that made the run.
_OF_THE_COMMAND = ("ckpt_path", "run", "weights_only", "verbose", "return_predictions", "config", "reread_test")
_TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": 100,
    # Whether network, images and head fit is found out before training, without a step on the validation set.
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    # The loaders share out an epoch's images themselves.
    "use_distributed_sampler": False,
}


class TrainerCLI(LightningCLI):
    """LightningCLI for a `Classifier` on an `ImageData`, with a folder, a record and checkpoints for every run.

    Args:
        verb: the one that is parsed.
        settings: LightningCLI's.
    """

    def __init__(self, verb: str, **settings: Any) -> None:
        self._only = verb
        super().__init__(Classifier, ImageData, **settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verb that is parsed and what it leaves out: a parser each for the other three would take a second."""
        return {self._only: LightningCLI.subcommands()[self._only]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="group of runs: lightning_logs/NAME/RUN")
        parser.add_argument("--run", type=str | None, default=None, help="the run's folder; default: run-1, run-2, ...")
        parser.add_argument(
            "--checkpoint_every", type=int | None, default=None,
            help="write last.ckpt also after every so many optimizer steps, to resume from the middle of an epoch",
        )  # fmt: skip
        parser.add_argument("--reread_test", type=bool, default=False, help="read the test set again for a run")
        parser.add_class_arguments(Health, "health")
        parser.add_class_arguments(TensorBoardLook, "look", skip={"config"})
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.net.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning's own warns that arguments were given while a command line exists; here they are that command line.
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # Lightning's own lets the checkpoint's settings override those of the command line.
        self.verb = str(self.config["subcommand"])
        self.options: Namespace = self.config[self.verb]
        self.choice = Choice(self.verb, self.options)
        self.options.ckpt_path = self.choice.path

    # -- building ----------------------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.choice.checkpoint is not None:
            self._check_checkpoint(self.choice.checkpoint)
        # Raises if the network cannot run on these images.
        counts = count(self.model.net, image_size=self.datamodule.image_size, in_channels=self.datamodule.in_channels)
        if self.verb == "test" or (self.verb == "fit" and not self.options.trainer.fast_dev_run):
            self.choice.claim()
        if self.choice.resumes and self.choice.folder is not None:
            require_same_settings(self.choice.folder.config, self._plain_config())
        built = self.config_init[self.verb]
        given, folder = built.trainer, self.choice.folder
        arguments = {**given.as_dict(), "plugins": [*_as_list(given.plugins), RenamedCheckpointIO()]}
        arguments["callbacks"] = list(given.callbacks or [])
        arguments["logger"] = given.logger if given.logger is not None else False
        if self.verb == "fit":
            arguments["callbacks"] += fit_callbacks(built, folder, self._plain_config())
            if folder is not None and given.enable_checkpointing is not False:
                arguments["callbacks"].append(Interrupt())
            sizes = f"{counts.parameters:,} parameters, {counts.macs:,} MACs, {counts.bytes:,} bytes"
            where = folder.path if folder else "(none: fast_dev_run)"
            _say(f"{name_of(self.model.net)}: {sizes}; {self.datamodule.name}; run {where}")
            if given.logger in (None, True) and folder is not None:
                step = self.choice.checkpoint["global_step"] if self.choice.checkpoint else None
                arguments["logger"] = fit_loggers(given, folder, step if self.choice.resumes else None)
        arguments["callbacks"], arguments["enable_progress_bar"] = with_bar(
            arguments["callbacks"], given.enable_progress_bar, sys.stdout.isatty()
        )
        if folder is None:
            arguments["enable_checkpointing"] = False
        if self.verb == "predict":
            # One list of predictions in the order of the images, whatever the run was trained on.
            arguments |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        if given.profiler is not None:
            logging.getLogger("lightning.pytorch").setLevel(logging.INFO)  # where a profile is printed
        try:
            trainer = self.trainer_class(**arguments)
        except (MisconfigurationException, ImportError, KeyError, ValueError, TypeError, RuntimeError) as error:
            self.choice.give_up()
            raise UserError(trainer_message(str(error), given.accelerator)) from error
        environment = getattr(trainer.strategy, "cluster_environment", None)
        # Lightning's own starts the processes; another, such as torchrun's, holds the port itself.
        if trainer.world_size > 1 and isinstance(environment, LightningEnvironment) and first_process():
            try:
                require_free_port()
            except RunError:
                self.choice.give_up()
                raise
        return trainer

    def _check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        path, stored = str(self.choice.path), checkpoint[CHECKPOINT_KEY]
        require_same_network(stored["net"], spec_of(self.model.net), path)
        if stored["num_classes"] != self.datamodule.num_classes:
            raise UserError(
                f"{path} is of a run on {stored['data']} with {stored['num_classes']} classes;"
                f" {self.datamodule.name} has {self.datamodule.num_classes}"
            )
        if stored["split_seed"] not in (None, self.datamodule.split_seed):
            raise UserError(
                f"{path} was trained on the split of --data.split_seed={stored['split_seed']}; on that of"
                f" {self.datamodule.split_seed} some of its training images would be tested"
            )
        if self.verb != "fit":
            # The file alone says what the network is, whatever was pruned since its configuration was written.
            self.model.net = network_of(checkpoint, path, net=self.model.net)
            self.model.set_fake_quantized(fake_quantized(checkpoint, self.model.net))

    def _plain_config(self) -> dict[str, Any]:
        """The resolved configuration, to be run again: without what belongs to this one command."""
        config: dict[str, Any] = yaml.safe_load(self._parser(self.verb).dump(self.options, skip_none=False))
        return {k: v for k, v in config.items() if k not in _OF_THE_COMMAND}

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def fit(self, **arguments: Any) -> None:
        """Trains, or goes on training; a run that has all its epochs and its row is left as it is."""
        folder = self.choice.folder.path if self.choice.folder else None
        before = read_row(folder) if folder and self.choice.resumes else None
        if self.choice.checkpoint and before and before["status"] == "finished":
            done = self.choice.checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            if self.trainer.max_epochs is not None and 0 <= self.trainer.max_epochs <= done:
                _say(f"{folder} has its {done} epochs; a higher --trainer.max_epochs trains on")
                return
        try:
            self.trainer.fit(**arguments)
        except SIGTERMException as error:
            _say(f"terminated after step {self.trainer.global_step}; {self._how_to_resume()}")
            raise SystemExit(143) from error
        except SystemExit as error:
            # Lightning's way out of Ctrl-C.
            _say(f"interrupted after step {self.trainer.global_step}; {self._how_to_resume()}")
            raise SystemExit(130) from error
        except BaseException:
            # A fit that could not even begin, for want of its data, leaves no folder that looks like a run.
            self.choice.give_up()
            raise
        row = read_row(folder) if folder else None
        if row is not None:
            speed = f"{row['epochs']} epochs in {row['seconds']:.1f} s, {row['images_per_second']} images/s"
            _say(f"best validation accuracy {row['val_accuracy']}, {speed}; {folder}")

    def _how_to_resume(self) -> str:
        """The command that goes on with the run, from its own configuration."""
        folder = self.choice.folder
        if folder is None or not folder.last.is_file():
            return "there is no checkpoint yet: start the command again"
        command = ["smallnets", "fit", "--config", str(folder.config), f"--run={folder.run}", "--ckpt_path=last"]
        return f"to go on: {shlex.join(command)}"

    def validate(self, **arguments: Any) -> None:
        """Prints the validation figures of a checkpoint."""
        _say(_line("validation", self._evaluate("validate", arguments), self.choice.path))

    def test(self, **arguments: Any) -> None:
        """Reads the test set, once a run; asked again for the same checkpoint, repeats the figure of the row."""
        assert self.choice.folder is not None
        part = self.options.trainer.limit_test_batches
        # 1.0 is the whole, the whole number 1 is one batch.
        if part is not None and not (isinstance(part, float) and part == 1):
            raise UserError(
                "the test figure is that of the whole test set: --trainer.limit_test_batches is not for `test`"
            )
        folder, path = self.choice.folder.path, Path(str(self.choice.path))
        # Processes that Lightning starts for more devices find the reading begun by the first.
        if first_process():
            row = None if self.options.reread_test else stored_figure(folder, path)
            if row is not None:
                figures = {"accuracy": row["test_accuracy"], "loss": row["test_loss"]}
                _say(_line("test", figures, f"{path}  (read before and not again: the figure of row.json)"))
                return
        # Counted when the first batch is about to be read: a command that fails before it has read nothing.
        about = unfinished_row(folder, self.trainer, self.model, self.datamodule)
        begin = LambdaCallback(on_test_start=lambda trainer, _: _begin(trainer, folder, path, about))
        self.trainer.callbacks.append(begin)  # type: ignore[attr-defined]
        if self.options.trainer.logger is not False:
            step = int((self.choice.checkpoint or {}).get("global_step", 0))
            self.trainer.callbacks.append(TensorBoardTest(folder=folder, step=max(0, step - 1)))  # type: ignore[attr-defined]
        figures = self._evaluate("test", arguments)
        if self.trainer.is_global_zero:
            end_reading(folder, figures, self.datamodule.split_sizes["test"])
            _say(_line("test", figures, path))

    def predict(self, **arguments: Any) -> None:
        """Writes predictions.csv into the run's folder, or here for a checkpoint that belongs to no run."""
        arguments = {k: v for k, v in arguments.items() if k not in ("ckpt_path", "weights_only")}
        batches = self.trainer.predict(**{**arguments, "return_predictions": True})
        out = (self.choice.folder.path if self.choice.folder else Path()) / "predictions.csv"
        written = write_predictions(out, batches, self.datamodule)
        _say(f"{written:,} predictions in {out}")

    def _evaluate(self, verb: str, arguments: dict[str, Any]) -> dict[str, float]:
        # The network was rebuilt from the checkpoint already; Lightning would load it into the configured shape.
        arguments = {k: v for k, v in arguments.items() if k not in ("ckpt_path", "weights_only")}
        getattr(self.trainer, verb)(**{**arguments, "verbose": False})
        return {k: float(v) for k, v in self.trainer.callback_metrics.items()}


def _begin(trainer: Any, folder: Path, path: Path, about: dict[str, Any]) -> None:
    if trainer.is_global_zero:
        begin_reading(folder, path, about)


def _line(part: str, figures: dict[str, float], where: Any) -> str:
    values = "  ".join(f"{name.rpartition('/')[2]} {value:.6g}" for name, value in sorted(figures.items()))
    return f"{part} {values}  {where}"


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def run(verb: str, argv: list[str], cli: type[TrainerCLI] | None = None) -> int:
    """Runs one of the trainer's verbs; returns the exit code.

    `cli` may be a subclass that adds to the trainer what is no part of the configuration.

    Raises:
        UserError: the command line or a config is wrong, or the run failed for a reason that has a short message.
    """
    with short_warnings(), as_user_errors(option_names, RESUME if verb == "fit" else ""), full_disk_in_threads():
        arguments = [verb, *expand_arguments(with_run_config(verb, argv))]
        make_cli(cli or TrainerCLI, verb, arguments, seed_everything_default=0)
    return 0


def make_cli(cli: type[TrainerCLI], verb: str, args: list[str], **settings: Any) -> TrainerCLI:
    """The command line of one of the trainer's verbs, which obeys `args` when it is made."""
    options = {"exit_on_error": False, "allow_abbrev": False}
    return cli(
        verb,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        save_config_callback=None,
        trainer_defaults=_TRAINER_DEFAULTS,
        parser_class=BriefLightningParser,
        parser_kwargs={**options, verb: options},
        args=args,
        **settings,
    )


def with_run_config(verb: str, argv: list[str]) -> list[str]:
    """`test --ckpt_path FILE` alone takes the configuration of the run that the file belongs to, and the other way."""
    if verb == "fit":
        return argv
    given = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        given[{"-c": "--config"}.get(name, name)] = value if equals else following
    if "--config" in given:
        # The configuration in a run's folder means that run, not the newest of its name.
        folder = RunFolder(Path(given["--config"]).absolute().parent)
        if folder.checkpoints.is_dir() and not {"--name", "--run", "--ckpt_path"} & set(given):
            return [*argv, f"--ckpt_path={folder.best}"]
        return argv
    path = given.get("--ckpt_path", "best")
    if {"--help", "-h", "--data"} & set(given) or path in ("best", "last"):
        return argv
    read_checkpoint(path)
    owner = RunFolder.owning(Path(path).expanduser())
    if owner is None:
        raise UserError(f"--ckpt_path {path} lies in no run's checkpoints folder: give --config too")
    return ["--config", str(owner.config), *argv]


def option_names() -> list[str]:
    """The options of the verbs, as far as they are not those of a chosen network, optimizer or data set."""
    groups = {"trainer": Trainer, "model": Classifier, "data": ImageData, "health": Health, "look": TensorBoardLook}
    own = ["config", "name", "run", "ckpt_path", "seed_everything", "checkpoint_every", "reread_test", "print_config"]
    own += ["model.optimizer.lr", "model.optimizer.momentum", "model.optimizer.weight_decay"]
    return own + [f"{group}.{name}" for group, cls in groups.items() for name in inspect.signature(cls).parameters]
