"""`smallnets fit | validate | test | predict`: LightningCLI with a run folder, exact resume and short errors."""

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from smallnets.callbacks import Health
from smallnets.callbacks.checkpoint import RenamedCheckpointIO, run_checkpoints
from smallnets.callbacks.look import TensorBoardLook
from smallnets.callbacks.record import RunRecord, describe
from smallnets.config import LINKED, expand_arguments
from smallnets.data import ImageData
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.models.name import name_of
from smallnets.models.spec import spec_of
from smallnets.results.load import CHECKPOINT_KEY, network_of, read_checkpoint
from smallnets.results.row import read_row
from smallnets.results.run import RunFolder, check_name
from smallnets.results.test_ledger import begin_reading, end_reading, stored_figure
from smallnets.training.classifier import Classifier
from smallnets.training.csv_log import MetricsCSV
from smallnets.training.epoch_lines import EpochLines
from smallnets.training.predictions import write_predictions
from smallnets.verbs.messages import as_user_errors, one_line, short_warnings

# Lightning starts one process a device with the same command line; they learn the run's folder from the first.
_FOLDER_ENV = "SMALLNETS_RUN_FOLDER"
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
    """LightningCLI for a `Classifier` on an `ImageData`.

    It resolves `--ckpt_path last|best`, claims the run's folder, and adds loggers, checkpoints and the run's record.
    """

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

    # -- which run and which checkpoint ------------------------------------------------------------------------------

    def _parse_ckpt_path(self) -> None:
        """Finds the checkpoint and its run. (Lightning's own lets the checkpoint's settings override the command's.)"""
        config = self.options
        self.logs = Path(config.trainer.default_root_dir or ".") / "lightning_logs"
        config.name = config.name or _default_name(config)
        check_name("--name", config.name)
        check_name("--run", config.run)
        self.folder: RunFolder | None = None
        self.resumes = self.subcommand_name == "fit" and config.ckpt_path == "last"
        choice = config.ckpt_path or ("best" if self.subcommand_name != "fit" else None)
        if choice in ("last", "best"):
            self.folder = RunFolder.latest(self.logs, config.name, config.run, f"checkpoints/{choice}.ckpt")
            if self.folder is None:
                where = self.logs / config.name / (config.run or "")
                raise UserError(
                    f"no checkpoints/{choice}.ckpt of a run in {where}: train first, or name a file with --ckpt_path"
                )
            config.ckpt_path = str(self.folder.checkpoints / f"{choice}.ckpt")
        elif choice and self.subcommand_name != "fit":
            self.folder = RunFolder.owning(Path(choice))
        self.checkpoint = read_checkpoint(config.ckpt_path) if config.ckpt_path else None

    @property
    def subcommand_name(self) -> str:
        return str(self.config["subcommand"])

    @property
    def options(self) -> Namespace:
        """The parsed options of the verb."""
        return self.config[self.subcommand_name]

    def _claim_folder(self) -> None:
        """A folder for a run that starts, or for a checkpoint without one; once all that was asked for exists."""
        if self.folder is not None or self.options.trainer.fast_dev_run:
            return
        given = os.environ.get(_FOLDER_ENV)
        if given and _local_rank() > 0:
            self.folder = RunFolder(Path(given))
        else:
            self.folder = RunFolder.claim(self.logs, self.options.name, self.options.run)
            os.environ[_FOLDER_ENV] = str(self.folder.path.absolute())

    # -- building ----------------------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.checkpoint is not None:
            self._check_checkpoint(self.checkpoint)
        counts = count(self.model.net, image_size=self.datamodule.image_size, in_channels=self.datamodule.in_channels)
        if self.subcommand_name in ("fit", "test"):
            self._claim_folder()
        options = self.config_init[self.subcommand_name]
        given = options.trainer
        callbacks = list(given.callbacks or [])
        if self.subcommand_name == "fit":
            callbacks += self._fit_callbacks(options)
            sizes = f"{counts.parameters:,} parameters, {counts.macs:,} MACs, {counts.bytes:,} bytes"
            where = self.folder.path if self.folder else "(none: fast_dev_run)"
            _say(f"{name_of(self.model.net)}: {sizes}; {self.datamodule.name}; run {where}")
        arguments = {
            **given.as_dict(),
            "callbacks": callbacks,
            "plugins": [*_as_list(given.plugins), RenamedCheckpointIO()],
            "logger": self._loggers(given),
        }
        if given.enable_progress_bar is None:
            arguments["enable_progress_bar"] = sys.stdout.isatty()
        if self.folder is None:
            arguments["enable_checkpointing"] = False
        if self.subcommand_name == "predict":
            # One list of predictions in the order of the images, whatever the run was trained on.
            arguments |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        try:
            return self.trainer_class(**arguments)
        except (MisconfigurationException, ValueError, TypeError) as error:
            if self.folder is not None and not any(self.folder.path.iterdir()):
                self.folder.path.rmdir()
            raise UserError(f"the trainer refuses its options: {one_line(str(error))}") from error

    def _check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        path, stored = self.options.ckpt_path, checkpoint[CHECKPOINT_KEY]
        _same_network(stored["net"], spec_of(self.model.net), path)
        if stored["num_classes"] != self.datamodule.num_classes:
            raise UserError(
                f"{path} is of a run on {stored['data']} with {stored['num_classes']} classes;"
                f" {self.datamodule.name} has {self.datamodule.num_classes}"
            )
        if self.subcommand_name != "fit":
            # The file alone says what the network is, whatever was pruned since its configuration was written.
            self.model.net = network_of(checkpoint, path, net=self.model.net)

    def _fit_callbacks(self, options: Namespace) -> list[Any]:
        callbacks: list[Any] = [options.health, LearningRateMonitor(logging_interval="epoch", log_momentum=True)]
        if self.folder is not None:
            config = yaml.safe_load(self._parser(self.subcommand_name).dump(self.options, skip_none=False))
            config = {k: v for k, v in config.items() if k not in _OF_THE_COMMAND}
            options.look.config = config
            callbacks += [options.look, RunRecord(self.folder.path, config)]
            callbacks += run_checkpoints(self.folder.checkpoints, options.checkpoint_every)
        return callbacks

    def _loggers(self, trainer: Namespace) -> Any:
        if trainer.logger not in (None, True):
            return trainer.logger
        if self.folder is None or self.subcommand_name != "fit":
            return False
        path = self.folder.path
        step = self.checkpoint["global_step"] if self.checkpoint and self.resumes else None
        loggers: list[Logger] = [
            TensorBoardLogger(
                path.parent.parent, name=path.parent.name, version=path.name, default_hp_metric=False, purge_step=step
            ),
            MetricsCSV(path, step),
        ]
        if not sys.stdout.isatty():
            loggers.append(EpochLines(trainer.max_epochs if trainer.max_steps == -1 else None))
        return loggers

    # -- the verbs ---------------------------------------------------------------------------------------------------

    def fit(self, **arguments: Any) -> None:
        """Trains, or goes on training; a run that has all its epochs and its row is left as it is."""
        if self.checkpoint is not None and self.resumes and self.folder is not None and read_row(self.folder.path):
            done = self.checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            if self.trainer.max_epochs is not None and 0 <= self.trainer.max_epochs <= done:
                _say(f"{self.folder.path} has its {done} epochs; a higher --trainer.max_epochs trains on")
                return
        self.trainer.fit(**arguments)
        row = read_row(self.folder.path) if self.folder is not None else None
        if row is not None:
            _say(
                f"best validation accuracy {row['val_accuracy']}, {row['seconds']:.1f} s,"
                f" {row['images_per_second']} images/s; {self.folder.path if self.folder else ''}"
            )

    def validate(self, **arguments: Any) -> None:
        """Prints the validation figures of a checkpoint."""
        figures = self._evaluate("validate", arguments)
        _say(_line("validation", figures, self.options.ckpt_path))

    def test(self, **arguments: Any) -> None:
        """Reads the test set, once a run; asked again for the same checkpoint, repeats the figure of the row."""
        assert self.folder is not None
        folder, path = self.folder.path, Path(self.options.ckpt_path)
        if _local_rank() == 0:
            row = None if self.options.reread_test else stored_figure(folder, path)
            if row is not None:
                _say(
                    f"test accuracy {row['test_accuracy']}  loss {row['test_loss']}  {path}"
                    "  (read before, not again: the figure of row.json)"
                )
                return
            begin_reading(folder, path, {**describe(self.trainer, self.model, self.datamodule), "status": "unfinished"})
        figures = self._evaluate("test", arguments)
        if self.trainer.is_global_zero:
            end_reading(folder, figures, self.datamodule.split_sizes["test"])
            _say(_line("test", figures, path))

    def predict(self, **arguments: Any) -> None:
        """Writes predictions.csv into the run's folder, or here for a checkpoint that belongs to no run."""
        arguments.pop("ckpt_path")
        batches = self.trainer.predict(**{**arguments, "return_predictions": True})
        out = (self.folder.path if self.folder else Path()) / "predictions.csv"
        written = write_predictions(out, batches, self.datamodule)
        _say(f"{written:,} predictions in {out}")

    def _evaluate(self, verb: str, arguments: dict[str, Any]) -> dict[str, float]:
        # The network was rebuilt from the checkpoint already; Lightning would load it into the configured shape.
        arguments = {k: v for k, v in arguments.items() if k not in ("ckpt_path", "weights_only")}
        getattr(self.trainer, verb)(**{**arguments, "verbose": False})
        return {k: float(v) for k, v in self.trainer.callback_metrics.items()}


