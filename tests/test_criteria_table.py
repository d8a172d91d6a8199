"""The table of criteria: each entry, with each way to count, on networks of several families."""

import copy
import itertools

import pytest
import torch
from test_criteria import LOSS, NETS, data

from smallnets.errors import UserError
from smallnets.pruning import Masks, next_masks, select
from smallnets.pruning.criteria import (
    Movement,
    gradient_magnitude,
    grasp,
    magnitude,
    random,
    synflow,
    synflow_scores,
    taylor,
)
from smallnets.pruning.named import CRITERIA, Criterion, criterion_named

SCOPES = {"global": {}, "uniform": {"scope": "layer"}, "erk": {"scope": "layer", "densities": "erk"}}


def network(family):
    torch.manual_seed(4)
    return NETS[family]()


def moved(net):
    """The sums of two backward passes."""
    movement = Movement(net)
    torch.manual_seed(5)  # of dropout
    for images, labels in data():
        net.zero_grad()
        LOSS(net(images), labels).backward()
        movement.update(net)
    net.zero_grad()
    return movement


def pruned(net, criterion, density, masks=None, **how):
    """`next_masks` with all that any criterion may need."""
    movement = moved(copy.deepcopy(net)) if CRITERIA[criterion].needs == "movement" else None
    return next_masks(
        net, masks, criterion, density, batches=data(), seed=3, movement=movement, rounds=3, image_size=8, **how
    )


@pytest.mark.parametrize("how", SCOPES.values(), ids=SCOPES.keys())
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("family", NETS)
def test_counts_are_exact_and_the_choice_is_repeatable(family, criterion, how):
    net = network(family)
    state = copy.deepcopy(net.state_dict())
    half = pruned(net, criterion, 0.5, **how)
    tenth = pruned(net, criterion, 0.1, half, **how)
    total = sum(weight.numel() for weight in Masks.dense(net).weights(net).values())
    assert (half.kept, tenth.kept, half.total) == ((total + 1) // 2, (total + 5) // 10, total)
    assert (half & tenth) == tenth, "what was removed stays removed"
    assert min(layer.kept for layer in tenth.layers) >= 1
    if how == SCOPES["uniform"]:
        assert all(abs(layer.kept - max(1, layer.total / 2)) < 1 for layer in half.layers)
    if how:  # then the counts of the layers do not depend on what is scored
        other = pruned(net, "magnitude", 0.5, **how)
        assert [each.kept for each in half.layers] == [each.kept for each in other.layers]
    again = copy.deepcopy(net)
    torch.rand(3)
    assert pruned(again, criterion, 0.5, **how) == half
    assert pruned(again, criterion, 0.1, half, **how) == tenth
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_each_name_stands_for_its_criterion():
    net = network("ResNet")
    batches, movement = data(), moved(copy.deepcopy(net))
    expected = {
        "magnitude": select(magnitude(net), density=0.2),
        "random": select(random(net, seed=3), density=0.2),
        "gradient_magnitude": select(gradient_magnitude(net, batches, LOSS), density=0.2),
        "taylor": select(taylor(net, batches, LOSS), density=0.2),
        "snip": select(taylor(net, batches, LOSS), density=0.2),
        "grasp": select(grasp(net, batches, LOSS), density=0.2),
        "synflow": synflow(net, 0.2, rounds=3, image_size=8),
        "movement": select(movement.scores(), density=0.2),
    }
    assert expected.keys() == CRITERIA.keys()
    found = {name: pruned(net, name, 0.2) for name in CRITERIA}
    assert found == expected
    same = [{a, b} for a, b in itertools.combinations(CRITERIA, 2) if found[a] == found[b]]
    assert same == [{"taylor", "snip"}]
    assert found["synflow"] != select(synflow_scores(net, image_size=8), density=0.2), "scored anew in each round"


def test_an_entry_of_ones_own_is_taken_by_its_name(monkeypatch):
    def first_kept(net, masks, given):
        weights = masks.weights(net)
        return {name: -torch.arange(w.numel(), dtype=torch.float).view(w.shape) for name, w in weights.items()}

    monkeypatch.setitem(CRITERIA, "first", Criterion(first_kept))
    masks = pruned(network("LeNet"), "first", 0.5, scope="layer")
    for name, mask in masks.items():
        kept = int(mask.sum())
        assert mask.flatten()[:kept].all() and not mask.flatten()[kept:].any(), name


def test_a_criterion_of_ones_own_is_taken_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "own_criteria.py").write_text(
        "from smallnets.pruning.named import CRITERIA\n"
        "def small(net, masks, given):\n"
        "    return {name: -weight.abs() for name, weight in masks.weights(net).items()}\n"
        "entry, number = CRITERIA['taylor'], 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net = network("LeNet")
    small, large = (next_masks(net, None, name, 0.5) for name in ("own_criteria.small", "magnitude"))
    kept = [
        torch.cat([w.abs()[masks[name].bool()] for name, w in masks.weights(net).items()]) for masks in (small, large)
    ]
    assert small.kept == large.kept == len(kept[0]) and kept[0].max() <= kept[1].min()
    assert criterion_named("own_criteria.entry") is CRITERIA["taylor"]
    with pytest.raises(UserError, match=r"criterion own_criteria\.none cannot be imported from here"):
        criterion_named("own_criteria.none")
    with pytest.raises(UserError, match=r"own_criteria\.number must be a Criterion or a function"):
        criterion_named("own_criteria.number")


def test_mistakes_are_told():
    net = network("LeNet")
    with pytest.raises(UserError, match=r"no criterion is called 'taylr'; nearest: taylor"):
        criterion_named("taylr")
    with pytest.raises(UserError, match="the criterion grasp needs batches"):
        next_masks(net, None, "grasp", 0.5)
    with pytest.raises(UserError, match="movement needs the sums of a Movement"):
        next_masks(net, None, "movement", 0.5)
    with pytest.raises(UserError, match="rounds must be a whole number, 1 or more, got 0"):
        next_masks(net, None, "synflow", 0.5, rounds=0)
    half = next_masks(net, None, "magnitude", 0.5)
    with pytest.raises(UserError, match="cannot be kept: the masks have only"):
        next_masks(net, half, "magnitude", 0.6)


@pytest.mark.parametrize("criterion", [name for name, entry in CRITERIA.items() if entry.needs == "batches"])
def test_autocasting_changes_no_score(criterion):
    net = network("ConvNet")
    expected = pruned(net, criterion, 0.3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pruned(net, criterion, 0.3) == expected
