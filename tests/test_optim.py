"""Parameter groups, warm-up and planned rates."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)

from smallnets.errors import RunError, UserError
from smallnets.measure.dispatch import count_dispatched
from smallnets.models import resnet20
from smallnets.optim import (
    AdaBound,
    Length,
    in_foreach_form,
    param_groups,
    plan_findings,
    planned_rates,
    rate_far_from_reference,
    with_warmup,
)
from smallnets.training import Classifier

# -- parameter groups ----------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """A parameter of each kind, one of them shared and one frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.scale = nn.Parameter(torch.ones(()))
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.norm = nn.LayerNorm((4, 8))
        self.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8, bias=False)
        self.two.weight = self.one.weight
        self.frozen = nn.Linear(8, 8, bias=False).requires_grad_(False)


def names_of(net: nn.Module, group: dict) -> list[str]:
    names = {id(p): n for n, p in net.named_parameters()}
    return [names[id(p)] for p in group["params"]]


def test_one_group_without_the_flag_in_the_networks_order():
    net = Everything()
    groups = param_groups(net, spare_norm_and_bias=False)
    assert len(groups) == 1 and list(groups[0]) == ["params"]
    assert names_of(net, groups[0]) == [n for n, p in net.named_parameters() if p.requires_grad]


def test_flag_spares_norms_biases_embeddings_and_tokens():
    net = Everything()
    decayed, spared = param_groups(net, spare_norm_and_bias=True)
    assert names_of(net, decayed) == ["conv.weight", "one.weight"]
    assert "weight_decay" not in decayed and spared["weight_decay"] == 0.0
    assert names_of(net, spared) == [
        "pos_embed",
        "class_token",
        "scale",
        "conv.bias",
        "bn.weight",
        "bn.bias",
        "norm.weight",
        "norm.bias",
        "one.bias",
    ]


def test_an_empty_group_is_left_out_and_nothing_trainable_is_an_error():
    assert len(param_groups(nn.Linear(2, 2, bias=False), spare_norm_and_bias=True)) == 1
    with pytest.raises(UserError, match="no trainable parameter"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), spare_norm_and_bias=True)


def test_decay_moves_only_the_decayed():
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = SGD(param_groups(net, spare_norm_and_bias=True), lr=1.0, weight_decay=0.5)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(net[0].weight, before["0.weight"] / 2)
    for name in ("0.bias", "1.weight", "1.bias"):
        assert torch.equal(net.get_parameter(name), before[name])


# -- warm-up ---------------------------------------------------------------------------------------------------------


def _bytes(value):
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def sgd(params):
    return SGD(params, lr=1.0, momentum=0.9)


SCHEDULES = {
    "StepLR": lambda o: StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: MultiStepLR(o, [1, 3], gamma=0.5),
    "CosineAnnealingLR": lambda o: CosineAnnealingLR(o, 4),
    "LinearLR": lambda o: LinearLR(o, start_factor=0.25, total_iters=3),
    "CyclicLR": lambda o: CyclicLR(o, base_lr=0.5, max_lr=1.5, step_size_up=2, mode="triangular2"),
    "CosineAnnealingWarmRestarts": lambda o: CosineAnnealingWarmRestarts(o, 2),
    "MultiplicativeLR": lambda o: MultiplicativeLR(o, lambda k: 0.5),
    "LambdaLR": lambda o: LambdaLR(o, lambda k: 1 / (k + 1)),
    "PolynomialLR": lambda o: PolynomialLR(o, 4),
}
# After three steps of warm-up, numbers worked out by hand.
BY_HAND = {
    "StepLR": [0.25, 0.5, 0.75, 1, 1, 0.5, 0.5, 0.25],
    "MultiStepLR": [0.25, 0.5, 0.75, 1, 0.5, 0.5, 0.25, 0.25],
    "CosineAnnealingLR": [0.25, 0.5, 0.75, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0],
    "LinearLR": [0.0625, 0.125, 0.1875, 0.25, 0.5, 0.75, 1, 1],
    "CyclicLR": [0.125, 0.25, 0.375, 0.5, 1, 1.5, 1, 0.5, 0.75, 1, 0.75, 0.5],
}


