"""Geometry, colour, perspective and the policies, against torchvision image by image; and where draws come from."""

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Generator, Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from smallnets.data import policies
from smallnets.data.augment import REGISTRY, apply_all, parse
from smallnets.data.colour import BLENDS, TABLES, look_up
from smallnets.data.draws import host_generator
from smallnets.data.geometry import MATRICES, affine
from smallnets.data.perspective import draw_corners, homographies, warp
from smallnets.data.policies import draw_autoaugment, draw_randaugment, draw_trivialaugment, operate
from smallnets.data.policy_tables import AUTO, AUTOAUGMENT, OPERATIONS, RAND, WIDE, Space, autoaugment_policy
from smallnets.errors import UserError

PUBLISHED = {
    "cifar10": v2.AutoAugmentPolicy.CIFAR10,
    "imagenet": v2.AutoAugmentPolicy.IMAGENET,
    "svhn": v2.AutoAugmentPolicy.SVHN,
}
# How often a test of frequencies may fail for a sound sampler: its seed is fixed, so it either does or does not.
FALSE_ALARM = 1e-6


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pictures(count: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """Noise of a random range for each image and channel, so that stretching and equalizing have something to do."""
    one = generator(7)
    low, high = torch.rand(2, count, channels, 1, 1, generator=one).sort(0).values
    values = low + (high - low) * torch.rand(count, channels, height, width, generator=one)
    return (values * 255.99).to(torch.uint8)


def by_torchvision(image: Tensor, name: str, magnitude: float) -> Tensor:
    """One operation on one image by torchvision's functions, called as its AutoAugment calls them."""
    slope, whole, factor = math.degrees(math.atan(magnitude)), int(magnitude), 1.0 + magnitude
    still: dict[str, Any] = {"angle": 0.0, "scale": 1.0}
    calls = {
        "Identity": lambda: image,
        "ShearX": lambda: reference.affine(image, translate=[0, 0], shear=[slope, 0.0], center=[0, 0], **still),
        "ShearY": lambda: reference.affine(image, translate=[0, 0], shear=[0.0, slope], center=[0, 0], **still),
        "TranslateX": lambda: reference.affine(image, translate=[whole, 0], shear=[0.0, 0.0], **still),
        "TranslateY": lambda: reference.affine(image, translate=[0, whole], shear=[0.0, 0.0], **still),
        "Rotate": lambda: reference.rotate(image, magnitude),
        "Brightness": lambda: reference.adjust_brightness(image, factor),
        "Color": lambda: reference.adjust_saturation(image, factor),
        "Contrast": lambda: reference.adjust_contrast(image, factor),
        "Sharpness": lambda: reference.adjust_sharpness(image, factor),
        "Posterize": lambda: reference.posterize(image, whole),
        "Solarize": lambda: reference.solarize(image, 255.0 * magnitude),
        "AutoContrast": lambda: reference.autocontrast(image),
        "Equalize": lambda: reference.equalize(image),
        "Invert": lambda: reference.invert(image),
    }
    return calls[name]()


def every_magnitude(name: str, height: int, width: int) -> Tensor:
    rows = [space.at(height, width)[OPERATIONS.index(name)] for space in (AUTO, RAND, WIDE)]
    return torch.cat(rows if name in ("Posterize", "Solarize") else [sign * row for row in rows for sign in (1, -1)])


# -- each operation against torchvision -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_equals_torchvision(name: str, channels: int) -> None:
    amounts = every_magnitude(name, 32, 32)
    images = pictures(len(amounts), channels)
    before = images.clone()
    result = operate(images, torch.full((len(amounts),), OPERATIONS.index(name)), amounts)
    expected = [by_torchvision(i, name, a) for i, a in zip(images, amounts.tolist(), strict=True)]
    assert torch.equal(result, torch.stack(expected))
    assert torch.equal(images, before)
    if name != "Identity" and not (name == "Color" and channels == 1):
        assert not torch.equal(result, images)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 40), (33, 33), (9, 15), (2, 7), (1, 1)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_at_other_sizes(name: str, height: int, width: int) -> None:
    """Equal, but for pixels from the exact middle between two, where a shear may round either way: at most 1 in 50."""
    amounts = every_magnitude(name, height, width)
    images = pictures(len(amounts), 3, height, width)
    result = operate(images, torch.full((len(amounts),), OPERATIONS.index(name)), amounts)
    expected = torch.stack([by_torchvision(i, name, a) for i, a in zip(images, amounts.tolist(), strict=True)])
    if name in MATRICES:
        assert (result != expected).float().mean() <= 0.02
    else:
        assert torch.equal(result, expected)


