"""AdaBound against the package `adabound`, by hand, and through its state; and how many operations a step takes."""

import copy
import importlib.util
import io
import math
import pickle
import sys
import warnings

import adabound
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from smallnets.measure.dispatch import count_dispatched
from smallnets.models import resnet20
from smallnets.optim import AdaBound, param_groups
from smallnets.optim import adabound as module

STEPS = 300
# The package does the same arithmetic in another order, so it rounds differently. Every weight and average is rounded
# at least once a step and the errors add up: the two may end STEPS roundings apart, which in float64 is 7e-14.
TOLERANCE = {torch.float64: 1e-12, torch.float32: STEPS * torch.finfo(torch.float32).eps}
SHAPES = [(3, 4), (5,), (), (2, 1, 3, 3)]


def quiet_step(optimizer: Optimizer) -> None:
    """A step without the package's warnings about deprecated overloads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()


def parameters(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def set_grads(params: list[nn.Parameter], step: int) -> None:
    """Gradients of sizes 1e-3 to 10, so that rates below, between and above the bounds occur."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, p in enumerate(params):
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = (10.0 ** (i % 4 * 4 / 3 - 3) * (noise + 0.5)).to(p.dtype)


def run(optimizer: Optimizer, schedule: LRScheduler | None, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        set_grads(params, step)
        quiet_step(optimizer)
        if schedule is not None:
            schedule.step()


def assert_alike(ours: AdaBound, theirs: Optimizer, tolerance: float) -> None:
    mine = [p for group in ours.param_groups for p in group["params"]]
    package = [p for group in theirs.param_groups for p in group["params"]]
    for a, b in zip(mine, package, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert ours.state[a].keys() == theirs.state[b].keys()
        for name, value in theirs.state[b].items():
            if name == "step":
                assert ours.state[a]["step"] == value
            else:
                # Averages of gradients that cancel are small beside what was rounded: the largest gives the scale.
                scale = float(value.abs().max())
                torch.testing.assert_close(ours.state[a][name], value, rtol=0, atol=tolerance * scale)


SCHEDULES = {
    "none": lambda o: None,
    "StepLR": lambda o: StepLR(o, 70, gamma=0.1),
    "cosine": lambda o: CosineAnnealingLR(o, STEPS - 1),  # the last step is at lr 0
}


# -- the package's numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("amsbound", [False, True])
@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1, "lr": 0.01, "gamma": 0.02, "betas": (0.8, 0.95)}])
def test_the_packages_numbers_over_hundreds_of_steps(dtype, schedule, amsbound, settings):
    mine, package = parameters(dtype), parameters(dtype)
    ours = AdaBound(mine, amsbound=amsbound, **settings)
    theirs = adabound.AdaBound(package, amsbound=amsbound, **settings)
    run(ours, SCHEDULES[schedule](ours), mine, range(STEPS))
    run(theirs, SCHEDULES[schedule](theirs), package, range(STEPS))
    assert_alike(ours, theirs, TOLERANCE[dtype])
    assert all(not torch.equal(a, b) for a, b in zip(mine, parameters(dtype), strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_packages_numbers_with_groups_that_differ_in_everything(schedule):
    def build(make):
        a, b = parameters(seed=1), parameters(seed=2)
        groups = [
            {"params": a[:2], "weight_decay": 0.0},
            {"params": a[2:]},
            {"params": b[:1], "lr": 0.02, "amsbound": True, "eps": 1e-4},
            {"params": b[1:], "betas": (0.5, 0.9), "final_lr": 0.01, "gamma": 0.1},
        ]
        return a + b, make(groups, lr=0.005, weight_decay=0.01)

    mine, ours = build(AdaBound)
    package, theirs = build(adabound.AdaBound)
    run(ours, SCHEDULES[schedule](ours), mine, range(STEPS))
    run(theirs, SCHEDULES[schedule](theirs), package, range(STEPS))
    assert_alike(ours, theirs, 1e-12)


def test_a_parameter_without_a_gradient_is_skipped_and_keeps_its_own_step_count():
    mine, package = parameters(), parameters()
    ours = AdaBound(mine, lr=0.01, weight_decay=0.1)
    theirs = adabound.AdaBound(package, lr=0.01, weight_decay=0.1)
    for step in range(60):
        for params, optimizer in ((mine, ours), (package, theirs)):
            set_grads(params, step)
            if step % 3 == 0:
                params[0].grad = None
            if step < 50:
                params[1].grad = None
            params[2].grad = None
            quiet_step(optimizer)
    assert [ours.state[p]["step"] for p in (mine[0], mine[1], mine[3])] == [40, 10, 60]
    assert mine[2] not in ours.state and torch.equal(mine[2], parameters()[2])
    del theirs.param_groups[0]["params"][2], ours.param_groups[0]["params"][2]  # no state on either side
    assert_alike(ours, theirs, 1e-12)
    for p in mine:
        p.grad = None
    before = [p.detach().clone() for p in mine]
    ours.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, before, strict=True))


