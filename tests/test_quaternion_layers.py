"""The quaternion layers, against quaternions multiplied one by one with i j = k, j k = i, k i = j."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers import AppendGray, QuaternionBatchNorm2d, QuaternionConv2d, QuaternionLinear
from smallnets.layers.quaternion_blocks import QuaternionPadShortcut, join
from smallnets.layers.quaternion_init import INITS

# Product of two units: (which unit, sign). Written from i^2 = j^2 = k^2 = -1, ij = k, jk = i, ki = j, ji = -k, ...
UNITS = {
    ("1", "1"): ("1", 1), ("1", "i"): ("i", 1), ("1", "j"): ("j", 1), ("1", "k"): ("k", 1),
    ("i", "1"): ("i", 1), ("i", "i"): ("1", -1), ("i", "j"): ("k", 1), ("i", "k"): ("j", -1),
    ("j", "1"): ("j", 1), ("j", "i"): ("k", -1), ("j", "j"): ("1", -1), ("j", "k"): ("i", 1),
    ("k", "1"): ("k", 1), ("k", "i"): ("j", 1), ("k", "j"): ("i", -1), ("k", "k"): ("1", -1),
}  # fmt: skip


def product(w: dict[str, Tensor], x: dict[str, Tensor], times) -> dict[str, Tensor]:
    """w x, where `times` multiplies two components."""
    out: dict[str, Tensor] = {}
    for a in "1ijk":
        for b in "1ijk":
            unit, sign = UNITS[a, b]
            out[unit] = out.get(unit, 0) + sign * times(w[a], x[b])
    return out


def parts(tensor: Tensor, dim: int) -> dict[str, Tensor]:
    return dict(zip("1ijk", tensor.chunk(4, dim), strict=True))


def whole(of: dict[str, Tensor], dim: int) -> Tensor:
    return torch.cat([of[unit] for unit in "1ijk"], dim)


def test_one_quaternion_times_one_quaternion_in_numbers():
    layer = QuaternionLinear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    # (1 + 2i + 3j + 4k)(5 + 6i + 7j + 8k) = -60 + 12i + 30j + 24k
    x = torch.tensor([5.0, 6.0, 7.0, 8.0])
    assert layer(x).tolist() == [-60.0, 12.0, 30.0, 24.0]
    with torch.no_grad():
        assert layer(x).tolist() == [-60.0, 12.0, 30.0, 24.0]
    # The conjugate from the left: (1 - 2i - 3j - 4k)(5 + 6i + 7j + 8k) = 70 - 16j - 8k
    other = QuaternionLinear(4, 4, bias=False, transposed=True)
    other.load_state_dict(layer.state_dict())
    assert other(x).tolist() == [70.0, 0.0, -16.0, -8.0]
    assert torch.equal(other.kernel(), layer.kernel().T)
    with torch.no_grad():
        assert other(x).tolist() == [70.0, 0.0, -16.0, -8.0]


def test_linear_is_the_hamilton_product():
    torch.manual_seed(0)
    layer = QuaternionLinear(12, 20).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(5, 3, 12, dtype=torch.double)
    expected = whole(product(parts(layer.weight, 0), parts(x, -1), lambda w, v: v @ w.T), -1) + layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert sum(p.numel() for p in layer.parameters()) == 12 * 20 // 4 + 20


@pytest.mark.parametrize("grad", [True, False])
def test_transposed_layers_multiply_by_the_conjugate(grad):
    """w* x with w* = w_1 - w_i i - w_j j - w_k k, by the same independent multiplication; groups and strides too."""
    torch.manual_seed(0)
    linear = QuaternionLinear(12, 20, transposed=True).double()
    conv = QuaternionConv2d(8, 12, 3, padding=1, stride=2, transposed=True).double()
    grouped = QuaternionConv2d(16, 8, 3, groups=2, bias=False, transposed=True).double()
    x, images, many = (torch.randn(size, dtype=torch.double) for size in ((5, 12), (2, 8, 7, 7), (2, 16, 5, 5)))

    def conjugate(layer, dim=0):
        return {unit: part if unit == "1" else -part for unit, part in parts(layer.weight, dim).items()}

    with torch.set_grad_enabled(grad):
        expected = whole(product(conjugate(linear), parts(x, -1), lambda w, v: v @ w.T), -1)
        torch.testing.assert_close(linear(x), expected + linear.bias)
        plain = lambda w, v: F.conv2d(v, w, stride=2, padding=1)  # noqa: E731
        expected = whole(product(conjugate(conv), parts(images, 1), plain), 1)
        torch.testing.assert_close(conv(images), expected + conv.bias.view(1, -1, 1, 1))
        split = lambda w, v: F.conv2d(v, w, groups=2)  # noqa: E731
        torch.testing.assert_close(grouped(many), whole(product(conjugate(grouped), parts(many, 1), split), 1))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": (2, 1), "bias": False},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"groups": 2, "padding": 1},
        {"groups": 4, "stride": (2, 1)},
    ],
)
def test_conv_is_the_hamilton_product(options, last, grad):
    torch.manual_seed(0)
    options = {"kernel_size": 3, **options}
    layer = QuaternionConv2d(16, 32, **options).double()
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 16, 7, 6, dtype=torch.double)
    if last:
        layer, x = layer.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    plain = nn.Conv2d(16 // 4, 32 // 4, **{**options, "bias": False}).double()

    def times(w: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            plain.weight.copy_(w)
        return plain(v)

    expected = whole(product(parts(layer.weight, 0), parts(x, 1), times), 1)
    expected = expected if layer.bias is None else expected + layer.bias[:, None, None]
    with torch.set_grad_enabled(grad):
        found = layer(x)
        kernel = layer.kernel()
    torch.testing.assert_close(found, expected)
    if layer.groups == 1:  # with one input quaternion a group, both formats are the same
        assert kernel.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    assert (layer.in_channels, layer.out_channels, layer.kernel_size) == (16, 32, plain.kernel_size)


@pytest.mark.parametrize("last", [False, True])
def test_gradients_of_the_layers(last):
    torch.manual_seed(0)
    layer = QuaternionConv2d(8, 4, 3, padding=1).double()
    if last:
        layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 3, 4, dtype=torch.double, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def conv(images: Tensor, *tensors: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (images,))

    assert torch.autograd.gradcheck(conv, (x, *layer.parameters()))
    linear = QuaternionLinear(8, 4, transposed=True).double()
    tokens = torch.randn(3, 8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: torch.func.functional_call(linear, {"weight": w}, (v,)),
                                    (tokens, linear.weight))  # fmt: skip


def test_the_two_assemblies_are_bitwise_one():
    torch.manual_seed(0)
    for layer in (QuaternionConv2d(16, 8, 3), QuaternionLinear(8, 12), QuaternionLinear(8, 12, transposed=True)):
        kernel = layer.kernel()
        with torch.no_grad():
            assert torch.equal(kernel, layer.kernel())
        assert kernel.numel() == 4 * layer.weight.numel()
        # Each of the weight's numbers is there four times, with a sign, and nothing else.
        assert torch.equal(kernel.abs().flatten().sort().values, layer.weight.abs().flatten().repeat(4).sort().values)


def test_a_bf16_autocast_rounds_the_weight_once():
    torch.manual_seed(0)
    layer, x = QuaternionLinear(8, 8), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuaternionConv2d(3, 8, 3), "in_channels of a quaternion layer must be a multiple of four, got 3"),
        (lambda: QuaternionConv2d(8, 10, 3), "out_channels of a quaternion layer must be a multiple of four, got 10"),
        (lambda: QuaternionLinear(6, 8), "in_features of a quaternion layer must be a multiple of four, got 6"),
        (lambda: QuaternionLinear(8, 10), "out_features of a quaternion layer must be a multiple of four, got 10"),
        (lambda: QuaternionConv2d(8, 8, 3, groups=4), "groups 4 does not divide the 2 and 2 quaternion channels"),
        (lambda: QuaternionLinear(8, 8, init="normal"), "init must be one of 'he', 'glorot', 'xavier', got 'normal'"),
        (lambda: QuaternionBatchNorm2d(6), "num_features of a quaternion layer must be a multiple of four, got 6"),
    ],
)
def test_widths_that_do_not_fit(make, message):
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == message


# -- initialisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
def test_a_seed_gives_the_weights(init):
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return QuaternionConv2d(8, 8, 3, init=init).weight

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize("init", ["he", "glorot"])
def test_the_polar_starts_have_their_magnitude_phase_and_axis(init):
    torch.manual_seed(0)
    layer = QuaternionConv2d(128, 256, 3, init=init)
    q = layer.weight.detach().unflatten(0, (4, -1)).flatten(1)
    fan_in, fan_out = 32 * 9, 64 * 9
    sigma = 1 / math.sqrt(2 * fan_in if init == "he" else 2 * (fan_in + fan_out))
    norm = q.norm(dim=0)
    # Chi with four degrees of freedom: E m = sqrt(2) Gamma(2.5) / Gamma(2), E m^2 = 4, E m^4 = 24.
    assert float(norm.mean()) == pytest.approx(sigma * math.sqrt(2) * math.gamma(2.5), rel=0.01)
    assert float(norm.pow(2).mean()) == pytest.approx(4 * sigma**2, rel=0.02)
    assert float(norm.pow(4).mean()) == pytest.approx(24 * sigma**4, rel=0.04)
    # A uniform phase: cos^2 and sin^2 are 1/2 on average; its cosine is not that of a uniform point of the sphere.
    cosine = q[0] / norm
    assert float(cosine.pow(2).mean()) == pytest.approx(1 / 2, rel=0.02)
    assert float(cosine.pow(4).mean()) == pytest.approx(3 / 8, rel=0.02)
    assert float(cosine.mean()) == pytest.approx(0, abs=0.02)
    axis = q[1:] / q[1:].norm(dim=0)
    torch.testing.assert_close(axis @ axis.T / axis.shape[1], torch.eye(3) / 3, atol=0.01, rtol=0)


def test_he_keeps_the_mean_square_of_rectified_activations():
    torch.manual_seed(0)
    x = torch.randn(512, 256)
    for _ in range(6):
        x = QuaternionLinear(256, 256)(x).relu()
    assert 0.6 < float(x.detach().pow(2).mean()) < 1.6


def test_xavier_draws_each_component_by_its_own_fans():
    torch.manual_seed(0)
    layer = QuaternionLinear(400, 200, init="xavier")
    bound = math.sqrt(6 / (100 + 50))
    for part in layer.weight.detach().chunk(4):
        assert 0.98 * bound < float(part.abs().max()) <= bound
        assert float(part.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not layer.bias.any()


# -- normalisation -----------------------------------------------------------------------------------------------------


def mixed(seed: int = 0, quaternions: int = 3) -> Tensor:
    """Components that are correlated, (16, 4 * quaternions, 5, 5), each channel with a mean of its own."""
    torch.manual_seed(seed)
    x = torch.randn(16, 4, quaternions, 5, 5)
    mix = torch.randn(4, 4) + 2 * torch.eye(4)
    return (torch.einsum("ab,nbqhw->naqhw", mix, x) + torch.randn(4, quaternions, 1, 1)).flatten(1, 2)


def covariance(x: Tensor, channel: int) -> Tensor:
    """Of one quaternion channel, by torch.cov."""
    return torch.cov(x.unflatten(1, (4, -1))[:, :, channel].transpose(0, 1).flatten(1), correction=0)


def test_the_whitening_norm_whitens():
    norm = QuaternionBatchNorm2d(12)
    y = norm(mixed()).detach()
    for channel in range(3):
        torch.testing.assert_close(covariance(y, channel), torch.eye(4) / 4, atol=1e-4, rtol=0)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(12), atol=1e-6, rtol=0)
    assert float(y.unflatten(1, (4, -1)).pow(2).sum(1).mean()) == pytest.approx(1, abs=1e-3)


def test_the_whitening_norm_step_by_step():
    norm, x = QuaternionBatchNorm2d(4).double(), mixed(quaternions=1).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 11.0)[None])
        norm.bias.copy_(torch.arange(4.0))
    gamma = torch.tensor([[1, 5, 6, 7], [5, 2, 8, 9], [6, 8, 3, 10], [7, 9, 10, 4]], dtype=torch.double)
    flat = x.transpose(0, 1).flatten(1)
    mean = flat.mean(1, keepdim=True)
    cov = (flat - mean) @ (flat - mean).T / flat.shape[1]
    whitened = torch.linalg.inv(torch.linalg.cholesky(cov + 1e-4 * torch.eye(4))) @ (flat - mean)
    expected = gamma @ whitened + torch.arange(4.0)[:, None]
    torch.testing.assert_close(norm(x).transpose(0, 1).flatten(1), expected)
    # A tenth of the way from (0, 1) to the batch's own, as BatchNorm does, unbiased.
    count = flat.shape[1]
    torch.testing.assert_close(norm.running_mean, 0.1 * mean[:, 0])
    torch.testing.assert_close(norm.running_covariance[0], 0.9 * torch.eye(4) + 0.1 * cov * count / (count - 1))
    norm.eval()
    before = norm.running_mean.clone()
    inverse = torch.linalg.inv(torch.linalg.cholesky(norm.running_covariance[0] + 1e-4 * torch.eye(4)))
    expected = gamma @ inverse @ (flat - before[:, None]) + torch.arange(4.0)[:, None]
    torch.testing.assert_close(norm(x).transpose(0, 1).flatten(1), expected)
    assert torch.equal(norm.running_mean, before)


def test_the_whitening_norm_has_gradients_and_refuses_one_value():
    norm = QuaternionBatchNorm2d(4).double()
    x = torch.randn(3, 4, 2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.randn(1, 4, 1, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm.float()(torch.randn(3, 4, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


# -- other parts -------------------------------------------------------------------------------------------------------


def test_gray_is_the_luma_of_bt_601():
    images = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]]).view(1, 3, 2, 2)
    gray = AppendGray()(images)
    assert torch.equal(gray[:, :3], images)
    torch.testing.assert_close(gray[0, 3].flatten(), torch.tensor([0.299, 0.587, 0.114, 1.0]))
    with pytest.raises(UserError, match=r"3 channels.*got 1"):
        AppendGray()(images[:, :1])


def test_joining_and_padding_keep_components_together():
    # Channel values: hundreds name the component, units the channel.
    first = torch.tensor([100.0, 101, 200, 201, 300, 301, 400, 401]).view(1, 8, 1, 1)
    second = torch.tensor([102.0, 202, 302, 402]).view(1, 4, 1, 1)
    both = [100, 101, 102, 200, 201, 202, 300, 301, 302, 400, 401, 402]
    assert join(first, second).flatten().tolist() == both
    padded = QuaternionPadShortcut(4, 2)(first.expand(1, 8, 3, 3))
    assert padded.shape == (1, 12, 2, 2)
    assert padded[0, :, 1, 1].tolist() == [100, 101, 0, 200, 201, 0, 300, 301, 0, 400, 401, 0]
