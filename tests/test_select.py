"""Selection: exact counts, ties, floors, layer-wise densities, and the recursion of rounds."""

import itertools
import math
import random
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from smallnets import models
from smallnets.errors import UserError
from smallnets.pruning.criteria import magnitude
from smallnets.pruning.masks import Masks
from smallnets.pruning.select import apportion, kept_of, next_kept, select


def ten() -> dict[str, Tensor]:
    """0..9 in three layers, of 3, 6 and 1."""
    return {"a": torch.arange(3.0), "b": torch.arange(3.0, 9.0).view(2, 3), "c": torch.tensor([[9.0]])}


def kept_values(scores: dict[str, Tensor], masks: Masks) -> list[list[float]]:
    return [scores[name][mask].tolist() for name, mask in masks.items()]


# -- global ----------------------------------------------------------------------------------------------------------


def test_global_in_the_head() -> None:
    scores = ten()
    assert kept_values(scores, select(scores, density=0.4, floor=0)) == [[], [6, 7, 8], [9]]
    assert kept_values(scores, select(scores, kept=4)) == [[2], [7, 8], [9]]
    assert kept_values(scores, select(scores, kept=5, floor=1)) == [[2], [6, 7, 8], [9]]
    assert [m.shape for m in select(scores, kept=4).values()] == [(3,), (2, 3), (1, 1)]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_nothing_and_everything(scope) -> None:
    scores = ten()
    everything = select(scores, density=1, scope=scope)
    assert everything.kept == 10
    nothing = select(scores, density=0.0, scope=scope, floor=0)
    assert nothing.kept == 0 and [each.total for each in nothing.layers] == [3, 6, 1]


def test_ties_go_to_the_earlier_layer_and_index() -> None:
    equal = {"z": torch.zeros(2, 2), "a": torch.zeros(5), "m": torch.zeros(3)}
    masks = select(equal, kept=6, floor=0)
    assert masks["z"].all() and masks["a"].tolist() == [True, True, False, False, False] and not masks["m"].any()
    masks = select(equal, kept=6)
    assert [each.kept for each in masks.layers] == [4, 1, 1]
    assert masks["m"].tolist() == [True, False, False]
    for kept in range(13):
        assert select(equal, kept=kept, floor=0).kept == kept


def test_the_choice_is_that_of_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(40):
        scores = torch.randint(-3, 3, (50,), generator=generator).float() * (math.inf if case % 10 == 9 else 1)
        scores = scores.nan_to_num(0.0, posinf=math.inf, neginf=-math.inf)
        order = torch.sort(scores, descending=True, stable=True).indices
        mask = select({"w": scores}, kept=case + 1)["w"]
        assert mask.nonzero().flatten().tolist() == sorted(order[: case + 1].tolist())


@pytest.mark.parametrize(("total", "density", "expected"), [
    (100, 0.29, 29), (100, 0.2, 20), (10, 0.25, 3), (10, 0.05, 1), (1000, 0.0005, 1), (3, 0.5, 2), (7, 1.0, 7),
    (11_164_352, 0.8, 8_931_482),
])  # fmt: skip
def test_densities_become_counts_rounded_half_up(total: int, density: float, expected: int) -> None:
    assert kept_of(total, density) == expected
    if total < 10_000:
        assert select({"w": torch.zeros(total)}, density=density).kept == expected


def best_by_brute_force(scores: dict[str, Tensor], alive: dict[str, Tensor], kept: int, floor: int) -> list[int]:
    """Flat indices: of all sets that are allowed, that of the highest sum; among equal sums the earliest indices."""
    owner = [name for name, each in scores.items() for _ in range(each.numel())]
    values = torch.cat([each.flatten() for each in scores.values()]).tolist()
    allowed = [i for i, on in enumerate(torch.cat([each.flatten() for each in alive.values()]).tolist()) if on]
    best: tuple[float, list[int]] | None = None
    for chosen in itertools.combinations(allowed, kept):
        if any(sum(owner[i] == name for i in chosen) < floor for name in scores):
            continue
        value = sum(values[i] for i in chosen)
        if best is None or value > best[0]:
            best = value, list(chosen)
    assert best is not None
    return best[1]


