"""mixup, CutMix and distillation."""

import math

import pytest
import torch

from smallnets.errors import UserError
from smallnets.training.distill import distillation_loss
from smallnets.training.mixing import _beta, cutmix, mixup

N, CLASSES = 16, 10
LABELS = torch.arange(N) % CLASSES


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def constant_images(size: int = 8) -> torch.Tensor:
    """Image i has the value i everywhere, so that what came from where can be read off."""
    return torch.arange(N, dtype=torch.float64).view(N, 1, 1, 1).expand(N, 3, size, size).contiguous()


@pytest.mark.parametrize("method", [mixup, cutmix])
def test_deterministic_and_drawn_from_the_generator_alone(method):
    images = constant_images()
    before = torch.random.get_rng_state()
    first = method(images, LABELS, 1.0, generator(3), CLASSES)
    torch.rand(1)  # the global generator has no say
    second = method(images, LABELS, 1.0, generator(3), CLASSES)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], method(images, LABELS, 1.0, generator(4), CLASSES)[0])
    torch.random.set_rng_state(before)
    method(images, LABELS, 1.0, generator(3), CLASSES)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("method", [mixup, cutmix])
@pytest.mark.parametrize("alpha", [1e-4, 0.2, 1.0, 1e4])
def test_label_mass_and_class_numbers_as_shares(method, alpha):
    images = constant_images()
    mixed, targets = method(images, LABELS, alpha, generator(), CLASSES)
    assert targets.shape == (N, CLASSES) and targets.dtype == images.dtype
    assert mixed.shape == images.shape and mixed.isfinite().all()
    torch.testing.assert_close(targets.sum(1), torch.ones(N, dtype=torch.float64))
    shares = torch.nn.functional.one_hot(LABELS, CLASSES).double()
    same = method(images, shares, alpha, generator())
    assert torch.equal(mixed, same[0]) and torch.equal(targets, same[1])


def test_mixup_mixes_images_and_targets_by_the_same_share():
    images, own = constant_images(), torch.eye(N, dtype=torch.float64)
    mixed, targets = mixup(images, own, 1.0, generator())
    # With one class an image, the target's shares say who was mixed, and how much: the value is their mean.
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets @ torch.arange(N, dtype=torch.float64))
    assert torch.equal(mixed, mixed[:, :1, :1, :1].expand_as(mixed))
    # Partners are a permutation: each row has its own and one partner's share, each image is a partner once.
    assert ((targets > 0).sum(0) <= 2).all() and ((targets > 0).sum(1) <= 2).all()
    own_share = targets.diagonal()
    assert len(own_share.unique()) > N // 2  # a share for each image, not one for the batch


def test_tiny_alpha_keeps_or_exchanges_and_huge_alpha_averages():
    images, own = constant_images(), torch.eye(N, dtype=torch.float64)
    for alpha in (1e-3, 1e-6):
        _, targets = mixup(images, own, alpha, generator())
        assert (targets.round() - targets).abs().max() < 1e-6
    _, targets = mixup(images, own, 1e9, generator())
    off = targets[(targets > 0) & (targets < 1)]
    torch.testing.assert_close(off, torch.full_like(off, 0.5), atol=1e-3, rtol=0)
    # CutMix at share 1/2: a box of floor(8 sqrt(1/2)) = 5 pixels, cut at the border.
    mixed, _ = cutmix(images, own, 1e9, generator())
    pasted = (mixed != images)[:, 0].sum((1, 2))
    assert pasted.max() <= 25


def test_cutmix_share_is_the_pasted_area_exactly():
    images, own = constant_images(size=8), torch.eye(N, dtype=torch.float64)
    mixed, targets = cutmix(images, own, 1.0, generator(5))
    checked = 0
    for i in range(N):
        foreign = mixed[i, 0] != i
        assert (1 - foreign.sum() / 64) == targets[i, i]
        rows, columns = foreign.any(1).nonzero().flatten(), foreign.any(0).nonzero().flatten()
        if len(rows):
            checked += 1
            # One rectangle, of one partner, in all channels.
            assert foreign.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            partner = mixed[i, 0][foreign].unique()
            assert len(partner) == 1 and targets[i, int(partner)] == foreign.sum() / 64
            assert torch.equal(mixed[i, 0], mixed[i, 2])
    assert checked > N // 2


