"""Augmentations as functions of (images, generator), each image with its own parameters; and the config's list."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from smallnets.data.augment import REGISTRY, apply_all, normalise, parse
from smallnets.data.batched import Transform, crop, cutout, erase, flip
from smallnets.errors import UserError


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pictures(count: int = 64, channels: int = 3, size: int = 8) -> Tensor:
    shape = (count, channels, size, size)
    return torch.randint(1, 256, shape, generator=generator(99), dtype=torch.uint8)


def copies(count: int = 64, channels: int = 3, size: int = 8) -> Tensor:
    return pictures(1, channels, size).repeat(count, 1, 1, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", REGISTRY)
def test_every_augmentation_keeps_the_laws(name: str, channels: int) -> None:
    """Shape and type stay; a function of the generator alone, which no global generator moves or sees moved."""
    [named] = parse([name])
    images = copies(32, channels, 16)
    before = images.clone()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    first = named.apply(images, generator(5))
    undisturbed = torch.rand(3)
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(2)
    assert torch.equal(named.apply(images, generator(5)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), undisturbed)
    assert first.shape == images.shape
    assert first.dtype == torch.uint8
    assert torch.equal(images, before)
    assert not torch.equal(named.apply(images, generator(6)), first)
    # Copies of one image get parameters of their own.
    assert len({picture.numpy().tobytes() for picture in first}) > 1


def test_flip_mirrors_whole_images_or_not() -> None:
    images = pictures(400)
    flipped = flip()(images, generator())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 150 < sum(mirrored) < 250
    assert torch.equal(flip(p=0)(images, generator()), images)
    assert torch.equal(flip(p=1)(images, generator()), images.flip(-1))


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_every_crop_is_a_cut_of_the_padded_image(mode: str) -> None:
    images = copies(300, size=6)
    pad = {"zero": {"mode": "constant"}, "reflect": {"mode": "reflect"}}[mode]
    padded = np.pad(images[0].numpy(), ((0, 0), (2, 2), (2, 2)), **pad)  # type: ignore[call-overload]
    possible = {padded[:, i : i + 6, j : j + 6].tobytes(): (i, j) for i in range(5) for j in range(5)}
    cuts = [possible[cut.numpy().tobytes()] for cut in crop(2, mode)(images, generator())]
    assert len(possible) == 25
    assert set(cuts) == set(possible.values())  # each of the 25 places is drawn
    assert torch.equal(crop(0)(images, generator()), images)


@pytest.mark.parametrize("one", [flip(), crop(3), crop(3, "reflect"), erase(), cutout(4)])
def test_any_size_and_any_memory_format(one: Transform) -> None:
    images = torch.randint(256, (20, 3, 5, 9), generator=generator(1), dtype=torch.uint8)
    result = one(images, generator(2))
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(one(channels_last, generator(2)), result)
    assert one(images[:1], generator(2)).shape == (1, 3, 5, 9)


def test_cutout_covers_one_square_that_edges_may_cut() -> None:
    images = torch.full((500, 3, 8, 8), 7, dtype=torch.uint8)
    covered = cutout(4, fill=[1, 2, 3])(images, generator())
    areas = set()
    for picture in covered:
        mask = picture[0] != 7
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert mask.sum() == len(rows) * len(columns)  # a rectangle
        assert int(rows[-1] - rows[0]) < 4
        assert picture[:, mask].unique(dim=1).flatten().tolist() == [1, 2, 3]
        areas.add(int(mask.sum()))
    # The middle lies anywhere: 2, 3 or 4 rows of the square are inside.
    assert areas == {4, 6, 8, 9, 12, 16}


def test_erase_covers_rectangles_within_its_bounds() -> None:
    images = torch.full((2000, 1, 32, 32), 7, dtype=torch.uint8)
    covered = erase(fill=200)(images, generator())
    hit = 0
    for picture in covered:
        mask = picture[0] == 200
        if not mask.any():
            continue
        hit += 1
        tall, wide = int(mask.any(1).sum()), int(mask.any(0).sum())
        assert mask.sum() == tall * wide
        assert 0.015 < tall * wide / 1024 < 0.43  # 0.02 .. 0.4, sides rounded to pixels
        assert 0.2 < tall / wide < 5  # 0.3 .. 3.33, likewise
    assert 900 < hit < 1100
    assert torch.equal(erase(p=0)(images, generator()), images)
    noise = erase(p=1)(images, generator())
    values = noise[noise != 7]
    assert len(values.unique()) == 255
    assert abs(values.double().mean() - 127.5) < 2


def test_normalise_against_float64() -> None:
    images = pictures(5)
    mean, std = [0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]
    expected = (images.numpy() / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, rtol=0, atol=1e-6)
    assert torch.equal(normalise(images, torch.tensor(mean), torch.tensor(std)), result)
    assert normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), [0.5], [0.5]).flatten().tolist() == [-1, 1]


def test_parse_keeps_order_and_parameters() -> None:
    specs: list[Any] = ["flip", {"crop": {"padding": 2}}, {"perspective": None}, "flip"]
    named = parse(specs)
    assert [n.name for n in named] == ["flip", "crop", "perspective", "flip"]
    assert [n.parameters for n in named] == [{}, {"padding": 2}, {}, {}]
    assert parse([]) == []
    images = pictures(16)
    one = generator(3)
    by_hand = crop(2)(flip()(images, one), one)
    assert torch.equal(apply_all(named[:2], images, generator(3)), by_hand)


def test_cutout_covers_with_the_mean_pixel_unless_told() -> None:
    images = torch.full((1, 3, 4, 4), 9, dtype=torch.uint8)

    def cover(specs: Any) -> list[int]:
        return apply_all(parse(specs, [10, 20, 30]), images, generator())[0, :, 2, 2].tolist()

    assert cover([{"cutout": {"size": 9}}]) == [10, 20, 30]
    assert cover([{"cutout": {"size": 9, "fill": 0}}]) == [0, 0, 0]


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["flop"], r"there is no 'flop'; did you mean flip.*\nallowed: flip, crop, cutout"),
        ([{"flip": {"q": 1}}], "flip has no parameter 'q'; allowed: p"),
        ([{"trivialaugment": {"p": 1}}], "trivialaugment has no parameter 'p'; it takes none"),
        ([{"flip": {"p": 2}}], r"flip.p is a share in \[0, 1\], not 2"),
        ([{"flip": {"p": "a"}}], r"flip.p is a share in \[0, 1\], not 'a'"),
        ([{"crop": {"padding": -1}}], "crop.padding is an integer of 0 or more, not -1"),
        ([{"crop": {"mode": "wrap"}}], "crop.mode is one of zero, reflect, not 'wrap'"),
        ([{"cutout": {"fill": 256}}], "cutout.fill is one integer in 0 .. 255.* not 256"),
        ([{"erase": {"area": [0.5, 0.1]}}], "erase.area is two shares"),
        ([{"erase": {"aspect": 0}}], "erase.aspect"),
        ([{"erase": {"fill": "white"}}], "erase.fill"),
        ([{"randaugment": {"magnitude": 31}}], "0 .. 30, not 31"),
        ([{"autoaugment": {"policy": "mnist"}}], "one of cifar10, imagenet, svhn, not 'mnist'"),
        ("flip", r"is a list, as \[flip\], not 'flip'"),
        ([3], "an entry is a name or .* not 3"),
    ],
)
def test_mistakes_are_named(specs: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(specs)


def test_fills_and_reflections_that_do_not_fit_the_images() -> None:
    with pytest.raises(UserError, match="a fill of 2 values for images of 3 channels"):
        cutout(2, fill=[1, 2])(pictures(2), generator())
    with pytest.raises(UserError, match=r"crop.padding=8 cannot be reflected in images of 8 x 8"):
        crop(8, "reflect")(pictures(2), generator())