def test_global_selection_with_floors_and_masks_against_brute_force() -> None:
    draw = random.Random(0)
    for case in range(60):
        sizes = [draw.randint(2, 4) for _ in range(3)]
        # Integers, so that there are ties in half of the cases.
        top = 3 if case % 2 else 10_000
        scores = {f"l{i}": torch.tensor([float(draw.randint(0, top)) for _ in range(n)]) for i, n in enumerate(sizes)}
        floor = draw.randint(0, 1)
        alive = {}
        for name, each in scores.items():
            mask = torch.tensor([draw.random() < 0.7 for _ in each])
            mask[draw.randrange(len(each))] = True
            alive[name] = mask
        kept = draw.randint(3, sum(int(each.sum()) for each in alive.values()))
        masks = select(scores, kept=kept, floor=floor, masks=Masks(alive))
        flat = torch.cat(list(masks.values()))
        values = torch.cat(list(scores.values()))
        expected = best_by_brute_force(scores, alive, kept, floor)
        assert masks.kept == kept
        assert values[flat].sum() == values[expected].sum()
        if top > 3 or floor == 0:
            assert flat.nonzero().flatten().tolist() == expected


# -- earlier masks and floors ----------------------------------------------------------------------------------------


def test_what_is_removed_stays_removed() -> None:
    scores = ten()
    earlier = Masks(
        {"a": torch.tensor([True, True, False]), "b": torch.ones(2, 3).bool(), "c": torch.ones(1, 1).bool()}
    )
    masks = select(scores, kept=5, masks=earlier)
    assert kept_values(scores, masks) == [[1], [6, 7, 8], [9]]
    assert masks & earlier == masks
    assert select(scores, density=0.9, masks=earlier) == earlier
    with pytest.raises(UserError, match=r"^10 of 10 weights cannot be kept: the masks have only 9 left$"):
        select(scores, density=1.0, masks=earlier)


def test_rounds_of_layerwise_selection_stay_exact_and_nested() -> None:
    """A layer's share, rounded, may ask for more than it has left: others take the difference."""
    generator = torch.Generator().manual_seed(0)
    scores = {f"l{n}": torch.rand(n, generator=generator) for n in (1, 2, 3, 5, 7, 9, 11, 30)}
    masks = None
    for hundredths in range(100, 11, -1):
        earlier, masks = masks, select(scores, density=hundredths / 100, scope="layer", masks=masks)
        assert masks.kept == kept_of(68, hundredths / 100)
        assert earlier is None or masks & earlier == masks
        assert min(each.kept for each in masks.layers) >= 1


def test_a_floor_is_kept_and_the_total_is_still_exact() -> None:
    scores = {"big": torch.arange(100.0) + 100, "small": torch.arange(10.0)}
    for scope in ("global", "layer"):
        masks = select(scores, kept=20, scope=scope, floor=4)
        assert masks.kept == 20 and masks["small"][-4:].all()
        assert [each.kept for each in masks.layers] == [16, 4]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_an_impossible_floor_names_the_layer(scope) -> None:
    scores = ten()
    with pytest.raises(UserError) as error:
        select(scores, density=0.2, scope=scope)
    assert str(error.value) == (
        "2 of 10 weights are too few for 3 layers that keep at least 1 each: c would be emptied"
    )
    with pytest.raises(UserError, match=r"^c has 1 weights left and cannot keep 2: lower the floor$"):
        select(scores, density=0.9, scope=scope, floor=2)
    emptied = Masks({"a": torch.zeros(3).bool(), "b": torch.ones(2, 3).bool(), "c": torch.ones(1, 1).bool()})
    with pytest.raises(UserError, match=r"^a has 0 weights left and cannot keep 1"):
        select(scores, kept=4, scope=scope, masks=emptied)


# -- layer-wise ------------------------------------------------------------------------------------------------------


def test_uniform_in_the_head() -> None:
    scores = ten()
    # 1.5, 3 and 0.5: five in all, the remainder to the earlier layer.
    masks = select(scores, density=0.5, scope="layer", floor=0)
    assert kept_values(scores, masks) == [[1, 2], [6, 7, 8], []]
    # With the floor c keeps one; a and b share four in the ratio 3 to 6.
    assert kept_values(scores, select(scores, density=0.5, scope="layer")) == [[2], [6, 7, 8], [9]]