def test_cutmix_takes_bytes():
    images = constant_images().to(torch.uint8)
    mixed, targets = cutmix(images, LABELS, 1.0, generator(), CLASSES)
    assert mixed.dtype == torch.uint8 and targets.dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)), and as many draws below five quantiles as torch's own Beta has.

    Each of the seven comparisons allows 5 standard errors: a false alarm in some 2e6 (the draws are seeded, so that
    the test passes always or never).
    """
    n = 20_000
    lam = _beta(alpha, n, generator(11))
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(lam.mean() - 0.5) < 5 * math.sqrt(variance / n)
    kurtosis = 3 - 6 / (2 * alpha + 3)
    assert abs(((lam - 0.5) ** 2).mean() - variance) < 5 * variance * math.sqrt((kurtosis - 1) / n)
    both = torch.full((2,), alpha, dtype=torch.float64)
    torch.manual_seed(12)
    reference = torch.distributions.Beta(both[0], both[1]).sample((n,))
    for point in reference.quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)):
        p = float((reference <= point).double().mean())
        assert abs(float((lam <= point).double().mean()) - p) < 5 * math.sqrt(2 * p * (1 - p) / n)


def test_wrong_arguments():
    images = constant_images()
    for alpha in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="alpha must be above 0"):
            mixup(images, LABELS, alpha, generator(), CLASSES)
    with pytest.raises(UserError, match="num_classes"):
        cutmix(images, LABELS, 1.0, generator())


# -- distillation ----------------------------------------------------------------------------------------------------


def reference_loss(student, teacher, shares, temperature, weight, smoothing) -> float:
    """By the formulas, in Python floats."""

    def softmax(row, t):
        exps = [math.exp(v / t) for v in row]
        return [e / sum(exps) for e in exps]

    total = 0.0
    for s, q, y in zip(student.tolist(), teacher.tolist(), shares.tolist(), strict=True):
        classes = len(s)
        hard = -sum(
            (a * (1 - smoothing) + smoothing / classes) * math.log(p) for a, p in zip(y, softmax(s, 1), strict=True)
        )
        pairs = zip(softmax(q, temperature), softmax(s, temperature), strict=True)
        total += (1 - weight) * hard + weight * temperature**2 * sum(a * math.log(a / b) for a, b in pairs)
    return total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_distillation_against_the_formulas(temperature, weight, smoothing):
    g = generator(1)
    student, teacher = (3 * torch.randn(5, 4, generator=g, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 0])
    shares = torch.nn.functional.one_hot(labels, 4).double()
    mixed = 0.7 * shares + 0.3 * shares.flip(0)
    for targets, as_shares in ((labels, shares), (shares, shares), (mixed, mixed)):
        got = distillation_loss(student, teacher, targets, temperature, weight, smoothing)
        expected = reference_loss(student, teacher, as_shares, temperature, weight, smoothing)
        assert got.item() == pytest.approx(expected, rel=1e-12)


def test_distillation_by_hand():
    # Teacher (1/2, 1/2), student (3/4, 1/4): KL = 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3).
    student = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    teacher = torch.zeros(1, 2, dtype=torch.float64)
    loss = distillation_loss(student, teacher, torch.tensor([0]), 1.0, 1.0, 0.0)
    assert loss.item() == pytest.approx(0.5 * math.log(4 / 3))
    assert distillation_loss(student, student, torch.tensor([0]), 4.0, 1.0).item() == pytest.approx(0, abs=1e-15)


def test_gradients_stop_at_the_teacher_and_keep_their_size():
    student = torch.randn(8, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(8, 5, generator=generator(2), dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(8, dtype=torch.int64)
    sizes = []
    for temperature in (50.0, 100.0):
        (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, labels, temperature, 1.0), student)
        sizes.append(gradient.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    distillation_loss(student, teacher, labels, 4.0, 0.5).backward()
    assert student.grad is not None and teacher.grad is None


def test_distillation_wrong_arguments():
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match="temperature must be above 0, got 0"):
        distillation_loss(logits, logits, labels, 0, 0.5)
    with pytest.raises(UserError, match=r"0..1, got 1.5"):
        distillation_loss(logits, logits, labels, 1, 1.5)
    with pytest.raises(UserError, match="same classes"):
        distillation_loss(logits, torch.zeros(2, 4), labels, 1, 0.5)