def trace(make_schedule, steps: int) -> list[tuple[float, float]]:
    """(rate, momentum) at each step, in a loop that steps the optimizer as training does."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = sgd([weight])
    schedule = make_schedule(optimizer)
    seen = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["momentum"]))
        assert schedule.get_last_lr() == [group["lr"]]
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("name", BY_HAND)
def test_warmup_rates_by_hand(name):
    expected = BY_HAND[name]
    rates = [rate for rate, _ in trace(lambda o: with_warmup(o, SCHEDULES[name], 3), len(expected))]
    assert rates == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_after_the_warmup_the_schedule_runs_bitwise_as_alone(name):
    alone = trace(SCHEDULES[name], 9)
    warm = trace(lambda o: with_warmup(o, SCHEDULES[name], 4), 13)
    assert warm[4:] == alone
    start, momentum = alone[0]
    assert warm[:4] == [(start * (k + 1) / 5, momentum) for k in range(4)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stop", [0, 2, 3, 4, 7])
def test_warmup_resumes_bitwise_from_plain_data(name, stop):
    def build():
        optimizer = sgd([nn.Parameter(torch.zeros(1))])
        return optimizer, with_warmup(optimizer, SCHEDULES[name], 3)

    def run(optimizer, schedule, steps):
        rates = []
        for _ in range(steps):
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            schedule.step()
        return rates

    optimizer, schedule = build()
    run(optimizer, schedule, stop)
    state = torch.load(_bytes((optimizer.state_dict(), schedule.state_dict())), weights_only=True)
    rest = run(optimizer, schedule, 8)
    optimizer, schedule = build()
    optimizer.load_state_dict(state[0])
    schedule.load_state_dict(state[1])
    assert run(optimizer, schedule, 8) == rest


def test_cyclic_momentum_stays_at_its_start_during_warmup():
    def make(optimizer):
        return CyclicLR(optimizer, 0.1, 1.0, step_size_up=2, mode="triangular2", base_momentum=0.8, max_momentum=0.95)

    momenta = [momentum for _, momentum in trace(lambda o: with_warmup(o, make, 2), 6)]
    assert momenta == pytest.approx([0.95, 0.95, 0.95, 0.875, 0.8, 0.875])


def test_warmup_scales_each_group_to_its_own_rate():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 3.0}], lr=1.0)
    schedule = with_warmup(optimizer, None, 2)
    rates = []
    for _ in range(4):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert rates == [pytest.approx(r) for r in ([1 / 3, 1], [2 / 3, 2], [1, 3], [1, 3])]


def test_without_warmup_the_schedule_is_the_plain_one():
    optimizer = sgd([nn.Parameter(torch.zeros(1))])
    assert with_warmup(optimizer, None, 0) is None
    assert type(with_warmup(optimizer, SCHEDULES["StepLR"], 0)) is StepLR


def test_schedules_that_cannot_be_warmed_up():
    def one_cycle(optimizer):
        return OneCycleLR(optimizer, 1.0, total_steps=10)

    for make, said in ((one_cycle, "OneCycleLR"), (ReduceLROnPlateau, "ReduceLROnPlateau")):
        optimizer = sgd([nn.Parameter(torch.zeros(1))])
        with pytest.raises(UserError, match=f"warmup 5 with {said}"):
            with_warmup(optimizer, make, 5)
        assert with_warmup(optimizer, make, 0) is not None
    with pytest.raises(UserError, match="got -1"):
        with_warmup(sgd([nn.Parameter(torch.zeros(1))]), None, -1)


# -- planned rates ---------------------------------------------------------------------------------------------------


def test_planned_rates_equal_those_of_a_run():
    for make in SCHEDULES.values():
        assert planned_rates(sgd, make, 9) == [rate for rate, _ in trace(make, 9)]
    assert planned_rates(sgd, None, 3) == [1.0, 1.0, 1.0]
    assert planned_rates(sgd, ReduceLROnPlateau, 2) == [1.0, 1.0]
    assert planned_rates(sgd, SCHEDULES["StepLR"], 0) == []


def test_planned_rates_refuse_a_schedule_that_is_too_short():
    def make(optimizer):
        return OneCycleLR(optimizer, 1.0, total_steps=10)

    assert len(planned_rates(sgd, make, 11)) == 11
    with pytest.raises(RunError, match="OneCycleLR cannot be stepped 11 times"):
        planned_rates(sgd, make, 12)


def findings(make_schedule, interval="epoch", epochs=100, per_epoch=350, lr=0.01):
    def make(params):
        return SGD(params, lr=lr, momentum=0.9)

    return plan_findings(make, make_schedule, interval, Length(epochs, epochs * per_epoch))


# Document 000's milestones, document 004's three schedules, and the usual mistakes: (schedule, epochs, interval) ->
# kind and words of the message.
PLANS = {
    "milestones": (
        lambda o: MultiStepLR(o, [100, 150]),
        100,
        "epoch",
        "schedule_beyond_run",
        "milestones 100, 150 are",
    ),
    "one milestone": (
        lambda o: MultiStepLR(o, [50, 150]),
        100,
        "epoch",
        "schedule_beyond_run",
        "milestone 150 is never",
    ),
    "warm-up too": (
        lambda o: with_warmup(o, lambda p: MultiStepLR(p, [97]), 5),
        100,
        "epoch",
        "schedule_beyond_run",
        "warmup 5, then MultiStepLR",
    ),
    "cosine 200 of 50": (
        lambda o: CosineAnnealingLR(o, 200),
        50,
        "epoch",
        "schedule_beyond_run",
        "last rate is 0.00859",
    ),
    "cosine 400 of 200": (lambda o: CosineAnnealingLR(o, 200), 400, "epoch", "schedule_climbs", "from 0 to 0.01"),
    "StepLR": (lambda o: StepLR(o, 5), 50, "epoch", "schedule_frozen", "for 35 of them, first at 15"),
    "StepLR 150": (lambda o: StepLR(o, 150), 100, "epoch", "schedule_beyond_run", "the rate never falls"),
    "LinearLR": (LinearLR, 50, "epoch", "schedule_ends_early", "it ends at 5 and the rate stays at 0.01"),
    "PolynomialLR": (lambda o: PolynomialLR(o, 50), 100, "epoch", "schedule_ends_early", "stays at 0 to the end"),
    "oscillating": (lambda o: LambdaLR(o, lambda k: 1 + math.cos(k)), 100, "epoch", "schedule_climbs", "LambdaLR"),
    "epochs as steps": (
        lambda o: CosineAnnealingLR(o, 160),
        160,
        "step",
        "schedule_climbs",
        "should `interval` be epoch",
    ),
    "milestones as steps": (lambda o: MultiStepLR(o, [80, 120]), 160, "step", "schedule_ends_early", "be epoch"),
    "steps as epochs": (lambda o: CosineAnnealingLR(o, 35_000), 100, "epoch", "schedule_beyond_run", "be step"),
    "OneCycleLR": (lambda o: OneCycleLR(o, 0.1, total_steps=300), 100, "epoch", "schedule_beyond_run", "ends at 300"),
    "CyclicLR": (lambda o: CyclicLR(o, 1e-3, 1e-2), 50, "epoch", "schedule_beyond_run", "step_size_up=2000"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_schedule_that_does_not_fit_the_run_is_named(name):
    make, epochs, interval, kind, words = PLANS[name]
    found, _ = findings(make, interval, epochs, per_epoch=100 if interval == "step" else 350)
    assert [k for k, _ in found] == [kind]
    assert words in found[0][1]
    assert f"stepped once per {interval} and the run has" in found[0][1]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: None,
        ReduceLROnPlateau,
        lambda o: CosineAnnealingLR(o, 100),
        lambda o: CosineAnnealingLR(o, 99),
        lambda o: with_warmup(o, lambda p: CosineAnnealingLR(p, 95), 5),
        lambda o: with_warmup(o, lambda p: CosineAnnealingLR(p, 100), 5),
        lambda o: with_warmup(o, None, 5),
        lambda o: MultiStepLR(o, [50, 75]),
        lambda o: StepLR(o, 30),
        lambda o: LinearLR(o, 1.0, 0.01, 100),
        lambda o: OneCycleLR(o, 0.1, total_steps=100),
        lambda o: CyclicLR(o, 1e-3, 1e-2, 5, mode="triangular2"),
        lambda o: CosineAnnealingWarmRestarts(o, 25),
    ],
)
def test_a_schedule_that_fits_is_left_alone(make):
    assert findings(make)[0] == []


def test_too_short_a_one_cycle_stops_before_the_run():
    with pytest.raises(RunError, match="OneCycleLR cannot be stepped 100 times"):
        findings(lambda o: OneCycleLR(o, 0.1, total_steps=99))


def test_the_highest_rate_is_the_schedules():
    assert findings(lambda o: OneCycleLR(o, 0.5, total_steps=100))[1] == pytest.approx(0.5, rel=1e-3)
    assert findings(lambda o: None)[1] == 0.01


# -- reference rates -------------------------------------------------------------------------------------------------


def test_document_000s_rate_is_sixteen_times_the_reference():
    optimizer = sgd([nn.Parameter(torch.zeros(1))])
    assert rate_far_from_reference(optimizer, 0.1, 8) == (
        "SGD lr 0.1 at batch 8 is 16x the reference 0.1 at batch 128 scaled linearly (0.00625)"
    )
    assert "is 1/1000 of the reference" in str(rate_far_from_reference(optimizer, 1e-4, 128))
    # The thresholds are 8 and 1/256, and are themselves reported.
    assert rate_far_from_reference(optimizer, 0.1, 16) is not None
    assert rate_far_from_reference(optimizer, 0.1, 17) is None
    assert rate_far_from_reference(optimizer, 0.1 / 256, 128) is not None
    assert rate_far_from_reference(optimizer, 0.1 / 255, 128) is None


def test_adaptive_rates_scale_by_the_root():
    weight = [nn.Parameter(torch.zeros(1))]
    for make in (Adam, AdamW, RMSprop, AdaBound):
        optimizer = make(weight, lr=1e-3)
        assert rate_far_from_reference(optimizer, 1e-3, 8) is None  # 4 times
        message = rate_far_from_reference(optimizer, 1e-3, 2)  # sqrt(64) = 8 times
        assert message is not None and "is 8x the reference 0.001" in message and "square root (0.000125)" in message
    assert rate_far_from_reference(Adagrad(weight, lr=100.0), 100.0, 8) is None


def test_sgd_without_momentum_takes_a_tenfold_rate():
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert rate_far_from_reference(optimizer, 1.0, 128) is None
    message = rate_far_from_reference(optimizer, 10.0, 128)
    assert message is not None and "is 10x" in message and "momentum 0 (1)" in message


# -- over lists of tensors -------------------------------------------------------------------------------------------


def steps_of(net, optimizer):
    """The weights after five steps on the same made-up gradients, and the operations of the last step."""
    generator = torch.Generator().manual_seed(1)
    for number in range(5):
        for each in net.parameters():
            each.grad = torch.randn(each.shape, generator=generator)
        operations = count_dispatched(optimizer.step) if number == 4 else optimizer.step()
    return [each.detach() for each in net.parameters()], operations


@pytest.mark.parametrize(
    ("make", "one_by_one", "lists"),
    [
        (lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4), 262, 6),
        (lambda p: Adam(p, lr=1e-3, weight_decay=5e-4), 652, 142),
        (lambda p: AdamW(p, lr=1e-3), 652, 142),
        (lambda p: RMSprop(p, lr=1e-3, momentum=0.9), 522, 11),
    ],
)
def test_a_classifier_steps_over_lists_of_tensors_and_its_weights_are_bitwise_the_same(make, one_by_one, lists):
    """Of a ResNet-20, whose parameters are 65 tensors."""
    module = Classifier(resnet20(), optimizer=make)
    plain = copy.deepcopy(module.net)
    theirs, many = steps_of(plain, make(plain.parameters()))
    ours, few = steps_of(module.net, module.make_optimizer())
    assert (many, few) == (one_by_one, lists)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_form_that_was_chosen_stays():
    def group(**options):
        optimizer = in_foreach_form(SGD([nn.Parameter(torch.zeros(2))], lr=0.1, **options))
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
        assert all(each["foreach"] is optimizer.defaults["foreach"] for each in optimizer.param_groups)
        return optimizer.param_groups[0]["foreach"]

    assert group() is True
    assert group(foreach=False) is False
    assert group(fused=True) is None
    assert group(differentiable=True) is None
