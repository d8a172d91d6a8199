"""`smallnets VERB ...`: finds the verb, runs it, and turns a user's mistake into one or two lines.

Only the standard library is imported here: `smallnets --help` answers before torch would be loaded.
Exit codes: 0; 1 for a failed run or a broken budget; 2 for a wrong command line or config.
"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from smallnets import __version__
from smallnets.errors import RunError, UserError
from smallnets.requirements import require_packages

# verb -> (module with `run(verb, argv)` or `run(argv)`, what it does)
TRAINER_VERBS = {
    "fit": "train a network on a data set: --config FILE, --data, --model.net, --model.*, --trainer.*",
    "validate": "validation figures of a checkpoint (by default the best of the newest run)",
    "test": "the one test figure of a run: reads the test set once",
    "predict": "write predictions.csv for a folder of images or the validation images",
}
VERBS = {
    "models": "every named network with its exact parameters and MACs (--json)",
    "summary": "one configured network layer by layer, against a budget (--json)",
    "data": "fetch, verify or show a data set",
    "score": "a checkpoint's scores, bytes in each form and memory, layer by layer (--json)",
    "export": "a checkpoint as ONNX, torch.export or ExecuTorch file (fp16, int8), verified, with a card",
    "study": "run a grid of configurations and seeds, to be killed and resumed: run, work, status, commands",
    "search": "search a space of configurations with Optuna, under a budget: run, show, confirm",
    "curves": "validation accuracy of one trained network against the share pruned, by weights and by channels",
    "connect": "error along the line between two networks (mode connectivity), overlap of their masks (--json)",
    "report": "tables, figures and verdicts of runs or a study, with statistics over seeds, as files and one page",
    "bench": "how fast the parts are here, beside what they are compared with (--json)",
}


def usage() -> str:
    """The page that `smallnets --help` prints."""
    verbs = "\n".join(f"  {verb:<9} {text}" for verb, text in {**TRAINER_VERBS, **VERBS}.items())
    return (
        f"smallnets {__version__}: train, prune, compare and trust compact image classifiers\n\n"
        f"usage: smallnets VERB [options]\n\n{verbs}\n\n"
        "smallnets VERB --help lists a verb's options; smallnets fit --print_config prints a whole configuration.\n"
        "A first run: smallnets fit --config configs/quickstart.yaml"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"smallnets {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb in TRAINER_VERBS:
            return int(_module("trainer", verb).run(verb, rest))
        if verb in VERBS:
            return int(_module(verb, verb).run(rest))
        raise UserError(f"no verb {verb!r}; {_nearest(verb)}")
    except UserError as error:
        print(f"smallnets: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("smallnets: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`smallnets models | head`): nothing is wrong.
        sys.stderr.close()
        return 0


def _module(name: str, verb: str) -> ModuleType:
    """A verb's module; what keeps it from being imported, on this system or with these packages, in a line."""
    require_packages()
    try:
        return import_module(f"smallnets.verbs.{name}")
    except ModuleNotFoundError as error:
        if error.name != "fcntl":
            raise
        raise UserError(f"{verb} locks files by fcntl, which Linux and macOS have: use WSL on Windows") from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        raise RunError(
            "torch and torchvision do not fit together: install both from one index, pip install --force-reinstall"
            " torch torchvision --index-url https://download.pytorch.org/whl/cpu"
        ) from error


def _nearest(verb: str) -> str:
    known = [*TRAINER_VERBS, *VERBS]
    near = difflib.get_close_matches(verb, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(known)}"


def console() -> None:
    """Entry point of the console script."""
    sys.exit(main())
