"""What `fit` would make of a command line, without doing it: settings, counts, data."""

import contextlib
import io
from importlib import import_module
from typing import Any

import yaml
from jsonargparse import Namespace

from smallnets.config import expand_arguments
from smallnets.measure import Budget, Counts, count
from smallnets.studies.digest import essential_settings
from smallnets.verbs.messages import as_user_errors, short_warnings
from smallnets.verbs.trainer import TrainerCLI, make_cli, option_names


class _Parser(TrainerCLI):
    """The command line of `fit`, read and not obeyed."""

    def _parse_ckpt_path(self) -> None: ...

    def _set_seed(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...

    def parse_arguments(self, parser: Any, args: Any) -> None:
        self.config = Namespace(subcommand="fit")


class FitResolver:
    """`smallnets.studies.plan.Resolver` by the parser of `fit` itself."""

    def __init__(self) -> None:
        with short_warnings():
            cli = make_cli(_Parser, "fit", [])
            self._parser = cli._parser("fit")
            self._defaults = self._plain(self._parser.get_defaults())

    def settings(self, arguments: list[str]) -> dict[str, Any]:
        with short_warnings():
            return essential_settings(self._plain(self._parse(arguments)), self._defaults)

    def over_budget(self, arguments: list[str], budget: dict[str, Any]) -> list[str]:
        return Budget(**budget).check(self.counts(arguments))

    def counts(self, arguments: list[str]) -> Counts:
        """Of the network of these arguments, before any callback changes it."""
        built = self._build(arguments)
        size = {"image_size": built.data.image_size, "in_channels": built.data.in_channels}
        return count(built.model.net, **size)

    def prepare(self, arguments: list[str]) -> None:
        spec = self._parse(arguments).data
        module, _, name = spec.class_path.rpartition(".")
        with short_warnings(), as_user_errors(option_names):
            getattr(import_module(module), name)(**(spec.get("init_args") or {})).prepare_data()

    def _parse(self, arguments: list[str]) -> Namespace:
        # What a parser has to say about arguments that another class does not take, a run says too.
        with as_user_errors(option_names), contextlib.redirect_stderr(io.StringIO()):
            return self._parser.parse_args(expand_arguments(arguments))

    def _build(self, arguments: list[str]) -> Namespace:
        with short_warnings(), as_user_errors(option_names):
            return self._parser.instantiate_classes(self._parse(arguments))

    def _plain(self, config: Namespace) -> dict[str, Any]:
        return yaml.safe_load(self._parser.dump(config, skip_none=False, skip_validation=True))
