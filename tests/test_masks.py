"""Masks as values: what they cover, exact zeros, and that they cannot be lost."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from smallnets import models
from smallnets.errors import RunError, UserError
from smallnets.measure.dispatch import count_dispatched
from smallnets.pruning.masks import Masks

NETS = {
    "ResNet": lambda: models.ResNet(blocks=[1, 1], channels=[8, 12]),
    "PreActResNet": lambda: models.PreActResNet(blocks=[1, 1], channels=[8, 12]),
    "VGG": lambda: models.VGG(blocks=[1, 1], channels=[8, 12], batch_norm=True, head_widths=[16], image_size=8),
    "DenseNet": lambda: models.DenseNet(blocks=[2, 2], growth_rate=6, stem_channels=8),
    "ViT": lambda: models.ViT(dim=16, depth=2, heads=2, mlp_dim=8, head_widths=(8,), image_size=8),
    "LeNet": lambda: models.LeNet(hidden_widths=[20, 10], image_size=8, in_channels=3),
}
family = pytest.mark.parametrize("name", NETS)


class Small(nn.Module):
    """Weights 0..9 in two layers, a norm and biases."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.body.weight.copy_(torch.arange(6.0).view(2, 3))
            self.head.weight.copy_(torch.arange(6.0, 10.0).view(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


def bits(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def small_masks() -> Masks:
    """Keeps 1, 3, 5 of the body and 9 of the head: 18 of 45."""
    return Masks({"body.weight": bits(0, 1, 0, 1, 0, 1).view(2, 3), "head.weight": bits(0, 0, 0, 1).view(2, 2)})


def random_masks(net: nn.Module, density: float = 0.3, seed: int = 0) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks({n: torch.rand(m.shape, generator=generator) < density for n, m in Masks.dense(net).items()})


# -- which weights ---------------------------------------------------------------------------------------------------


@family
def test_dense_masks_cover_all_convolutions_and_linear_layers_and_nothing_else(name: str) -> None:
    net = NETS[name]()
    expected = [f"{path}.weight" for path, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    masks = Masks.dense(net)
    assert list(masks) == expected
    assert masks.kept == masks.total == sum(net.get_parameter(each).numel() for each in expected)
    assert masks.density == 1.0


def test_counts_in_the_head() -> None:
    masks, net = small_masks(), Small()
    assert (masks.kept, masks.total, masks.density) == (4, 10, 0.4)
    assert [(each.name, each.kept, each.total, each.density) for each in masks.layers] == [
        ("body.weight", 3, 6, 0.5),
        ("head.weight", 1, 4, 0.25),
    ]
    masks.apply_(net)
    assert net.body.weight.sum() + net.head.weight.sum() == 18
    assert repr(masks) == "Masks(2 layers, 4 of 10 kept)"


def test_patterns_choose_by_the_name_of_a_weight_or_of_its_layer() -> None:
    net = Small()
    assert list(Masks.dense(net, exclude=["head"])) == ["body.weight"]
    assert list(Masks.dense(net, include=["h*"])) == ["head.weight"]
    assert list(Masks.dense(net, include=["*.weight"])) == ["body.weight", "head.weight"]
    assert list(Masks.dense(net, include=["head", "body"])) == ["body.weight", "head.weight"]


def test_weights_of_other_layers_are_taken_only_when_named() -> None:
    net = nn.Sequential(nn.MultiheadAttention(4, 2), nn.Embedding(5, 4))
    assert list(Masks.dense(net)) == ["0.out_proj.weight"]
    assert list(Masks.dense(net, include=["*"])) == ["0.in_proj_weight", "0.out_proj.weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exclude": ["hed"]}, "exclude pattern 'hed' matches none of the 2 weights of Small"),
        ({"include": ["stages.*"]}, "include pattern 'stages.*' matches none"),
        ({"include": ["norm"]}, "norm.weight is not one of them"),
        ({"include": ["*.bias"]}, "body.bias is not one of them"),
        ({"exclude": ["*"]}, "has no weights to mask"),
        ({"exclude": "head"}, "takes a list of patterns, got the string 'head'"),
    ],
)
def test_patterns_must_match_something(arguments: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError) as error:
        Masks.dense(Small(), **arguments)
    assert message in str(error.value)


def test_positions_and_class_tokens_are_never_masked() -> None:
    with pytest.raises(UserError, match="positions is not one of them"):
        Masks.dense(NETS["ViT"](), include=["positions"])


def test_weights_computed_from_others_are_refused() -> None:
    net = Small()
    prune.l1_unstructured(net.head, "weight", 0.5)
    with pytest.raises(UserError, match="head: its weight is computed from other tensors"):
        Masks.dense(net)
    with pytest.raises(UserError, match="has no shape yet"):
        Masks.dense(nn.Sequential(nn.LazyLinear(3)))


def test_a_weight_that_two_layers_share_has_one_mask() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert list(Masks.dense(net)) == ["0.weight"]
    embedding = nn.Sequential(nn.Embedding(3, 3), nn.Linear(3, 3))
    embedding[1].weight = embedding[0].weight
    with pytest.raises(UserError, match="no weights to mask"):
        Masks.dense(embedding)


# -- acting ----------------------------------------------------------------------------------------------------------


@family
def test_applying_zeroes_what_is_masked_and_leaves_the_rest_bitwise(name: str) -> None:
    net = NETS[name]()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    masks = random_masks(net)
    with pytest.raises(RunError):
        masks.check(net)
    masks.apply_(net)
    masks.check(net)
    assert list(net.state_dict()) == list(before)
    for key, value in net.state_dict().items():
        expected = torch.where(masks[key], before[key], 0.0) if key in masks else before[key]
        assert torch.equal(value, expected), key


def test_each_apply_is_one_operation_for_all_layers() -> None:
    net = NETS["ResNet"]()
    net(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    masks = random_masks(net)
    for apply in (
        lambda: masks.apply_(net),
        lambda: masks.apply_to_gradients_(net),
        lambda: masks.apply_to_state_(optimizer, net),
    ):
        apply()
        assert count_dispatched(apply) == 1


def test_gradients_and_momentum_are_masked_and_absent_ones_stay_absent() -> None:
    net, masks = Small(), small_masks()
    masks.apply_to_gradients_(net)
    assert net.body.weight.grad is None
    net.body.weight.grad = torch.ones(2, 3)
    masks.apply_to_gradients_(net)
    assert net.body.weight.grad.tolist() == [[0, 1, 0], [1, 0, 1]]
    assert net.head.weight.grad is None
    for optimizer in (torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), torch.optim.Adam(net.parameters())):
        masks.apply_to_state_(optimizer, net)
        assert not optimizer.state
        net(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        bias = {key: each.clone() for key, each in optimizer.state[net.body.bias].items() if each is not None}
        masks.apply_to_state_(optimizer, net)
        for key, value in optimizer.state[net.body.weight].items():
            if key != "step":
                assert torch.equal(value != 0, masks["body.weight"]), key
        for key, value in bias.items():
            assert torch.equal(value, optimizer.state[net.body.bias][key])


@pytest.mark.parametrize("build", [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-2),
])  # fmt: skip
def test_training_with_momentum_and_decay_keeps_exact_zeros_and_equals_the_reparametrised_training(build) -> None:
    """w * mask in the forward, by hand, is the independent reference: its effective weights are the same, bitwise."""
    torch.manual_seed(0)
    ours = NETS["VGG"]()
    theirs = copy.deepcopy(ours)
    masks = random_masks(ours, 0.4)
    images, targets = torch.randn(20, 8, 3, 8, 8), torch.randint(0, 10, (20, 8))
    masks.apply_(ours)
    for name, mask in masks.items():
        path, _, last = name.rpartition(".")
        prune.custom_from_mask(theirs.get_submodule(path), last, mask)
    mine, other = build(ours.parameters()), build(theirs.parameters())
    for step in range(20):
        for net, optimizer in ((ours, mine), (theirs, other)):
            torch.manual_seed(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[step]), targets[step]).backward()
            if net is ours:
                masks.apply_to_gradients_(ours)
            optimizer.step()
        masks.apply_(ours)
        masks.check(ours)
    for name, mask in masks.items():
        weight = ours.get_parameter(name)
        assert torch.equal(weight == 0, ~mask), name
        assert torch.equal(weight, theirs.get_parameter(f"{name}_orig") * mask), name