def test_several_types_in_one_group():
    def mixed():
        return [*parameters(torch.float32), *parameters(torch.float64)]

    mine, package = mixed(), mixed()
    ours, theirs = AdaBound(mine, weight_decay=0.1), adabound.AdaBound(package, weight_decay=0.1)
    run(ours, None, mine, range(50))
    run(theirs, None, package, range(50))
    for a, b in zip(mine, package, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE[a.dtype], atol=TOLERANCE[a.dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_and_a_bound_beyond_its_range(dtype):
    # final_lr 1e-9: rate / lower is 3e8 in the first step, float16 ends at 65504.
    mine, package = nn.Parameter(torch.ones(3, dtype=dtype)), nn.Parameter(torch.ones(3, dtype=dtype))
    ours, theirs = AdaBound([mine], final_lr=1e-9), adabound.AdaBound([package], final_lr=1e-9)
    run(ours, None, [mine], range(3))
    run(theirs, None, [package], range(3))
    assert torch.equal(mine, package)  # the moves are below half a unit of the weights
    ours, theirs = AdaBound([mine], lr=0.05), adabound.AdaBound([package], lr=0.05)
    run(ours, None, [mine], range(3))
    run(theirs, None, [package], range(3))
    assert not torch.equal(mine, torch.ones_like(mine))
    torch.testing.assert_close(mine, package, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("amsbound", [False, True])
def test_without_bounds_it_is_torchs_adam(amsbound):
    mine, adams = parameters(), parameters()
    ours = AdaBound(mine, gamma=0.0, eps=0.0, weight_decay=0.1, amsbound=amsbound)
    adam = Adam(adams, lr=1e-3, eps=0.0, weight_decay=0.1, amsgrad=amsbound)
    run(ours, SCHEDULES["StepLR"](ours), mine, range(100))
    run(adam, SCHEDULES["StepLR"](adam), adams, range(100))
    for a, b in zip(mine, adams, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_package_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "adabound", None)  # importing it fails
    with pytest.raises(ImportError):
        importlib.import_module("adabound")
    spec = importlib.util.spec_from_file_location("fresh_adabound", module.__file__)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert fresh.AdaBound is not AdaBound


# -- by hand ---------------------------------------------------------------------------------------------------------


def moved(gradient: float, lr: float | None = None, **settings: object) -> float:
    """How far the first step of an AdaBound of `settings`, its group's rate set to `lr`, moves a weight at 1."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = AdaBound([weight], **settings)
    if lr is not None:
        optimizer.param_groups[0]["lr"] = lr
    weight.grad = torch.full_like(weight, gradient)
    optimizer.step()
    return 1 - weight.item()


def test_first_step_by_hand():
    # Gradient 2: m = 0.2, v = 0.004, and the rate 0.001 * sqrt(0.001) / 0.1 / sqrt(0.004) = 0.001 * 10 / 2 = 0.005 is
    # inside [0.1 * (1 - 1/1.001), 0.1 * (1 + 1000)] = [0.0000999, 100.1].
    assert moved(2.0) == pytest.approx(0.005 * 0.2, abs=1e-9)


def test_bounds_by_hand():
    # With gamma 1/2 and final_lr 0.3 the bounds of the first step are 0.3 / 3 = 0.1 and 0.3 * 3 = 0.9. The rate is
    # 0.01 / |g|, m is g / 10.
    bounds = {"gamma": 0.5, "final_lr": 0.3}
    assert moved(1.0, **bounds) == pytest.approx(0.1 * 0.1)  # the rate 0.01 is raised to 0.1
    assert moved(0.05, **bounds) == pytest.approx(0.2 * 0.005, rel=1e-5)  # 0.2 is between
    assert moved(1e-3, **bounds) == pytest.approx(0.9 * 1e-4)  # 10 is lowered to 0.9
    # A schedule that halves lr halves the bounds, and so every move.
    for gradient in (1.0, 0.05, 1e-3):
        assert moved(gradient, lr=5e-4, **bounds) == pytest.approx(moved(gradient, **bounds) / 2, rel=1e-12)


def test_nothing_moves_at_rate_0():
    assert moved(1.0, lr=0.0) == 0.0
    assert moved(1.0, final_lr=0.0) == 0.0
    assert AdaBound([nn.Parameter(torch.ones(1))], lr=0.0).param_groups[0]["base_lr"] == 0.0
    weight = nn.Parameter(torch.ones(1))
    still = {"lr": 0.0, "amsbound": True}
    optimizer = AdaBound([weight], **still)
    weight.grad = torch.ones(1)
    for _ in range(3):
        optimizer.step()
    state = optimizer.state[weight]
    assert weight.item() == 1.0
    assert state["step"] == 3 and state["exp_avg"].item() == pytest.approx(0.271)  # 1 - 0.9^3
    assert state["max_exp_avg_sq"].item() > 0


def test_from_base_lr_0_the_bounds_are_final_lrs_own():
    bounds = {"gamma": 0.5, "final_lr": 0.3}
    for gradient in (1.0, 0.05, 1e-3):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = AdaBound([weight], lr=0.0, **bounds)
        optimizer.param_groups[0]["lr"] = 1e-3
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        assert 1 - weight.item() == moved(gradient, **bounds)


def test_gradients_are_left_as_they_were_and_a_broken_weight_does_not_spoil_its_averages():
    weight = nn.Parameter(torch.tensor([1.0, math.inf]))
    optimizer = AdaBound([weight])
    weight.grad = torch.tensor([2.0, 2.0])
    optimizer.step()
    assert optimizer.state[weight]["exp_avg"].tolist() == pytest.approx([0.2, 0.2])
    optimizer.param_groups[0]["weight_decay"] = 0.5
    optimizer.step()
    assert weight.grad.tolist() == [2.0, 2.0]


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = AdaBound([weight])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert weight.item() < 3.0 and optimizer.step() is None


# -- its state -------------------------------------------------------------------------------------------------------


def _file(value: object) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("amsbound", [False, True])
@pytest.mark.parametrize("rebuilt_at", [0.01, 0.001, 0.0, 7.0])
def test_resumes_bitwise_under_a_schedule_whatever_rate_it_is_rebuilt_at(amsbound, rebuilt_at):
    def build(lr: float) -> tuple[list[nn.Parameter], AdaBound, StepLR]:
        params = parameters(torch.float32)
        optimizer = AdaBound([{"params": params[:2]}, {"params": params[2:], "lr": 2 * lr}], lr=lr, amsbound=amsbound)
        return params, optimizer, StepLR(optimizer, 3, gamma=0.1)

    straight, optimizer, schedule = build(0.01)
    run(optimizer, schedule, straight, range(5))
    state = [p.detach() for p in straight], optimizer.state_dict(), schedule.state_dict()
    saved = torch.load(_file(state), weights_only=True)
    run(optimizer, schedule, straight, range(5, 10))

    resumed, optimizer, schedule = build(rebuilt_at)
    for p, value in zip(resumed, saved[0], strict=True):
        p.data.copy_(value)
    optimizer.load_state_dict(saved[1])
    schedule.load_state_dict(saved[2])
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.01, 0.02]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    run(optimizer, schedule, resumed, range(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(resumed, straight, strict=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_go_on_alike(duplicate):
    params = parameters()
    optimizer = AdaBound(params, lr=0.01)
    run(optimizer, None, params, range(3))
    optimizer.param_groups[0]["lr"] = 0.001
    again = duplicate(optimizer)
    twins = again.param_groups[0]["params"]
    assert again.param_groups[0]["base_lr"] == 0.01
    run(optimizer, None, params, range(3, 6))
    run(again, None, twins, range(3, 6))
    assert all(torch.equal(a, b) and a is not b for a, b in zip(params, twins, strict=True))


def test_a_group_added_later_is_trained_with_a_base_lr_of_its_own():
    first, later, alone = parameters(), parameters(), parameters()
    optimizer = AdaBound(first, lr=0.01)
    run(optimizer, None, first, range(4))
    optimizer.param_groups[0]["lr"] = 0.001  # as a schedule would
    optimizer.add_param_group({"params": later, "lr": 0.004})
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.01, 0.004]
    run(optimizer, None, later, range(4))
    reference = adabound.AdaBound(alone, lr=0.004)
    run(reference, None, alone, range(4))
    for a, b in zip(later, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.001, "base_lr": 0.1})
    assert optimizer.param_groups[2]["base_lr"] == 0.1


def test_a_rate_that_is_a_tensor_does_not_drag_the_base_lr_along():
    weight = nn.Parameter(torch.ones(1))
    optimizer = AdaBound([weight], lr=torch.tensor(0.5))
    optimizer.param_groups[0]["lr"].fill_(0.25)
    assert optimizer.param_groups[0]["base_lr"] == 0.5


def test_the_packages_state_dict_needs_its_base_lr():
    package = parameters()
    theirs = adabound.AdaBound(package, lr=0.01)
    schedule = StepLR(theirs, 3, gamma=0.1)
    run(theirs, schedule, package, range(5))
    mine = parameters()
    for p, value in zip(mine, package, strict=True):
        p.data.copy_(value.detach())
    ours = AdaBound(mine, lr=0.001)
    state = copy.deepcopy(theirs.state_dict())  # loading shares tensors, in torch
    with pytest.raises(ValueError, match="group without base_lr"):
        ours.load_state_dict(state)
    assert ours.param_groups[0]["base_lr"] == 0.001 and not ours.state
    ours.load_state_dict({**state, "param_groups": [{**group, "base_lr": 0.01} for group in state["param_groups"]]})
    run(theirs, None, package, range(5, 50))
    run(ours, None, mine, range(5, 50))
    assert_alike(ours, theirs, 1e-12)


# -- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = [
    ({"lr": -1e-3}, "lr must be 0 or more and below inf, got -0.001"),
    ({"lr": math.nan}, "lr must"),
    ({"betas": (1.0, 0.999)}, "betas[0] must be 0 or more and below 1, got 1.0"),
    ({"betas": (0.9, -0.1)}, "betas[1] must"),
    ({"final_lr": -0.1}, "final_lr must"),
    ({"gamma": 1.0}, "gamma must be 0 or more and below 1, got 1.0"),
    ({"eps": -1e-8}, "eps must"),
    ({"weight_decay": -1e-4}, "weight_decay must"),
]


@pytest.mark.parametrize(("settings", "said"), MISTAKES)
def test_numbers_out_of_range_are_refused_in_one_line(settings, said):
    weight, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError) as caught:
        AdaBound([weight], **settings)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    optimizer = AdaBound([weight])
    with pytest.raises(ValueError, match="AdaBound's"):
        optimizer.add_param_group({"params": [other], **settings})
    assert len(optimizer.param_groups) == 1


def test_complex_parameters_are_refused():
    with pytest.raises(ValueError, match="complex"):
        AdaBound([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    optimizer = AdaBound([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="complex"):
        optimizer.add_param_group({"params": nn.Parameter(torch.ones(2, dtype=torch.complex64))})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused_before_anything_moves():
    dense, table = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 2))
    optimizer = AdaBound([{"params": [dense]}, {"params": [table]}])
    dense.grad = torch.ones(2)
    table.grad = torch.eye(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(2))


# -- operations and time ---------------------------------------------------------------------------------------------


def test_count_dispatched_on_what_one_can_count():
    x, many = torch.ones(3), [torch.ones(2) for _ in range(7)]
    assert count_dispatched(lambda: None) == 0
    assert count_dispatched(lambda: x + 1) == 1
    assert count_dispatched(lambda: (x + 1) * 2) == 2
    assert count_dispatched(lambda: [t.add_(1) for t in many]) == 7
    assert count_dispatched(lambda: torch._foreach_add_(many, 1)) == 1
    assert all(torch.equal(t, torch.full((2,), 3.0)) for t in many)  # both were done, once
    with pytest.raises(ZeroDivisionError):
        count_dispatched(lambda: 1 / 0)
    assert count_dispatched(lambda: x + 1) == 1


def with_grads(net: nn.Module) -> nn.Module:
    for p in net.parameters():
        p.grad = torch.full_like(p, 0.01)
    return net


@pytest.mark.parametrize(("settings", "most"), [({}, 10), ({"weight_decay": 5e-4, "amsbound": True}, 12)])
@pytest.mark.parametrize("spare", [False, True])
def test_a_step_is_at_most_fifteen_operations_whatever_the_number_of_tensors(settings, most, spare):
    # Eight or ten operations on lists, and the profiler's two marks. Groups that differ in weight decay share them.
    counts = []
    for net in (nn.Linear(2, 2), resnet20()):
        optimizer = AdaBound(param_groups(with_grads(net), spare_norm_and_bias=spare), **settings)
        first = count_dispatched(optimizer.step)  # makes the state
        assert first <= 15 + 2 * spare
        counts.append(count_dispatched(optimizer.step))
    assert counts[0] == counts[1] <= most <= 15
    if not spare:
        theirs = adabound.AdaBound(with_grads(resnet20()).parameters(), **settings)
        quiet_step(theirs)
        assert count_dispatched(lambda: quiet_step(theirs)) >= 14 * 65  # its 65 tensors


@pytest.mark.gpu
def test_a_step_reads_nothing_back_from_the_gpu():
    net = with_grads(resnet20().cuda())
    optimizer = AdaBound(param_groups(net, spare_norm_and_bias=True), weight_decay=5e-4, amsbound=True)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