def test_values_that_can_be_worked_out_in_the_head() -> None:
    image = torch.tensor([[[[0, 10], [100, 200]]]], dtype=torch.uint8)

    def values(name: str, amount: float) -> list[int]:
        return look_up(image, TABLES[name](image, torch.tensor([amount]))).flatten().tolist()

    assert values("Invert", 0) == [255, 245, 155, 55]
    assert values("Brightness", 0.5) == [0, 15, 150, 255]
    assert values("Brightness", -0.5) == [0, 5, 50, 100]
    assert values("Posterize", 2) == [0, 0, 64, 192]
    assert values("Solarize", 100 / 255) == [0, 10, 155, 55]
    assert values("Contrast", -1) == [77] * 4  # their mean is 77.5
    assert values("AutoContrast", 0) == [0, 12, 127, 254]  # x 255 / 200 in float32, just below 255, cut off
    assert values("Equalize", 0) == [0, 10, 100, 200]  # fewer than 255 pixels: no step
    ramp = torch.arange(256, dtype=torch.uint8).repeat(4).view(1, 1, 32, 32) // 2  # 0 .. 127, eight of each
    spread = look_up(ramp, TABLES["Equalize"](ramp, torch.zeros(1)))
    assert spread[ramp == 1].unique().tolist() == [3]  # step (1024 - 8) // 255 = 3; (8 + 1) // 3
    assert spread[ramp == 64].unique().tolist() == [171]  # (512 + 1) // 3


