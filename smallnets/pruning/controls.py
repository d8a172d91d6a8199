"""Controls of a lottery: masks and weights that differ from a ticket in one thing, to tell what its success is due to.

A ticket is believed when it beats these at its own count of weights. Fresh weights (random reinitialisation) come from
`narrow.fresh_like`; masks found before training from `criteria` (`snip`, `grasp`, `synflow`); one-shot pruning is
`select` with the ticket's count.

Laws: every function keeps exactly as many weights as the masks that it is given, is a function of its arguments and
`seed` alone (the same on every device and rank), and leaves torch's random state as it is.
"""

import torch
from torch import Tensor

from smallnets.pruning.masks import Masks
from smallnets.pruning.select import select


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


def _noise(masks: Masks, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(mask.shape, generator=generator, dtype=torch.float64) for name, mask in masks.items()}