def test_erk_in_the_head() -> None:
    """Counts in the ratio of the sums of the dimensions: 2 + 8 = 10 and 20 + 20 = 40."""
    scores = {"small": torch.rand(2, 8), "big": torch.rand(20, 20)}
    assert [each.kept for each in select(scores, kept=50, scope="layer", densities="erk").layers] == [10, 40]
    # 100 would be 20 and 80, but the small layer has 16: it is kept whole, and the other takes the rest.
    assert [each.kept for each in select(scores, kept=100, scope="layer", densities="erk").layers] == [16, 84]
    assert [each.kept for each in select(scores, kept=416, scope="layer", densities="erk").layers] == [16, 400]
    # A convolution's kernel counts with its channels: 4 + 4 + 3 + 3 = 14.
    scores = {"conv": torch.rand(4, 4, 3, 3), "linear": torch.rand(7, 7)}
    assert [each.kept for each in select(scores, kept=20, scope="layer", densities="erk").layers] == [10, 10]


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9])
def test_erk_against_the_algorithm_of_its_paper(density: float) -> None:
    """Evci et al.: density = epsilon (n_in + n_out + w + h) / (n_in n_out w h); fill up what exceeds 1, repeat."""
    scores = magnitude(models.resnet20())
    full: set[str] = set()
    while True:
        rest = [name for name in scores if name not in full]
        budget = density * sum(s.numel() for s in scores.values()) - sum(scores[n].numel() for n in full)
        raw = {name: sum(scores[name].shape) / scores[name].numel() for name in rest}
        epsilon = budget / sum(raw[name] * scores[name].numel() for name in rest)
        over = [name for name in rest if epsilon * raw[name] > 1]
        if not over:
            break
        full |= {max(over, key=lambda name: raw[name])}
    masks = select(scores, density=density, scope="layer", densities="erk")
    assert masks.kept == kept_of(masks.total, density)
    assert density < 0.2 or full
    for layer in masks.layers:
        expected = layer.total if layer.name in full else epsilon * sum(scores[layer.name].shape)
        assert abs(layer.kept - expected) < 1, layer.name


def test_apportioning_against_a_search_for_the_scale() -> None:
    draw = random.Random(1)
    for _ in range(200):
        names = "abcdef"[: draw.randint(1, 6)]
        shares = {n: draw.randint(1, 50) for n in names}
        most = {n: draw.randint(1, 30) for n in names}
        least = {n: draw.randint(0, min(3, most[n])) for n in names}
        total = draw.randint(sum(least.values()), sum(most.values()))
        counts = apportion(total, shares, least, most)
        assert sum(counts.values()) == total
        assert all(least[n] <= counts[n] <= most[n] for n in names)
        low, high = 0.0, 31.0
        for _ in range(80):
            scale = (low + high) / 2
            found = sum(min(most[n], max(least[n], scale * shares[n])) for n in names)
            low, high = (scale, high) if found < total else (low, scale)
        for n in names:
            assert abs(counts[n] - min(most[n], max(least[n], high * shares[n]))) < 1 + 1e-6


def test_explicit_densities_round_each_layer_by_itself() -> None:
    scores = ten()
    masks = select(scores, scope="layer", densities={"a": 0.5, "[bc]": 1.0})
    assert kept_values(scores, masks) == [[1, 2], [3, 4, 5, 6, 7, 8], [9]]
    assert select(scores, scope="layer", densities={"*": 0}, floor=0).kept == 0
    for densities, message in [
        ({"a": 0.5, "b": 0.5}, "densities: none given for c"),
        ({"*": 0.5, "b": 0.5}, "densities: b is named twice: by '*' and by 'b'"),
        ({"*": 0.5, "d": 0.5}, "densities: 'd' matches none of the layers"),
        ({"*": 0.4}, "c: density 0.4 keeps 0 of 1 weights; it must be at least 1 (the floor)"),
        ({"*": 1.1}, "density must be a number from 0 to 1, got 1.1"),
    ]:
        with pytest.raises(UserError) as error:
            select(scores, scope="layer", densities=densities)
        assert message in str(error.value)


def test_document_001s_count_of_nonzero_weights() -> None:
    """Layer-wise amount 0.2 on every convolution and linear layer of PreActResNet-18, each layer rounded by itself.

    The document counts the nonzero entries of every module's `weight`: 8,931,481 of convolutions and head, and 3,392
    of BatchNorm. Rounding the whole at once would keep one weight more. The reference is torch.nn.utils.prune.
    """
    torch.manual_seed(0)
    net = models.preact_resnet18()
    scores = magnitude(net)
    masks = select(scores, scope="layer", densities={"*": 0.8})
    masks.apply_(net)
    assert masks.kept == 8_931_481
    assert select(scores, density=0.8, scope="layer").kept == select(scores, density=0.8).kept == 8_931_482
    weights = [module.weight for module in net.modules() if isinstance(getattr(module, "weight", None), Tensor)]
    assert sum(int(weight.count_nonzero()) for weight in weights) == 8_934_873

    torch.manual_seed(0)
    theirs = models.preact_resnet18()
    for module in theirs.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune.l1_unstructured(module, "weight", 0.2)
    for name, mask in masks.items():
        assert torch.equal(mask, theirs.get_buffer(f"{name}_mask").bool()), name