def _same_network(stored: dict[str, Any] | None, asked: dict[str, Any] | None, path: str) -> None:
    if stored is None or asked is None or stored == asked:
        return
    if stored["class_path"] != asked["class_path"]:
        raise UserError(f"{path} holds a {stored['class_path']}; the command asks for a {asked['class_path']}")
    was, now = stored["init_args"], asked["init_args"]
    differ = [f"{k} {was.get(k)} (asked for: {now.get(k)})" for k in {**was, **now} if was.get(k) != now.get(k)]
    raise UserError(f"{path} holds another {stored['class_path']}: {', '.join(differ)}")


def _default_name(config: Namespace) -> str:
    parts = [config.data.class_path, config.model.net.class_path]
    return "-".join(part.rpartition(".")[2].lower() for part in parts)


def _line(part: str, figures: dict[str, float], path: Any) -> str:
    values = "  ".join(f"{name.partition('/')[2]} {value:.6g}" for name, value in sorted(figures.items()))
    return f"{part} {values}  {path}"


def _option_names() -> list[str]:
    """The options of the verbs, as far as they are not those of a chosen network, optimizer or data set."""
    groups = {"trainer": Trainer, "model": Classifier, "data": ImageData, "health": Health, "look": TensorBoardLook}
    own = ["config", "name", "run", "ckpt_path", "seed_everything", "checkpoint_every", "reread_test", "print_config"]
    return own + [f"{group}.{name}" for group, cls in groups.items() for name in inspect.signature(cls).parameters]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def run(verb: str, argv: list[str]) -> int:
    """Runs one of the trainer's verbs; returns the exit code.

    Raises:
        UserError: the command line or a config is wrong, or the run failed for a reason that has a short message.
    """
    options = {"exit_on_error": False}
    with short_warnings(), as_user_errors(_option_names):
        TrainerCLI(
            Classifier,
            ImageData,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults=_TRAINER_DEFAULTS,
            parser_kwargs={**options, **dict.fromkeys(TrainerCLI.subcommands(), options)},
            args=[verb, *expand_arguments(with_run_config(verb, argv))],
        )
    return 0


def with_run_config(verb: str, argv: list[str]) -> list[str]:
    """`test --ckpt_path FILE` alone takes the configuration of the run that the file belongs to."""
    has_config = any(a.partition("=")[0] in ("--config", "-c", "--help", "-h", "--data") for a in argv)
    if verb == "fit" or has_config:
        return argv
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        path = value if equals else following
        if name == "--ckpt_path" and path not in ("best", "last"):
            read_checkpoint(path)
            folder = RunFolder.owning(Path(path))
            if folder is None:
                raise UserError(f"--ckpt_path {path} lies in no run's checkpoints folder: give --config too")
            return ["--config", str(folder.config), *argv]
    return argv