def test_check_names_the_layer_and_how_many() -> None:
    net, masks = Small(), small_masks()
    masks.apply_(net)
    masks.check(net)
    with torch.no_grad():
        net.head.weight[0] = 1e-30
    with pytest.raises(RunError, match=r"^head\.weight: 2 of 3 masked weights are not 0\.0$"):
        masks.check(net)
    with torch.no_grad():
        net.body.weight[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"^body\.weight: 1 of 3 masked weights are not 0\.0 \(and in 1 more layers\)$"):
        masks.check(net)


def test_a_check_inside_validation_does_not_hinder_training() -> None:
    net, masks = Small(), small_masks()
    with torch.inference_mode():
        with pytest.raises(RunError):
            masks.check(net)
        same = Masks(masks)
    for each in (masks, same):
        net(torch.randn(5, 3)).sum().backward()
        each.apply_to_gradients_(net)
        each.apply_(net)
        each.check(net)


def test_masks_of_another_network_are_refused() -> None:
    with pytest.raises(UserError, match=r"^head\.weight: the mask is of 2x2, the weight of 4x2$"):
        net = Small()
        net.head = nn.Linear(2, 4)
        small_masks().apply_(net)
    with pytest.raises(UserError, match=r"a mask for body\.weight, but Sequential has no such parameter"):
        small_masks().check(nn.Sequential(nn.Linear(3, 2)))


