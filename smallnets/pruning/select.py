"""From scores to masks, by exact counts.

How many weights are kept is settled first, as whole numbers; which ones is a choice of indices, never of a threshold,
so that ties change nothing. All arithmetic on densities is that of the decimals one writes: 0.2 of 100 is 20.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from smallnets.errors import UserError
from smallnets.pruning.masks import Masks
from smallnets.pruning.prunable import fits

Scope = Literal["global", "layer"]


def select(
    scores: Mapping[str, Tensor],
    *,
    density: float | None = None,
    kept: int | None = None,
    scope: Scope = "global",
    densities: Literal["uniform", "erk"] | Mapping[str, float] | None = None,
    floor: int = 1,
    masks: Masks | None = None,
) -> Masks:
    """Masks that keep the weights of highest score; among equal scores the earlier layer, then the earlier index.

    Laws:
        - The kept count is exact: `kept`, or density * total rounded half up, with ties, at 0 and at 1.
        - What `masks` has removed stays removed, whatever its score.
        - Every layer keeps at least `floor` weights, and the total is still exact: others give way.

    With scope "global" all weights compete. With scope "layer" each layer's count is settled first:

        - `densities="uniform"` (the default): every layer the same density;
        - `densities="erk"`: Erdős-Rényi-Kernel (Evci et al. 2020, "Rigging the Lottery"): a layer's count is
          proportional to the sum of its weight's dimensions (outputs + inputs + kernel height + width); layers that
          this would fill beyond what they have are kept whole and the rest share what remains.
          Both give whole numbers by largest remainder, ties to the earlier layer, so that the total is exact; a layer
          that cannot take its share (floor, or what `masks` has left of it) passes the difference on to the others;
        - a mapping name or pattern -> density: of each layer, each rounded half up by itself, with no total promised
          and nothing passed on. `{"*": 0.8}` removes what layer-wise `torch.nn.utils.prune` with amount 0.2 does.

    Args:
        scores: name of a weight -> scores of its shape, higher is kept; the order is that of the layers.
        density: share of all weights to keep, of the dense total also when `masks` is given. From 0 to 1.
        kept: the number of weights to keep, instead of `density`.
        floor: weights that every layer keeps at least. With 0 a layer may be emptied.
        masks: earlier masks of the same layers.

    Raises:
        UserError: not exactly one of density, kept and a mapping; a number out of range; more to keep than `masks`
            has left; a floor that cannot be kept, with the layer's name; scores that are NaN or of another shape; a
            mapping that does not cover every layer exactly once.
    """
    alive = _alive(scores, masks)
    totals = {name: each.numel() for name, each in scores.items()}
    have = {name: int(each.count_nonzero()) for name, each in alive.items()}
    if isinstance(floor, bool) or not isinstance(floor, int) or floor < 0:
        raise UserError(f"floor must be a whole number of weights, 0 or more, got {floor!r}")
    if scope not in get_args(Scope):
        raise UserError(f"scope must be one of {', '.join(get_args(Scope))}, got {scope!r}")
    if scope == "global" and densities is not None:
        raise UserError("densities are those of scope='layer'; scope is 'global'")
    for name, count in have.items():
        if count < floor:
            raise UserError(f"{name} has {count:,} weights left and cannot keep {floor:,}: lower the floor")

    if isinstance(densities, Mapping):
        if density is not None or kept is not None:
            raise UserError("with densities for each layer there is no density or kept count of the whole")
        counts = _own_counts(totals, have, densities, floor)
    else:
        target = _target(totals, have, density, kept, floor)
        if scope == "global":
            return _best_of_all(scores, alive, target, floor)
        if densities not in (None, "uniform", "erk"):
            raise UserError(f"densities must be 'uniform', 'erk' or a mapping, got {densities!r}")
        shares = {name: sum(each.shape) for name, each in scores.items()} if densities == "erk" else totals
        counts = apportion(target, shares, dict.fromkeys(have, floor), have)
    return Masks({name: _best(scores[name], alive[name], counts[name]) for name in scores})


def select_in_rounds(
    score: Callable[[Masks], Mapping[str, Tensor]],
    rounds: int,
    masks: Masks,
    *,
    density: float | None = None,
    kept: int | None = None,
    scope: Scope = "global",
    densities: Literal["uniform", "erk"] | None = None,
    floor: int = 1,
) -> Masks:
    """Masks by scores that are taken anew in each round, on the way from `masks` to the count that is asked for.

    After round k of n, initial * (kept / initial)^(k / n) weights are kept, rounded up; the last count is exact. With
    one round it is `select(score(masks), ...)`. `score` gets the masks of the round before.

    Raises:
        UserError: rounds below 1, or what `select` refuses, found before anything is scored.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise UserError(f"rounds must be a whole number, 1 or more, got {rounds!r}")
    how: dict[str, Any] = {"scope": scope, "densities": densities, "floor": floor}
    # What cannot be had is refused whatever the scores are.
    flat = {name: mask.float() for name, mask in masks.items()}
    kept = select(flat, density=density, kept=kept, masks=masks, **how).kept
    initial = masks.kept
    for k in range(1, rounds + 1):
        now = kept if k == rounds else math.ceil(initial * (kept / max(initial, 1)) ** (k / rounds))
        masks = select(score(masks), kept=min(masks.kept, max(now, kept)), masks=masks, **how)
    return masks


