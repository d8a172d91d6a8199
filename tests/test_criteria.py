"""Criteria against values worked out by hand, torch's own derivatives and finite differences."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from smallnets import models
from smallnets.errors import UserError
from smallnets.measure.dispatch import count_dispatched
from smallnets.pruning.criteria import (
    Movement,
    gradient_magnitude,
    grasp,
    magnitude,
    random,
    snip,
    synflow,
    synflow_scores,
    taylor,
)
from smallnets.pruning.masks import Masks
from smallnets.pruning.select import select
from smallnets.surgery import to_quaternion

LOSS = nn.functional.cross_entropy
NETS = {
    "ResNet": lambda: models.ResNet(blocks=[1, 1], channels=[8, 12]),
    "PreActResNet": lambda: models.PreActResNet(blocks=[1, 1], channels=[8, 12]),
    "VGG": lambda: models.VGG(blocks=[1, 1], channels=[8, 12], batch_norm=True, head_widths=[16], image_size=8),
    "DenseNet": lambda: models.DenseNet(blocks=[2, 2], growth_rate=6, stem_channels=8),
    "ViT": lambda: models.ViT(dim=16, depth=2, heads=2, mlp_dim=8, head_widths=(8,), image_size=8),
    "LeNet": lambda: models.LeNet(hidden_widths=[20, 10], image_size=8, in_channels=3),
    "ConvNet": lambda: models.ConvNet(channels=[8], head_widths=[16], image_size=8),
    "Quaternion": lambda: to_quaternion(models.ResNet(blocks=[1, 1], channels=[8, 12])),
}
# Every criterion as one call that needs nothing but the network.
CRITERIA = {
    "magnitude": lambda net: magnitude(net),
    "random": lambda net: random(net, seed=3),
    "gradient_magnitude": lambda net: gradient_magnitude(net, data(), LOSS),
    "taylor": lambda net: taylor(net, data(), LOSS),
    "grasp": lambda net: grasp(net, data(), LOSS),
    "synflow": lambda net: synflow_scores(net, image_size=8),
}
family = pytest.mark.parametrize("name", NETS)
criterion = pytest.mark.parametrize("how", CRITERIA)


def data(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 8, 8, generator=generator), torch.randint(0, 10, (n,), generator=generator))
        for n in sizes or (6, 4)
    ]


def tiny() -> nn.Module:
    """Two layers in double precision, smooth, with few enough weights for finite differences."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3), nn.Tanh(), nn.Linear(3, 10)).double()


def double(batches: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(images.double(), targets) for images, targets in batches]


def whole_loss(net: nn.Module, batches: list[tuple[Tensor, Tensor]], temperature: float = 1.0) -> Tensor:
    """The mean over all images at once."""
    images, targets = (torch.cat(each) for each in zip(*batches, strict=True))
    return LOSS(net(images) / temperature, targets)


# -- what all of them keep ---------------------------------------------------------------------------------------------


@family
@criterion
def test_scores_cover_the_weights_and_change_nothing_of_the_network(name: str, how: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]()
    with torch.no_grad():
        net(data()[0][0])  # running statistics that are not the initial ones
    next(net.children()).eval()
    net.get_parameter(next(iter(Masks.dense(net)))).requires_grad_(False)
    for number, parameter in enumerate(net.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if number % 2 and parameter.requires_grad else None
    before = copy.deepcopy(net.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in net.modules()]
    random_state = torch.get_rng_state()

    scores = CRITERIA[how](net)

    assert list(scores) == list(Masks.dense(net))
    for key, score in scores.items():
        assert score.shape == net.get_parameter(key).shape and score.isfinite().all() and not score.requires_grad, key
    assert sum(int(score.count_nonzero()) for score in scores.values()) > 0
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    for parameter, grad in zip(net.parameters(), grads, strict=True):
        assert (parameter.grad is None) == (grad is None) and (grad is None or torch.equal(parameter.grad, grad))
    assert flags == [(m.training, [p.requires_grad for p in m.parameters()]) for m in net.modules()]
    assert torch.equal(torch.get_rng_state(), random_state)
    # Dropout and all: the same scores again, and under the contexts that a validation loop sets.
    with torch.inference_mode():
        again = CRITERIA[how](net)
    assert all(torch.equal(scores[key], again[key]) for key in scores)


def test_an_error_in_the_forward_leaves_the_modes() -> None:
    net = NETS["ResNet"]().train()
    with pytest.raises(RuntimeError):
        synflow_scores(net, in_channels=5, image_size=8)
    assert all(module.training for module in net.modules())


def test_only_layers_with_masks_are_scored() -> None:
    net = NETS["ResNet"]()
    masks = Masks.dense(net, include=["stages.*"])
    for scores in (
        magnitude(net, masks),
        random(net, masks),
        taylor(net, data(), LOSS, masks),
        grasp(net, data(), LOSS, masks),
    ):
        assert list(scores) == list(masks)


# -- without data ------------------------------------------------------------------------------------------------------


def test_magnitude_in_the_head() -> None:
    net = nn.Linear(5, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, -1, 2, -3, 4], [-5, 6, -7, 8, -9]]))
    scores = magnitude(net)
    assert scores["weight"].flatten().tolist() == list(range(10)) and scores["weight"].sum() == 45
    select(scores, density=0.3).apply_(net)
    assert net.weight.flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, -7, 8, -9]