# -- rounds ----------------------------------------------------------------------------------------------------------


def test_twenty_rounds_of_a_fifth_by_hand() -> None:
    # 1000 - 200, 800 - 160, 640 - 128, 512 - ceil(102.4), 409 - ceil(81.8), 327 - ceil(65.4), ...
    expected = [800, 640, 512, 409, 327, 261, 208, 166, 132, 105, 84, 67, 53, 42, 33, 26, 20, 16, 12, 9]
    kept, found = 1000, []
    for _ in range(20):
        kept = next_kept(kept, 0.2)
        found.append(kept)
    assert found == expected

    scores = {"a": torch.zeros(400), "b": torch.zeros(30, 20)}
    masks = select(scores, density=1)
    for count in expected:
        masks = select(scores, kept=next_kept(masks.kept, 0.2), masks=masks)
        assert masks.kept == count


def test_the_recursion_is_that_of_the_decimal() -> None:
    for p in range(1001):
        for kept in (0, 1, 7, 100, 1000, 10**12):
            assert next_kept(kept, p / 1000) == kept - -(-p * kept // 1000)
    assert math.ceil(0.07 * 100) == 8 and next_kept(100, 0.07) == 93
    assert next_kept(100, Fraction(1, 3)) == 66 and next_kept(100, Decimal("0.2")) == 80
    assert next_kept(5, 0) == 5 and next_kept(5, 1) == 0 and next_kept(1, 0.01) == 0


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either a density or a kept count, got density=None and kept=None"),
        ({"density": 0.5, "kept": 5}, "give either a density or a kept count"),
        ({"density": 1.5}, "density must be a number from 0 to 1, got 1.5"),
        ({"density": float("nan")}, "density must be a number from 0 to 1, got nan"),
        ({"density": True}, "got True"),
        ({"kept": 11}, "kept must be a whole number from 0 to 10, got 11"),
        ({"kept": -1}, "kept must be a whole number from 0 to 10, got -1"),
        ({"kept": 5.0}, "got 5.0"),
        ({"density": 0.5, "scope": "layers"}, "scope must be one of global, layer, got 'layers'"),
        ({"density": 0.5, "densities": "erk"}, "densities are those of scope='layer'"),
        ({"density": 0.5, "scope": "layer", "densities": "ERK"}, "densities must be 'uniform', 'erk' or a mapping"),
        ({"density": 0.5, "scope": "layer", "densities": {"*": 0.5}}, "there is no density or kept count of the whole"),
        ({"density": 0.5, "floor": -1}, "floor must be a whole number of weights, 0 or more, got -1"),
        ({"density": 0.5, "masks": Masks({"a": torch.ones(3).bool()})}, "different layers: b, c in only one of them"),
        (
            {"kept": 5, "masks": Masks({n: torch.ones(2, 2).bool() for n in "abc"})},
            "a: the mask is of 2x2, the scores of 3",
        ),
    ],
)
def test_mistakes(arguments, message: str) -> None:
    with pytest.raises(UserError) as error:
        select(ten(), **arguments)
    assert message in str(error.value)


def test_scores_that_are_nan_name_the_layer() -> None:
    scores = ten()
    scores["b"][0, 0] = float("nan")
    with pytest.raises(UserError, match=r"^b: 1 of 6 scores are NaN$"):
        select(scores, kept=5)
    with pytest.raises(UserError, match="no scores"):
        select({}, kept=0)
    infinite = {"a": torch.tensor([-math.inf, 0.0, math.inf])}
    assert select(infinite, kept=2)["a"].tolist() == [False, True, True]


def test_wrong_shares_of_a_round() -> None:
    for kept, p in [(5, 1.5), (5, -0.1), (5, "0.2"), (-1, 0.2), (5.0, 0.2)]:
        with pytest.raises(UserError, match="must be"):
            next_kept(kept, p)  # type: ignore[arg-type]
