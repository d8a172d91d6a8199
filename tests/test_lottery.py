"""The functions of a lottery: snapshots, counts and places, by numbers that one can check in the head."""

import pytest
import torch
from torch import nn

from smallnets.errors import UserError
from smallnets.models import resnet20
from smallnets.pruning import Masks
from smallnets.pruning.lottery import LotteryPlan, restore_, snapshot
from smallnets.surgery import to_quaternion


class Toy(nn.Module):
    """Weights 1..10 (2 x 5) and 11..14 (2 x 2), with BatchNorm and a buffer that no checkpoint keeps."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(5, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)
        self.register_buffer("passing", torch.zeros(3), persistent=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.arange(1.0, 11).view(2, 5))
            self.head.weight.copy_(torch.arange(11.0, 15).view(2, 2))

    def forward(self, x):
        return self.head(self.norm(self.first(x)))


def test_a_snapshot_brings_back_every_parameter_and_buffer():
    net = Toy()
    before = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    kept = {name: value.clone() for name, value in before.items()}
    places = {name: value.data_ptr() for name, value in before.items()}
    taken = snapshot(net)
    net(torch.randn(8, 5)).sum().backward()
    with torch.no_grad():
        for value in before.values():
            value.add_(1)
    restore_(net, taken)
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert after.keys() == kept.keys() == taken.keys()
    for name, value in after.items():
        assert torch.equal(value, kept[name]), name
        assert value.data_ptr() == places[name], "in place: captured graphs and optimizers hold the tensors"


def test_a_snapshot_of_another_network_changes_nothing():
    net, other = Toy(), Toy()
    taken = snapshot(other)
    taken["head.weight"] = torch.zeros(3, 2)
    with pytest.raises(UserError, match=r"head\.weight: the stored weights belong to another network than this Toy"):
        restore_(net, taken)
    del taken["head.weight"]
    taken["first.weight"] += 1
    with pytest.raises(UserError, match="belong to another network"):
        restore_(net, taken)
    assert torch.equal(net.first.weight, other.first.weight)


def lowest(masks):
    return {name: sorted((~mask).flatten().nonzero().flatten().tolist()) for name, mask in masks.items()}


def test_global_rounds_keep_the_largest_by_the_exact_recursion():
    net, plan = Toy(), LotteryPlan(rounds=3, epochs=1, fraction=0.2)
    masks, kept = Masks.dense(net), []
    for number in (1, 2, 3):
        masks = plan.prune(net, masks, number)
        kept.append(masks.kept)
    # 14 - ceil(2.8), 11 - ceil(2.2), 8 - ceil(1.6): the smallest eight of 1..14 are gone.
    assert kept == [11, 8, 6]
    assert lowest(masks) == {"first.weight": list(range(8)), "head.weight": []}


def test_layer_rounds_take_their_share_of_each_layer_and_the_head_half():
    net = Toy()
    plan = LotteryPlan(rounds=2, epochs=1, fraction=0.3, scope="layer")
    masks = plan.prune(net, plan.prune(net, Masks.dense(net), 1), 2)
    # 10 - 3 - ceil(2.1); 4 - ceil(1.2) - ceil(0.6)
    assert [layer.kept for layer in masks.layers] == [4, 1]
    half = LotteryPlan(rounds=1, epochs=1, fraction=0.5, scope="layer", head_rate_half=True)
    assert [layer.kept for layer in half.prune(net, Masks.dense(net), 1).layers] == [5, 3]


def test_the_head_is_the_networks_not_the_last_mask():
    """With the head left out nothing is pruned at half the rate in its place."""
    net = resnet20()
    plan = LotteryPlan(rounds=1, epochs=1, fraction=0.2, scope="layer", head_rate_half=True)
    whole, without = Masks.dense(net), Masks.dense(net, exclude=["head"])
    assert "head.weight" not in without and list(without)[-1].startswith("stages.2")
    kept = {layer.name: layer.kept / layer.total for layer in plan.prune(net, without, 1).layers}
    assert max(kept.values()) <= 0.8
    assert plan.prune(net, whole, 1)["head.weight"].sum() == 640 - 64
    with pytest.raises(UserError, match=r"head_rate_half: the network's head \(head.weight\) has no mask"):
        plan.check(net, without)
    plan.check(net, whole)
    turned = to_quaternion(resnet20(num_classes=12))
    halves = LotteryPlan(rounds=1, epochs=1, fraction=0.5, scope="layer", head_rate_half=True, unit="component")
    assert halves.prune(turned, Masks.dense(turned), 1)["net.head.weight"].sum() == 192 * 3 // 4


@pytest.mark.parametrize(("scope", "kept"), [("global", [[3, 4], [1, 4]]), ("layer", [[5, 2], [4, 1]])])
def test_densities_are_those_of_the_dense_network(scope, kept):
    # Of 14 weights 7 and 5 (5.04); of 10 and 4 each 5 and 2, then 4 (3.6) and 1 (1.44).
    net, plan = Toy(), LotteryPlan(rounds=2, epochs=1, densities=(0.5, 0.36), scope=scope)
    one = plan.prune(net, Masks.dense(net), 1)
    two = plan.prune(net, one, 2)
    assert [[layer.kept for layer in each.layers] for each in (one, two)] == kept


def test_a_random_round_depends_on_its_seed_alone():
    net, plan = Toy(), LotteryPlan(rounds=1, epochs=1, fraction=0.5, criterion="random")
    one, same, other = (plan.prune(net, Masks.dense(net), 1, seed) for seed in (1, 1, 2))
    assert one == same and one != other and one.kept == 7


def test_masks_of_later_rounds_lie_in_earlier_ones():
    net, plan = Toy(), LotteryPlan(rounds=2, epochs=1, fraction=0.4)
    one = plan.prune(net, Masks.dense(net), 1)
    with torch.no_grad():
        net.first.weight.neg_().sub_(100)  # what was removed is now the largest
    two = plan.prune(net, one, 2)
    assert (two & one) == two


def test_the_place_of_every_epoch():
    plan = LotteryPlan(rounds=2, epochs=4, rewind_to="7it")  # of 5 steps an epoch: within epoch 1
    assert plan.rewind_step(5) == 7
    assert plan.epochs_of_round(5) == 3
    assert plan.epochs_in_all(5) == 4 + 3 + 3
    assert plan.epochs_in_all(5, 1) == 7
    found = [plan.locate(epoch, 5) for epoch in range(10)]
    assert found == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    start = LotteryPlan(rounds=1, epochs=2)
    assert [start.locate(epoch, 5) for epoch in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_plan_survives_as_plain_data():
    for plan in (LotteryPlan(2, 3), LotteryPlan(2, 3, densities=(0.5, 0.2), scope="layer", rewind_to="1ep")):
        assert LotteryPlan.from_plain(plan.as_plain()) == plan
        assert all(type(value) in (int, float, str, bool, list, type(None)) for value in plan.as_plain().values())
    assert LotteryPlan(2, 3).fraction == 0.2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rounds": 0}, "rounds must be a whole number, 1 or more, got 0"),
        ({"epochs": True}, "epochs_per_round must be"),
        ({"fraction": 1}, "between 0 and 1"),
        ({"fraction": float("nan")}, "between 0 and 1"),
        ({"densities": (0.5, 0.6)}, "densities must fall: 0.6 comes after 0.5"),
        ({"densities": (0.5, 0.5)}, "densities must fall: 0.5 comes after 0.5"),
        ({"densities": (0.5, 0.0)}, "between 0 and 1"),
        ({"densities": (0.5,)}, "2 numbers"),
        ({"fraction": 0.2, "densities": (0.5, 0.4)}, "exclude each other"),
        ({"head_rate_half": True}, "scope layer"),
        ({"criterion": "l1"}, "magnitude, random"),
        ({"rewind": "all"}, "weights, rate, none"),
        ({"unit": "norm"}, "weight, component, quaternion"),
        ({"floor": -1}, "floor must be a whole number of weights, 0 or more, got -1"),
        ({"rewind_to": "500"}, "500it or 2ep"),
    ],
)
def test_a_wrong_plan_is_refused(changes, says):
    with pytest.raises(UserError, match=says):
        LotteryPlan(**{"rounds": 2, "epochs": 3, **changes})


@pytest.mark.parametrize("to", ["15it", "3ep"])
def test_a_rewind_point_after_the_dense_training_is_refused(to):
    with pytest.raises(UserError, match=r"the dense training has 15 steps \(3 epochs of 5\)"):
        LotteryPlan(2, 3, rewind_to=to).rewind_step(5)


def test_a_layer_that_would_be_emptied_is_named_before_training():
    masks = Masks.dense(Toy())
    LotteryPlan(3, 1, fraction=0.3, scope="layer", head_rate_half=True).check(Toy(), masks)
    with pytest.raises(UserError, match=r"round 3 would remove all 4 weights of head\.weight"):
        LotteryPlan(3, 1, fraction=0.5, scope="layer").check(Toy(), masks)
    with pytest.raises(UserError, match="round 3 would keep 1 weights of 2 layers"):
        LotteryPlan(3, 1, fraction=0.5).check(Toy(), masks)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_floor_is_kept_in_every_layer(scope):
    net, plan = Toy(), LotteryPlan(3, 1, fraction=0.5, scope=scope, floor=2)
    if scope == "global":
        with pytest.raises(
            UserError, match="round 2 would keep 3 weights of 2 layers, and some layer none: at least 2"
        ):
            plan.check(net, Masks.dense(net))
        # 14 - 7 = 7, of which the four of the head are the largest.
        assert [layer.kept for layer in plan.prune(net, Masks.dense(net), 1).layers] == [3, 4]
        with torch.no_grad():
            net.head.weight.zero_()
        assert [layer.kept for layer in plan.prune(net, Masks.dense(net), 1).layers] == [5, 2]
        return
    plan.check(net, Masks.dense(net))
    masks, kept = Masks.dense(net), []
    for number in (1, 2, 3):
        masks = plan.prune(net, masks, number)
        kept.append([layer.kept for layer in masks.layers])
    assert kept == [[5, 2], [2, 2], [2, 2]]  # 5 - ceil(2.5) = 2; 2 - 1 = 1 is below the floor