def test_random_scores_are_a_function_of_the_seed() -> None:
    net = NETS["ResNet"]()
    one, same, other = random(net, seed=1), random(copy.deepcopy(net).half(), seed=1), random(net, seed=2)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)
    assert all(each.min() >= 0 and each.max() < 1 for each in one.values())


# -- with data ---------------------------------------------------------------------------------------------------------


@family
def test_gradients_and_taylor_are_those_of_torch(name: str) -> None:
    """Batches of different sizes count by their images: the gradient is that of all images at once."""
    torch.manual_seed(0)
    net = NETS[name]().double().eval()
    batches = double(data(6, 3, 1))
    plain, product = gradient_magnitude(net, batches, LOSS), taylor(net, batches, LOSS)
    whole_loss(net, batches).backward()
    for key in plain:
        weight = net.get_parameter(key)
        assert torch.allclose(plain[key], weight.grad.abs(), rtol=1e-9, atol=1e-14)
        assert torch.allclose(product[key], (weight.grad * weight).abs(), rtol=1e-9, atol=1e-14)
    assert snip is taylor


def test_gradients_are_taken_in_the_mode_of_the_network() -> None:
    net = NETS["ResNet"]().train()
    reference = copy.deepcopy(net)
    ((images, targets),) = data(8)
    scores = gradient_magnitude(net, [(images, targets)], LOSS)
    LOSS(reference(images), targets).backward()
    assert all(torch.allclose(s, reference.get_parameter(k).grad.abs(), atol=1e-6) for k, s in scores.items())


