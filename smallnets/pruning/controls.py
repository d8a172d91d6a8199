"""Controls of a lottery: masks and weights that differ from a ticket in one thing, to tell what its success is due to.

A ticket is believed when it beats these at its own count of weights. Fresh weights (random reinitialisation) come from
`narrow.fresh_like`; masks found before training from `criteria` (`snip`, `grasp`, `synflow`); one-shot pruning is
`select` with the ticket's count.

Laws: every function that gives masks keeps exactly as many weights as the masks that it is given; all are functions of
their arguments and `seed` alone (the same on every device and rank), and leave torch's random state as it is.
"""

import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.measure import Budget
from smallnets.models.spec import build, spec_of
from smallnets.pruning.masks import Masks
from smallnets.pruning.narrow import narrow
from smallnets.pruning.prunable import plain
from smallnets.pruning.select import select
from smallnets.surgery.quaternion import Quaternion
from smallnets.surgery.widths import fit_widths


def random_masks(masks: Masks, seed: int) -> Masks:
    """Other weights, as many in each layer: what is left of a ticket is its densities (layer-wise shuffling).

    Frankle et al. 2021, "Pruning neural networks at initialization", call it random shuffling; each choice of so many
    weights of a layer is equally likely.
    """
    noise = _noise(masks, seed)
    kept = {layer.name: layer.density for layer in masks.layers}
    return select(noise, scope="layer", densities=kept, floor=0)


def shuffled_masks(masks: Masks, seed: int) -> Masks:
    """Other weights, as many in each output unit (row of a linear layer, output channel of a convolution).

    Finer than `random_masks`: a unit that the ticket has cut off, or kept whole, stays so; which of its inputs it sees
    is drawn anew.
    """
    noise, shuffled = _noise(masks, seed), {}
    for name, mask in masks.items():
        rows = mask.flatten(1)
        places = noise[name].flatten(1).argsort(1).argsort(1)  # a random permutation of each row
        shuffled[name] = (places < rows.sum(1, keepdim=True).cpu()).view(mask.shape).to(mask.device)
    return Masks(shuffled)


def random_erk_masks(masks: Masks, seed: int) -> Masks:
    """Random weights, as many in all, with the densities of Erdős-Rényi-Kernel (Evci et al. 2020) in the layers.

    Nothing is left of a ticket but its count.
    """
    return select(_noise(masks, seed), kept=masks.kept, scope="layer", densities="erk")


def ticket_parameters(net: nn.Module, masks: Masks) -> int:
    """Parameters of the dense `net` that `masks` leave: those that are kept, and all that have no mask."""
    every = sum(each.numel() for each in net.parameters() if each.requires_grad)
    return every - (masks.total - masks.kept)


def narrow_(net: nn.Module, masks: Masks, seed: int, image_size: int = 32, in_channels: int = 3) -> nn.Module:
    """Makes `net`, in place, the control that is as large as a ticket where zeros are not stored: dense, but narrower.

    It becomes the widest network of its shape, all widths times one factor (`pruning.narrow`), with at most
    `ticket_parameters` parameters, drawn anew; widths of a quaternion network are multiples of four. Returns `net`.

    Args:
        masks: of the ticket, of the whole network; `net` itself may be narrow already.

    Raises:
        UserError: masks of another network, and what `narrow` refuses: a network without widths, or one that has more
            parameters at its narrowest.
    """
    original = plain(net)
    spec = spec_of(original)
    if spec is None:
        raise UserError(f"{type(original).__name__} does not keep its constructor's arguments: it cannot be narrowed")
    whole = build(spec)
    masks.weights(whole)
    fresh = narrow(
        whole, Budget(parameters=ticket_parameters(whole, masks)), seed=seed, image_size=image_size,
        in_channels=in_channels, multiple=4 if isinstance(original, Quaternion) else 1,
    )  # fmt: skip
    state = fresh.state_dict()
    fit_widths(original, state).load_state_dict(state)
    return net


def _noise(masks: Masks, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(mask.shape, generator=generator, dtype=torch.float64) for name, mask in masks.items()}