def test_masks_follow_the_weights_precision_and_a_compiled_network() -> None:
    masks = small_masks()
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        net = Small().to(dtype)
        masks.apply_(net)
        assert net.head.weight.tolist() == [[0, 0], [0, 9]]
    net = Small()
    compiled = torch.compile(net)
    assert list(Masks.dense(compiled)) == list(masks)
    masks.apply_(compiled)
    masks.check(net)


# -- a value ---------------------------------------------------------------------------------------------------------


def stored(masks: Masks) -> Masks:
    file = io.BytesIO()
    torch.save({"masks": masks.state_dict()}, file)
    file.seek(0)
    return Masks.from_state_dict(torch.load(file, weights_only=True)["masks"])


def copies(masks: Masks) -> dict[str, Masks]:
    return {
        "deepcopy": copy.deepcopy(masks),
        "pickle": pickle.loads(pickle.dumps(masks)),
        "state": Masks.from_state_dict(masks.state_dict()),
        "file": stored(masks),
        "to": masks.to("cpu"),
    }


@family
def test_masks_survive_every_copy(name: str) -> None:
    net = NETS[name]()
    masks = random_masks(net)
    masks.apply_(net)  # what is kept aside for speed is no part of the value
    for how, each in copies(masks).items():
        assert each == masks and list(each) == list(masks) and each.layers == masks.layers, how
        each.check(copy.deepcopy(net))


@pytest.mark.parametrize("numbers", [1, 7, 8, 9, 64, 1001])
def test_stored_masks_take_one_bit_a_weight(numbers: int) -> None:
    masks = Masks({"w": torch.rand(numbers, generator=torch.Generator().manual_seed(0)) < 0.5})
    state = masks.state_dict()["w"]
    assert state["bits"].numel() == (numbers + 7) // 8 and state["bits"].dtype == torch.uint8
    assert state["shape"] == [numbers]
    assert stored(masks) == masks


def test_a_damaged_file_is_refused() -> None:
    state = small_masks().state_dict()
    state["body.weight"]["shape"] = [20, 3]
    with pytest.raises(RunError, match=r"stored mask of body\.weight is damaged: 1 bytes for a shape of \[20, 3\]"):
        Masks.from_state_dict(state)


def test_nobody_can_change_masks_through_a_tensor() -> None:
    given = {"w": torch.ones(4, dtype=torch.bool)}
    masks = Masks(given)
    given["w"][0] = False
    masks["w"][1] = False
    assert masks.kept == 4 and masks["w"].all()
    with pytest.raises(TypeError):
        masks["w"] = torch.zeros(4, dtype=torch.bool)  # type: ignore[index]


def test_equality_is_by_names_and_bits() -> None:
    one = Masks({"a": bits(1, 0), "b": bits(0, 1)})
    assert one == Masks({"b": bits(0, 1), "a": bits(1, 0)})
    assert one != Masks({"a": bits(1, 1), "b": bits(0, 1)})
    assert one != Masks({"a": bits(1, 0)})
    assert one != Masks({"a": bits(1, 0), "b": bits(0, 1).view(1, 2)})
    assert one != "masks"


def test_and_and_overlap_in_the_head() -> None:
    one, other = Masks({"w": bits(1, 1, 1, 0, 0)}), Masks({"w": bits(0, 1, 1, 1, 0)})
    assert (one & other) == Masks({"w": bits(0, 1, 1, 0, 0)})
    assert one.overlap(other) == 2 / 4 == other.overlap(one)
    assert one.overlap(one) == 1.0
    nothing = Masks({"w": bits(0, 0, 0, 0, 0)})
    assert one.overlap(nothing) == 0.0 and nothing.overlap(nothing) == 1.0
    with pytest.raises(UserError, match="different layers: v, w in one of them only"):
        one & Masks({"v": bits(1)})
    with pytest.raises(UserError, match="w: one mask is of 5, the other of 4"):
        one.overlap(Masks({"w": bits(1, 1, 1, 1)}))


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(UserError, match="at least one layer"):
        Masks({})
    with pytest.raises(UserError, match=r"the mask of w must be a bool tensor with entries, got torch\.float32 of 3"):
        Masks({"w": torch.ones(3)})


def test_the_cores_load_without_lightning() -> None:
    code = (
        "import sys, smallnets.pruning.masks, smallnets.pruning.criteria, smallnets.pruning.schedules\n"
        "assert not {'lightning', 'torchmetrics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