def test_snip_against_removing_each_weight() -> None:
    """|w dL/dw| is the change of the loss when the weight is scaled by 1 - h, divided by h."""
    net, batches, h = tiny(), double(data(5)), 1e-6
    scores = snip(net, batches, LOSS, Masks.dense(net, include=["3"]))["3.weight"]
    weight = net[3].weight
    for i, j in [(0, 0), (3, 1), (9, 2)]:
        losses = []
        for factor in (1 - h, 1 + h):
            probe = copy.deepcopy(net)
            with torch.no_grad():
                probe[3].weight[i, j] = weight[i, j] * factor
                losses.append(whole_loss(probe, batches))
        assert float(scores[i, j]) == pytest.approx(abs(float(losses[1] - losses[0])) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_against_the_full_hessian(temperature: float) -> None:
    net, batches = tiny(), double(data(5, 2))
    masks = Masks.dense(net, include=["3"])

    def loss_of(weight: Tensor) -> Tensor:
        outputs = lambda images: torch.func.functional_call(net, {"3.weight": weight}, (images,))  # noqa: E731
        return whole_loss(outputs, batches, temperature)  # type: ignore[arg-type]

    weight = net[3].weight.detach().clone()
    hessian = torch.autograd.functional.hessian(loss_of, weight).view(30, 30)
    gradient = torch.autograd.functional.jacobian(loss_of, weight).flatten()
    expected = weight.flatten() * (hessian @ gradient)
    scores = grasp(net, batches, LOSS, masks, temperature)["3.weight"]
    assert torch.allclose(scores.flatten(), expected, rtol=1e-9, atol=0)


def test_grasps_sign_keeps_what_the_gradient_norm_needs() -> None:
    """Removing a small part of a weight changes |g|^2 by -2 w (H g), over both layers: finite differences."""
    net, batches, h = tiny(), double(data(5)), 1e-5
    scores = grasp(net, batches, LOSS, temperature=1.0)

    def norm(probe: nn.Module) -> float:
        weights = [probe[1].weight, probe[3].weight]
        return sum(float(g.square().sum()) for g in torch.autograd.grad(whole_loss(probe, batches), weights))

    for layer, i, j in [(1, 0, 5), (1, 2, 100), (3, 4, 1), (3, 9, 2)]:
        norms = []
        for factor in (1 - h, 1 + h):
            probe = copy.deepcopy(net)
            with torch.no_grad():
                probe[layer].weight[i, j] *= factor
            norms.append(norm(probe))
        change_when_removed = (norms[0] - norms[1]) / (2 * h)
        assert change_when_removed == pytest.approx(-2 * float(scores[f"{layer}.weight"][i, j]), rel=1e-4)


def test_what_does_not_depend_on_the_weights_scores_zero() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    constant = lambda logits, targets: logits.detach().sum() * 0  # noqa: E731
    assert not gradient_magnitude(net, data(), constant)["1.weight"].any()
    assert not grasp(net, data(), lambda logits, targets: logits.mean())["1.weight"].any()


def test_mistakes() -> None:
    net = NETS["LeNet"]()
    for score in (gradient_magnitude, taylor, grasp):
        with pytest.raises(UserError, match="needs at least one batch of"):
            score(net, [], LOSS)
    with pytest.raises(UserError, match="temperature must be above 0, got 0"):
        grasp(net, data(), LOSS, temperature=0)
    with pytest.raises(UserError, match="rounds must be a whole number, 1 or more, got 0"):
        synflow(net, 0.5, rounds=0, image_size=8)
    with pytest.raises(UserError, match="give either a density or a kept count"):
        synflow(net, image_size=8)
    with pytest.raises(UserError, match=r"head\.2\.weight would be emptied"):
        synflow(net, kept=1, image_size=8)


# -- synaptic flow -----------------------------------------------------------------------------------------------------


def test_synflow_in_the_head() -> None:
    """R = sum |W2| |W1| 1: with W1 = [[1, -2]] and W2 = [[-3], [4]] it is (3 + 4)(1 + 2) = 21."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, -2.0]]))
        net[2].weight.copy_(torch.tensor([[-3.0], [4.0]]))
    net = nn.Sequential(nn.AvgPool2d((2, 1)), net)  # an image of 2x2 ones becomes (1, 1)
    scores = synflow_scores(net, in_channels=1, image_size=2)
    assert scores["1.1.weight"].tolist() == [[7, 14]]
    assert scores["1.2.weight"].tolist() == [[9], [12]]
    # Flow is conserved: what goes through each layer is R.
    assert all(each.sum() == 21 for each in scores.values())
    assert scores["1.1.weight"].dtype == torch.float64
    masks = Masks({"1.1.weight": torch.tensor([[True, False]]), "1.2.weight": torch.tensor([[True], [True]])})
    masked = synflow_scores(net, masks, in_channels=1, image_size=2)
    assert masked["1.1.weight"].tolist() == [[7, 0]] and masked["1.2.weight"].tolist() == [[3], [4]]


def reference_synflow(net: nn.Module, density: float, rounds: int) -> dict[str, Tensor]:
    """The paper's algorithm on a copy, by backward: absolute values in place, scores, thresholds at an exact rank."""
    net = copy.deepcopy(net).double().eval()
    masks = {name: torch.ones_like(net.get_parameter(name)) for name in Masks.dense(net)}
    with torch.no_grad():
        for value in net.state_dict().values():
            value.abs_()
    dense = copy.deepcopy(net.state_dict())
    total = sum(mask.numel() for mask in masks.values())
    goal = round(total * density)
    for k in range(1, rounds + 1):
        net.load_state_dict(dense)
        with torch.no_grad():
            for name, mask in masks.items():
                net.get_parameter(name).mul_(mask)
        net.zero_grad()
        net(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
        scores = {name: (net.get_parameter(name) * net.get_parameter(name).grad).detach().abs() for name in masks}
        keep = math.ceil(total * (goal / total) ** (k / rounds)) if k < rounds else goal
        threshold = torch.cat([s.flatten() for s in scores.values()]).sort(descending=True).values[keep - 1]
        masks = {name: (score >= threshold).double() for name, score in scores.items()}
    return {name: mask.bool() for name, mask in masks.items()}


@pytest.mark.parametrize("name", ["ResNet", "VGG", "LeNet"])
def test_synflow_is_the_iteration_of_its_paper(name: str) -> None:
    torch.manual_seed(2)
    net = NETS[name]()
    masks = synflow(net, 0.1, rounds=10, image_size=8, floor=0)
    assert masks.kept == round(0.1 * masks.total)
    expected = reference_synflow(net, 0.1, 10)
    assert all(torch.equal(mask, expected[key]) for key, mask in masks.items())


def test_synflow_keeps_every_layer_alive_where_one_shot_of_it_does_not() -> None:
    """The paper's point: taken iteratively, layers do not collapse, even where magnitude empties them."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), *[nn.Linear(12, 12, bias=False) for _ in range(7)])
    with torch.no_grad():
        net[3].weight.mul_(1e-3)
    kwargs = {"in_channels": 3, "image_size": 2, "floor": 0}
    layers = synflow(net, 0.03, rounds=100, **kwargs).layers
    assert min(layer.kept for layer in layers) >= 1
    assert sum(layer.kept for layer in layers) == round(0.03 * sum(layer.total for layer in layers))
    assert min(layer.kept for layer in select(magnitude(net), density=0.03, floor=0).layers) == 0


def test_synflow_goes_on_from_masks() -> None:
    net = NETS["ResNet"]()
    half = synflow(net, 0.5, rounds=3, image_size=8)
    less = synflow(net, kept=500, rounds=3, image_size=8, masks=half)
    assert less.kept == 500 and less & half == less
    assert synflow(net, kept=half.kept, rounds=3, image_size=8, masks=half) == half
    nothing = synflow(net, 0.0, rounds=3, image_size=8, floor=0)
    assert nothing.kept == 0


# -- movement ----------------------------------------------------------------------------------------------------------


def test_movement_in_the_head() -> None:
    net = nn.Linear(2, 1, bias=False)
    movement = Movement(net)
    with pytest.raises(UserError, match=r"^weight has no gradient: movement is updated after the backward pass$"):
        movement.update(net)
    for weight, grad in [((1.0, -2.0), (3.0, 3.0)), ((2.0, 1.0), (-1.0, 0.0))]:
        with torch.no_grad():
            net.weight.copy_(torch.tensor([weight]))
        net.weight.grad = torch.tensor([grad])
        movement.update(net)
    # -1*3 - 2*(-1) and -(-2)*3 - 1*0: the second moves away from zero.
    assert movement.scores()["weight"].tolist() == [[-1, 6]]
    assert select(movement.scores(), kept=1)["weight"].tolist() == [[False, True]]
    movement.scores()["weight"].zero_()
    assert movement.scores()["weight"].tolist() == [[-1, 6]]


def test_movement_over_training_is_one_operation_and_survives_a_resume() -> None:
    torch.manual_seed(0)
    net = NETS["ResNet"]()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    movement = Movement(net)
    expected = {name: torch.zeros_like(net.get_parameter(name)) for name in Masks.dense(net)}
    for images, targets in data(4, 4, 4):
        optimizer.zero_grad()
        LOSS(net(images), targets).backward()
        for name in expected:
            expected[name] -= net.get_parameter(name).detach() * net.get_parameter(name).grad
        resumed = Movement(net)
        resumed.load_state_dict(movement.state_dict())
        movement = resumed
        movement.update(net)
        optimizer.step()
    assert all(torch.allclose(score, expected[name], rtol=1e-6) for name, score in movement.scores().items())
    assert count_dispatched(lambda: movement.update(net)) == 1
    with pytest.raises(UserError, match="belong to another network"):
        Movement(NETS["LeNet"]()).load_state_dict(movement.state_dict())