def test_moves_that_can_be_worked_out_in_the_head() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)

    def moved(name: str, amount: float) -> list[list[int]]:
        matrices = MATRICES[name](torch.tensor([amount], dtype=torch.float64), 3, 3)
        return affine(image, matrices)[0, 0].tolist()

    assert moved("TranslateX", 1.9) == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]
    assert moved("TranslateY", -1) == [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    assert moved("Rotate", 90) == [[3, 6, 9], [2, 5, 8], [1, 4, 7]]  # counterclockwise
    assert moved("Rotate", 180) == [[9, 8, 7], [6, 5, 4], [3, 2, 1]]
    assert moved("ShearX", 0.9) == [[1, 2, 3], [5, 6, 0], [9, 0, 0]]  # rows move by .45, 1.35, 2.25
    assert moved("ShearY", -0.9) == [[1, 0, 0], [4, 2, 0], [7, 5, 3]]


# -- perspective ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (33, 24)])
@pytest.mark.parametrize("channels", [1, 3])
def test_perspective_equals_torchvision(channels: int, height: int, width: int) -> None:
    """At most one level, in one pixel of a thousand: torchvision solves for the homography by least squares."""
    count = 100
    images = pictures(count, channels, height, width)
    _, corners = draw_corners(count, height, width, 0.6, 1, generator(1))
    start = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    expected = torch.stack(
        [reference.perspective(i, start, c, fill=0) for i, c in zip(images, corners.tolist(), strict=True)]
    )
    difference = (warp(images, homographies(corners, height, width)).int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 0.001


def test_homographies_take_the_corners_home() -> None:
    corners = torch.tensor([[[0, 0], [31, 0], [31, 15], [0, 15]], [[3, 1], [28, 2], [25, 14], [6, 9]]])
    a, b, c, d, e, f, g, h = homographies(corners, 16, 32).unsqueeze(2).unbind(1)
    x, y = corners.double().unbind(2)
    depth = g * x + h * y + 1
    home = torch.tensor([[0, 31, 31, 0], [0, 0, 15, 15]], dtype=torch.float64).expand(2, 2, 4).transpose(0, 1)
    found = torch.stack([(a * x + b * y + c) / depth, (d * x + e * y + f) / depth])
    torch.testing.assert_close(found, home, rtol=0, atol=1e-9)
    assert homographies(corners, 16, 32)[0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]
    on_a_line = torch.tensor([[[0, 0], [1, 1], [2, 2], [0, 5]]])
    assert homographies(on_a_line, 6, 6)[0].tolist() == [1, 0, 0, 0, 1, 0, 0, 0]


def test_perspective_draws_corners_as_torchvision_does() -> None:
    chosen, corners = draw_corners(20_000, 32, 24, 0.6, 0.3, generator(2))
    # 6 standard deviations of a count are exceeded by chance once in 5e8.
    assert abs(int(chosen.sum()) - 6000) < 6 * math.sqrt(20_000 * 0.3 * 0.7)
    across, down = int(0.6 * 12) + 1, int(0.6 * 16) + 1  # v2.RandomPerspective.make_params
    ends = [(0, 0), (24 - across, 0), (24 - across, 32 - down), (0, 32 - down)]
    for corner, (left, top) in enumerate(ends):
        for axis, (first, size) in enumerate([(left, across), (top, down)]):
            values = corners[:, corner, axis]
            assert_frequencies(Counter(values.tolist()), {first + i: 1 / size for i in range(size)}, 20_000)
    images = pictures(64, 3, 16, 16)
    [one] = parse([{"perspective": {"p": 0.5}}])
    chosen, corners = draw_corners(64, 16, 16, 0.5, 0.5, generator(3))
    expected = torch.where(chosen.view(-1, 1, 1, 1), warp(images, homographies(corners, 16, 16)), images)
    assert torch.equal(one.apply(images, generator(3)), expected)
    assert torch.equal(parse([{"perspective": {"p": 0}}])[0].apply(images, generator()), images)


# -- the policies' numbers and draws --------------------------------------------------------------------------------


def assert_frequencies(counts: Counter[Any], expected: dict[Any, float], total: int) -> None:
    """Chi-square over all outcomes; nothing outside them."""
    expected = {outcome: share for outcome, share in expected.items() if share > 0}
    assert set(counts) <= set(expected)
    assert math.isclose(sum(expected.values()), 1, abs_tol=1e-9)
    statistic = sum((counts[k] - total * p) ** 2 / (total * p) for k, p in expected.items())
    assert statistic < chi2.isf(FALSE_ALARM, len(expected) - 1)


def published_magnitudes(transform: type, name: str, bins: int, height: int, width: int) -> tuple[list[float], bool]:
    rule, signed = transform._AUGMENTATION_SPACE[name]  # type: ignore[attr-defined]
    values = rule(bins, height, width)
    return ([0.0] * bins if values is None else [float(v) for v in values]), signed


@pytest.mark.parametrize("size", [(32, 32), (28, 40)])
@pytest.mark.parametrize(
    ("space", "transform"), [(AUTO, v2.AutoAugment), (RAND, v2.RandAugment), (WIDE, v2.TrivialAugmentWide)]
)
def test_magnitudes_are_torchvisions(space: Space, transform: type, size: tuple[int, int]) -> None:
    names = transform._AUGMENTATION_SPACE  # type: ignore[attr-defined]
    assert set(names) | {"Identity", "Invert"} == set(OPERATIONS)
    for name in names:
        values, signed = published_magnitudes(transform, name, space.bins, *size)
        assert space.at(*size)[OPERATIONS.index(name)].tolist() == values
        low = policies.signs(torch.tensor([OPERATIONS.index(name)]), torch.tensor([0.49]))
        assert low.tolist() == [-1.0 if signed else 1.0]


@pytest.mark.parametrize("name", AUTOAUGMENT)
def test_policies_are_torchvisions(name: str) -> None:
    mine = autoaugment_policy(name)
    theirs = v2.AutoAugment(PUBLISHED[name])._get_policies(PUBLISHED[name])
    assert len(mine.operations) == len(theirs) == 25
    for row, pair in enumerate(theirs):
        for step, (operation, chance, magnitude) in enumerate(pair):
            assert OPERATIONS[mine.operations[row, step]] == operation
            assert mine.chances[row, step] == torch.tensor(chance)
            assert mine.bins[row, step] == (magnitude or 0)


def outcomes(draws: tuple[Tensor, Tensor]) -> Counter[Any]:
    """How often each (operation, magnitude) of all steps together was drawn."""
    operations, amounts = draws
    assert operations.device.type == amounts.device.type == "cpu"
    return Counter(
        tuple(zip([OPERATIONS[i] for i in ops], values, strict=True))
        for ops, values in zip(operations.T.tolist(), amounts.T.tolist(), strict=True)
    )


def two_ways(name: str, value: float, signed: bool, share: float) -> dict[Any, float]:
    either: dict[Any, float] = defaultdict(float)
    for sign in (1, -1) if signed else (1, 1):
        either[name, sign * value] += share / 2
    return either


@pytest.mark.parametrize("name", AUTOAUGMENT)
def test_autoaugment_draws_in_distribution(name: str) -> None:
    """Both steps with their signs, jointly, against what torchvision's table and magnitudes imply."""
    total = 100_000
    expected: dict[Any, float] = defaultdict(float)
    for pair in v2.AutoAugment(PUBLISHED[name])._get_policies(PUBLISHED[name]):
        steps = []
        for operation, chance, magnitude in pair:
            values, signed = published_magnitudes(v2.AutoAugment, operation, 10, 32, 32)
            step = two_ways(operation, values[magnitude or 0], signed, chance)
            step["Identity", 0.0] += 1 - chance
            steps.append(step)
        for first, a in steps[0].items():
            for second, b in steps[1].items():
                expected[first, second] += a * b / 25
    drawn = outcomes(draw_autoaugment(autoaugment_policy(name), total, 32, 32, generator(4)))
    assert_frequencies(drawn, expected, total)


@pytest.mark.parametrize(
    ("space", "transform", "bins"), [(RAND, v2.RandAugment, [9]), (WIDE, v2.TrivialAugmentWide, range(31))]
)
def test_randaugment_and_trivialaugment_draw_in_distribution(space: Space, transform: type, bins: list[int]) -> None:
    total = 100_000
    one: dict[Any, float] = defaultdict(float)
    expected: dict[Any, float]
    names = transform._AUGMENTATION_SPACE  # type: ignore[attr-defined]
    for name in names:
        values, signed = published_magnitudes(transform, name, 31, 32, 32)
        for index in bins:
            for outcome, share in two_ways(name, values[index], signed, 1 / len(names) / len(bins)).items():
                one[outcome] += share
    if space is WIDE:
        expected = {(k,): p for k, p in one.items()}
        drawn = outcomes(draw_trivialaugment(total, 32, 32, generator(5)))
    else:
        expected = {(a, b): p * q for a, p in one.items() for b, q in one.items()}
        drawn = outcomes(draw_randaugment(2, 9, total, 32, 32, generator(5)))
    assert_frequencies(drawn, expected, total)


def test_three_operations_of_randaugment() -> None:
    operations, amounts = draw_randaugment(3, 30, 50, 32, 32, generator(6))
    assert operations.shape == amounts.shape == (3, 50)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 60])
