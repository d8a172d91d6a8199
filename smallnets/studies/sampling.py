"""What Optuna decides in a search: the next value, when to stop a trial, which dimension mattered."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from smallnets.data.seeds import mix
from smallnets.errors import UserError
from smallnets.studies.search_methods import grid_point
from smallnets.studies.search_space import Dimension, Search

if TYPE_CHECKING:
    import optuna


def suggest(search: Search, study: "optuna.Study", trial: "optuna.Trial", dimension: Dimension) -> Any:
    """The value, or the name of the choice, of a dimension in a trial.

    It is a function of the search's seed, the trial's number, the dimension and the trials that have ended.
    """
    study.sampler = _sampler(search, trial.number, dimension)
    name, log = dimension.name, dimension.log
    if dimension.choices:
        return trial.suggest_categorical(name, list(dimension.choices))
    if dimension.whole:
        return trial.suggest_int(name, int(dimension.low), int(dimension.high), step=int(dimension.step or 1), log=log)
    return trial.suggest_float(name, dimension.low, dimension.high, step=dimension.step, log=log)


def _sampler(search: Search, number: int, dimension: Dimension) -> Any:
    """The sampler of one draw: what is drawn does not depend on what this process has drawn before."""
    from optuna import samplers

    name, arguments = search.sampler
    seed = mix(search.seed, number, [d.name for d in search.space].index(dimension.name)) % 2**32
    if name == "tpe":
        return samplers.TPESampler(seed=seed)
    if name == "random":
        return samplers.RandomSampler(seed=seed)
    if name == "grid":
        return _fixed(grid_point(search.space, number, dimension.name))

    class Genetic(samplers.NSGAIISampler):
        """What a trial inherits is drawn at once, with one seed for all dimensions; what is new, by the dimension's."""

        def sample_independent(self, *given: Any, **named: Any) -> Any:
            return samplers.RandomSampler(seed=seed).sample_independent(*given, **named)

    return Genetic(seed=mix(search.seed, number, len(search.space)) % 2**32, **arguments)


def _fixed(value: Any) -> Any:
    """A sampler that knows one value."""
    from optuna.samplers import BaseSampler

    class Fixed(BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return value

    return Fixed()


def make_pruner(search: Search) -> Any:
    """Optuna's pruner that the search's file asks for. UserError for arguments that it does not take."""
    from optuna import pruners

    known: dict[str, Any] = {"median": pruners.MedianPruner, "hyperband": pruners.HyperbandPruner}
    for name, arguments in search.pruner.items():
        try:
            return known[name](**arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"search {search.file}: pruner: {name}: {error}") from error
    return pruners.NopPruner()


def importances(study: "optuna.Study", space: Sequence[Dimension]) -> dict[str, float]:
    """Dimension -> its share of the variance of the first objective (fANOVA), the largest first.

    Of a dimension that is chosen under a condition it is the share among the trials that have it. Empty with fewer than
    four trials that are done; a dimension that they do not vary, or fewer have, is left out.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    done = [t for t in study.trials if t.state == TrialState.COMPLETE]
    always = [d.name for d in space if not d.when]
    found: dict[str, float] = {}
    for name in (d.name for d in space):
        those = [t for t in done if name in t.params]
        if len(those) < 4 or len({t.params[name] for t in those}) < 2:
            continue
        shares = get_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), params=list(dict.fromkeys([*always, name])),
            target=lambda trial: trial.values[0], normalize=False,
        )  # fmt: skip
        found[name] = float(shares[name])
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
