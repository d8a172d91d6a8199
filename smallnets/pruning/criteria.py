"""Criteria: scores for every weight, of which the higher are kept.

Each takes a network and, if only some layers are meant or weights are already removed, its masks; it returns
name -> scores of the weight's shape, which `select` turns into masks. A criterion that needs data takes batches of
(images, targets) and `loss(logits, targets)`, a mean over the images of a batch; several batches count as one, each by
its number of images. Gradients are taken in the mode (training or evaluation) that the network is in, and in the
precision of its weights, whatever autocasting is on.

Law: scoring leaves weights, buffers, gradients, `requires_grad`, modes and torch's random state exactly as they were.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from smallnets.errors import UserError
from smallnets.pruning.masks import Masks
from smallnets.pruning.prunable import plain
from smallnets.pruning.select import select_in_rounds

Scores = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


def magnitude(net: nn.Module, masks: Masks | None = None) -> Scores:
    """`|w|` (Han et al. 2015)."""
    return {name: weight.detach().abs() for name, weight in _weights(net, masks).items()}


def random(net: nn.Module, masks: Masks | None = None, seed: int = 0) -> Scores:
    """Uniform in [0, 1), a function of the seed and the shapes alone: the same on every device and rank."""
    generator = torch.Generator().manual_seed(seed)
    weights = _weights(net, masks)
    return {
        name: torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        for name, weight in weights.items()
    }


def gradient_magnitude(net: nn.Module, batches: Batches, loss: Loss, masks: Masks | None = None) -> Scores:
    """`|dL/dw|` of the mean loss L over all images of the batches."""
    return {name: grad.abs() for name, grad in _gradients(net, batches, loss, masks).items()}


def taylor(net: nn.Module, batches: Batches, loss: Loss, masks: Masks | None = None) -> Scores:
    """`|w dL/dw|`: what removing a weight changes in the loss, to first order.

    SNIP (Lee et al. 2019) divides it by its sum, which changes no ranking; on trained networks it is the Taylor
    criterion (Molchanov et al. 2019, there squared).
    """
    weights = _weights(net, masks)
    return {name: (weights[name].detach() * g).abs() for name, g in _gradients(net, batches, loss, masks).items()}


snip = taylor


def grasp(
    net: nn.Module, batches: Batches, loss: Loss, masks: Masks | None = None, temperature: float = 200.0
) -> Scores:
    """w (H g): gradient signal preservation (Wang et al. 2020), with g and H of the scored weights alone.

    Removing a weight changes `|g|^2` by `-2 w (H g)` to first order. The paper writes S = -w (H g) and removes the
    highest S; here the sign is turned, so that the highest are kept. Logits are divided by `temperature` first (200 in
    the authors' program).
    """
    if not temperature > 0:
        raise UserError(f"temperature must be above 0, got {temperature}")
    with _differentiable(net, masks) as (weights, forward):
        parts = _listed(batches, weights)

        def gradients(images: Tensor, targets: Tensor, share: float, graph: bool) -> list[Tensor]:
            value = loss(forward(images) / temperature, targets) * share
            return _grad(value, weights, create_graph=graph)

        first = [torch.zeros_like(weight) for weight in weights.values()]
        for images, targets, share in parts:
            torch._foreach_add_(first, gradients(images, targets, share, False))
        second = [torch.zeros_like(weight) for weight in weights.values()]
        for images, targets, share in parts:
            along = gradients(images, targets, share, True)
            product = torch.stack([(a * b).sum() for a, b in zip(along, first, strict=True)]).sum()
            torch._foreach_add_(second, _grad(product, weights))
    return {name: weight.detach() * h for (name, weight), h in zip(weights.items(), second, strict=True)}


def synflow(
    net: nn.Module,
    density: float | None = None,
    *,
    kept: int | None = None,
    rounds: int = 100,
    in_channels: int = 3,
    image_size: int = 32,
    floor: int = 1,
    masks: Masks | None = None,
) -> Masks:
    """Masks by iterative synaptic flow (Tanaka et al. 2020), without data.

    In each round the score `|w dR/dw|` is taken anew, with R the sum of the logits for an image of ones when every
    parameter and running statistic is replaced by its absolute value, in double precision and evaluation mode; what
    scores highest over all layers is kept. The density falls from that of `masks` (1 without them) to the target
    exponentially, as in `select_in_rounds`. The last count is exact.

    Args:
        density, kept: what is asked, one of them, as in `select`.
        rounds: 100 in the paper; with few rounds it may collapse layers to the floor.
        in_channels, image_size: of an image that the network takes.

    Raises:
        UserError: rounds below 1, or what `select` refuses.
    """

    def scores(masks: Masks) -> Scores:
        return synflow_scores(net, masks, in_channels=in_channels, image_size=image_size)

    masks = Masks.dense(net) if masks is None else masks
    return select_in_rounds(scores, rounds, masks, density=density, kept=kept, floor=floor)


def synflow_scores(net: nn.Module, masks: Masks | None = None, in_channels: int = 3, image_size: int = 32) -> Scores:
    """One round's scores of `synflow`, in double precision; weights that `masks` has removed count as 0."""
    net = plain(net)
    masks = Masks.dense(net) if masks is None else masks
    named = _weights(net, masks)
    with _modes(net), torch.inference_mode(False), torch.enable_grad():
        net.eval()
        state = {name: _absolute(value) for name, value in _tensors(net).items()}
        weights = {
            name: (state[name] * masks[name].to(weight.device)).requires_grad_() for name, weight in named.items()
        }
        like = next(iter(weights.values()))
        image = torch.ones(1, in_channels, image_size, image_size, dtype=torch.float64, device=like.device)
        flow = functional_call(net, {**state, **weights}, (image,)).sum()
        grads = _grad(flow, weights)
    return {name: (weight * grad).detach().abs() for (name, weight), grad in zip(weights.items(), grads, strict=True)}


class Movement:
    """-w dL/dw, summed over training steps (Sanh et al. 2020): high where training moves a weight away from 0.

    Call `update(net)` in one's own loop after each backward pass, before the optimizer's step; one operation for all
    layers. `scores()` goes to `select`. Removed weights, whose gradients are masked, gain nothing.
    """

    def __init__(self, net: nn.Module, masks: Masks | None = None) -> None:
        self._masks = Masks.dense(net) if masks is None else masks
        self._sums = {name: torch.zeros_like(weight) for name, weight in self._masks.weights(net).items()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Adds -w * w.grad; UserError for a layer that has no gradient."""
        weights = self._masks.weights(net)
        grads = []
        for name, weight in weights.items():
            if weight.grad is None:
                raise UserError(f"{name} has no gradient: movement is updated after the backward pass")
            grads.append(weight.grad)
        if any(total.device != weights[name].device for name, total in self._sums.items()):
            self._sums = {name: total.to(weights[name].device) for name, total in self._sums.items()}
        torch._foreach_addcmul_(list(self._sums.values()), list(weights.values()), grads, value=-1.0)

    def scores(self) -> Scores:
        """The sums so far, as copies."""
        return {name: total.clone() for name, total in self._sums.items()}

    def state_dict(self) -> Scores:
        """Plain tensors, so that an interrupted run goes on with the sums that it had."""
        return self.scores()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """UserError unless the layers and their shapes are these."""
        for name in self._sums.keys() | state.keys():
            if name not in self._sums or name not in state or self._sums[name].shape != state[name].shape:
                raise UserError(f"{name}: the stored movement scores belong to another network")
        self._sums = {name: state[name].to(total.device, total.dtype).clone() for name, total in self._sums.items()}


def _weights(net: nn.Module, masks: Masks | None) -> dict[str, Tensor]:
    return (Masks.dense(net) if masks is None else masks).weights(net)


def _gradients(net: nn.Module, batches: Batches, loss: Loss, masks: Masks | None) -> Scores:
    with _differentiable(net, masks) as (weights, forward):
        parts = _listed(batches, weights)
        total = [torch.zeros_like(weight) for weight in weights.values()]
        for images, targets, share in parts:
            torch._foreach_add_(total, _grad(loss(forward(images), targets) * share, weights))
    return dict(zip(weights, total, strict=True))


def _listed(batches: Batches, weights: Scores) -> list[tuple[Tensor, Tensor, float]]:
    """The batches on the weights' device, each with its share of all images."""
    device = next(iter(weights.values())).device
    listed = [(_usable(images, device), _usable(targets, device)) for images, targets in batches]
    total = sum(len(images) for images, _ in listed)
    if not total:
        raise UserError("this criterion needs at least one batch of (images, targets)")
    return [(images, targets, len(images) / total) for images, targets in listed]


def _usable(tensor: Tensor, device: torch.device) -> Tensor:
    # Gradients cannot pass through a tensor that was made in inference mode.
    return tensor.to(device).clone() if tensor.is_inference() else tensor.to(device)


@contextmanager
def _differentiable(net: nn.Module, masks: Masks | None) -> Iterator[tuple[Scores, Callable[[Tensor], Any]]]:
    """Leaves that stand for the scored weights, and a forward through them that changes nothing of `net`."""
    net = plain(net)
    named = _weights(net, masks)
    cuda = sorted({weight.device.index for weight in named.values() if weight.is_cuda})
    # Fused attention has no second derivative.
    with (
        _modes(net),
        torch.random.fork_rng(cuda),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(next(iter(named.values())).device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        # Dropout draws alike on every rank. Not torch.manual_seed: it reaches devices that are not put back.
        for generator in (torch.default_generator, *(torch.cuda.default_generators[index] for index in cuda)):
            generator.manual_seed(0)
        state = {name: value.detach().clone() for name, value in _tensors(net).items()}
        weights = {name: state[name].requires_grad_() for name in named}
        yield weights, lambda images: functional_call(net, state, (images,))


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _absolute(value: Tensor) -> Tensor:
    return value.detach().double().abs() if value.is_floating_point() else value.detach().clone()


def _grad(value: Tensor, weights: Scores, create_graph: bool = False) -> list[Tensor]:
    """Zero for weights that the value does not depend on."""
    leaves = list(weights.values())
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(value, leaves, create_graph=create_graph, materialize_grads=True))


@contextmanager
def _modes(net: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