@pytest.mark.parametrize("name", ["autoaugment", "randaugment", "trivialaugment"])
def test_a_policy_does_what_it_drew_in_order(name: str, count: int, channels: int) -> None:
    images = pictures(count, channels)
    draws = {
        "autoaugment": lambda: draw_autoaugment(autoaugment_policy("cifar10"), count, 32, 32, generator(8)),
        "randaugment": lambda: draw_randaugment(2, 9, count, 32, 32, generator(8)),
        "trivialaugment": lambda: draw_trivialaugment(count, 32, 32, generator(8)),
    }
    operations, amounts = draws[name]()
    expected = list(images)
    for step in range(len(operations)):
        names = [OPERATIONS[i] for i in operations[step]]
        each = zip(expected, names, amounts[step].tolist(), strict=True)
        expected = [by_torchvision(image, operation, amount) for image, operation, amount in each]
    assert torch.equal(REGISTRY[name]()(images, generator(8)), torch.stack(expected))


def test_policies_take_one_channel_or_three() -> None:
    with pytest.raises(UserError, match="images of 1 or 3 channels, not 4"):
        REGISTRY["randaugment"]()(pictures(2, 4), generator())


@pytest.mark.parametrize("name", [*TABLES, *BLENDS])
def test_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    images = pictures(6)
    operations, amounts = torch.full((6,), OPERATIONS.index(name)), torch.linspace(0.1, 0.9, 6)
    together = operate(images, operations, amounts)
    alone = [operate(images[i : i + 1], operations[i : i + 1], amounts[i : i + 1]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))


# -- where draws come from ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["autoaugment", "randaugment", "trivialaugment", "perspective"])
def test_a_chain_shares_no_draws(name: str) -> None:
    images = pictures(1).repeat(64, 1, 1, 1)
    named = parse([name, name])
    one = generator(9)
    first, second = named[0].apply(images, one), named[1].apply(images, one)
    assert not torch.equal(first, second)
    one = generator(9)
    by_hand = named[1].apply(named[0].apply(images, one), one)
    assert torch.equal(apply_all(named, images, generator(9)), by_hand)


def test_the_hosts_generator_is_the_given_one() -> None:
    one = generator(10)
    assert host_generator(one) is one


@pytest.mark.gpu
def test_a_gpus_generator_gives_the_host_one_of_its_own() -> None:
    def two(seed: int) -> list[Tensor]:
        one = Generator("cuda").manual_seed(seed)
        return [torch.rand(5, generator=host_generator(one)) for _ in range(2)]

    first, second = two(3)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(two(3), [first, second], strict=True))
    assert not torch.equal(two(4)[0], first)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("name", REGISTRY)
def test_nothing_waits_for_the_gpu(name: str) -> None:
    images = pictures(64).cuda()
    [named] = parse([name], [1, 2, 3])
    first = named.apply(images, Generator("cuda").manual_seed(1))
    one = Generator("cuda").manual_seed(1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = named.apply(images, one)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert second.device == images.device
    assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_on_a_gpu_are_those_of_the_cpu(name: str) -> None:
    """Blends at most one level, in at most one pixel of a hundred; geometry in all but one pixel of a hundred."""
    amounts = every_magnitude(name, 32, 32)
    images = pictures(len(amounts))
    operations = torch.full((len(amounts),), OPERATIONS.index(name))
    difference = (operate(images.cuda(), operations, amounts).cpu().int() - operate(images, operations, amounts)).abs()
    assert (difference > 0).float().mean() <= 0.01
    if name not in MATRICES:
        assert np.asarray(difference).max() <= 1