def next_kept(kept: int, p: float) -> int:
    """kept - ceil(p * kept): what one round leaves that prunes the share p, in exact arithmetic.

    p is the decimal that is written (0.2 is one fifth), so that 0.2 of 100 is 20 and not 21; from 0 to 1.

    >>> from smallnets.pruning import next_kept
    >>> next_kept(100, 0.2), next_kept(7, 0.3)
    (80, 4)
    """
    if isinstance(kept, bool) or not isinstance(kept, int) or kept < 0:
        raise UserError(f"kept must be a whole number, 0 or more, got {kept!r}")
    return kept - math.ceil(_decimal("p", p) * kept)


def kept_of(total: int, density: float) -> int:
    """density * total, rounded half up, in exact arithmetic; density from 0 to 1, as the decimal that is written."""
    return math.floor(_decimal("density", density) * total + Fraction(1, 2))


def apportion(
    total: int, shares: Mapping[str, int], least: Mapping[str, int], most: Mapping[str, int]
) -> dict[str, int]:
    """Whole numbers that add up to `total`, proportional to `shares` as far as `least` and `most` allow.

    The numbers are min(most, max(least, scale * share)) with the one scale that gives the total; fractions go by
    largest remainder, ties to the earlier name. Shares are above 0; `total` lies between the sums of least and most.
    """

    def at(scale: Fraction) -> dict[str, Fraction]:
        return {
            name: min(Fraction(most[name]), max(Fraction(least[name]), scale * share)) for name, share in shares.items()
        }

    # The sum is piecewise linear in the scale, and bends only where a layer reaches a limit.
    bends = sorted({Fraction(limit[name], share) for name, share in shares.items() for limit in (least, most)})
    low, high = 0, len(bends) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if sum(at(bends[middle]).values()) <= total:
            low = middle
        else:
            high = middle
    below, above = (sum(at(bends[i]).values()) for i in (low, high))
    scale = bends[low]
    if above > below:
        scale += (bends[high] - bends[low]) * (total - below) / (above - below)
    exact = at(scale)
    counts = {name: math.floor(each) for name, each in exact.items()}
    # Stable: among equal remainders the earlier name comes first. A layer at a limit has remainder 0 and gets nothing.
    order = sorted(counts, key=lambda name: counts[name] - exact[name])
    for name in order[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _decimal(name: str, value: float) -> Fraction:
    # The shortest decimal that spells the number: the nearest binary one to 0.2 is a little above it.
    try:
        exact = Fraction(str(value)) if not isinstance(value, (bool, str)) else None
    except ValueError:
        exact = None
    if exact is None or not 0 <= exact <= 1:
        raise UserError(f"{name} must be a number from 0 to 1, got {value!r}")
    return exact


def _alive(scores: Mapping[str, Tensor], masks: Masks | None) -> dict[str, Tensor]:
    """What may still be kept, bool tensors of the scores' shapes."""
    if not scores:
        raise UserError("there are no scores to select by")
    if masks is not None and (differing := masks.keys() ^ scores.keys()):
        raise UserError(
            f"scores and masks have different layers: {', '.join(sorted(differing)[:3])} in only one of them"
        )
    alive = {}
    for name, each in scores.items():
        if not each.numel():
            raise UserError(f"{name} has no scores")
        mask = torch.ones(each.shape, dtype=torch.bool) if masks is None else masks[name]
        if mask.shape != each.shape:
            raise UserError(f"{name}: the mask is of {_sizes(mask)}, the scores of {_sizes(each)}")
        alive[name] = mask.to(each.device)
        if bad := int((each.isnan() & alive[name]).count_nonzero()):
            raise UserError(f"{name}: {bad:,} of {each.numel():,} scores are NaN")
    return alive


def _target(
    totals: Mapping[str, int], have: Mapping[str, int], density: float | None, kept: int | None, floor: int
) -> int:
    total, left = sum(totals.values()), sum(have.values())
    if (density is None) == (kept is None):
        raise UserError(f"give either a density or a kept count, got density={density} and kept={kept}")
    if density is not None:
        target = kept_of(total, density)
    elif isinstance(kept, bool) or not isinstance(kept, int) or not 0 <= kept <= total:
        raise UserError(f"kept must be a whole number from 0 to {total:,}, got {kept!r}")
    else:
        target = kept
    if target > left:
        raise UserError(f"{target:,} of {total:,} weights cannot be kept: the masks have only {left:,} left")
    if target < floor * len(have):
        # The layers in their order take their floor until nothing is left.
        first = list(have)[target // floor]
        raise UserError(
            f"{target:,} of {total:,} weights are too few for {len(have)} layers that keep at least {floor:,} each:"
            f" {first} would be emptied"
        )
    return target


def _own_counts(
    totals: Mapping[str, int], have: Mapping[str, int], densities: Mapping[str, float], floor: int
) -> dict[str, int]:
    owner: dict[str, str] = {}
    counts = {}
    for pattern, density in densities.items():
        matched = [name for name in totals if fits(name, pattern)]
        if not matched:
            raise UserError(f"densities: {pattern!r} matches none of the layers ({', '.join(list(totals)[:3])}, ...)")
        for name in matched:
            if name in owner:
                raise UserError(f"densities: {name} is named twice: by {owner[name]!r} and by {pattern!r}")
            owner[name] = pattern
            counts[name] = kept_of(totals[name], density)
            if not floor <= counts[name] <= have[name]:
                raise UserError(
                    f"{name}: density {density} keeps {counts[name]:,} of {totals[name]:,} weights; it must be at least"
                    f" {floor:,} (the floor) and at most {have[name]:,} (what is left)"
                )
    if missing := [name for name in totals if name not in owner]:
        raise UserError(f"densities: none given for {', '.join(missing[:3])}")
    return counts


def _best(scores: Tensor, alive: Tensor, count: int) -> Tensor:
    """A bool tensor: the `count` highest scores among those alive, of equal ones the first."""
    mask = torch.zeros_like(alive).flatten()
    if count:
        indices = alive.flatten().nonzero().squeeze(1)
        values = scores.detach().flatten()[indices]
        # What a stable sort would put first, several times faster: all above the last value, then its first ties.
        last = torch.topk(values, count, sorted=False).values.min()
        chosen = values > last
        ties = (values == last).nonzero().squeeze(1)
        chosen[ties[: count - int(chosen.count_nonzero())]] = True
        mask[indices[chosen]] = True
    return mask.view(alive.shape)


def _best_of_all(scores: Mapping[str, Tensor], alive: Mapping[str, Tensor], count: int, floor: int) -> Masks:
    """The best `floor` of each layer, and the best of what remains, `count` in all.

    Of all choices that keep the floor it is one of the highest sum of scores.
    """
    chosen = {name: _best(scores[name], alive[name], floor) for name in scores}
    device = next(iter(alive.values())).device
    flat = _flat(scores.values(), device)
    rest = _flat([alive[name] & ~chosen[name] for name in scores], device)
    mask = _flat(chosen.values(), device) | _best(flat, rest, count - floor * len(chosen))
    parts = mask.split([each.numel() for each in scores.values()])
    return Masks({name: part.view(scores[name].shape) for name, part in zip(scores, parts, strict=True)})


def _flat(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    return torch.cat([each.detach().flatten().to(device) for each in tensors])


def _sizes(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape) or "()"
