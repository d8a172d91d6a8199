"""Batch normalisation that whitens quaternions (Gaudet & Maida 2018, arXiv 1712.04604)."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from smallnets.layers.quaternion import fours

# A learned 4 x 4 matrix is symmetric: ten numbers, at these rows and columns; the first four are the diagonal.
_ROWS, _COLUMNS = (0, 1, 2, 3, 0, 0, 0, 1, 1, 2), (0, 1, 2, 3, 1, 2, 3, 2, 3, 3)
_PLACES = [
    [next(n for n in range(10) if {_ROWS[n], _COLUMNS[n]} == {row, column}) for column in range(4)] for row in range(4)
]


class QuaternionBatchNorm2d(nn.Module):
    """(N, C, H, W) -> the same shape: y = G V^(-1/2) (x - mean) + bias for each of the C / 4 quaternion channels.

    V is the 4 x 4 covariance of a channel's components over batch and pixels plus `eps` on its diagonal; V^(-1/2) is
    the inverse of its Cholesky factor, so that the components come out uncorrelated with variance 1. G is symmetric
    and learned: `weight` (C / 4, 10), its diagonal first, which starts at 1/2, so that a quaternion's norm has a mean
    square of 1; `bias` (C) starts at 0. Channels are component-blocked. In eval mode the running mean and covariance
    (unbiased, `momentum` as in `nn.BatchNorm2d`) take their place. It computes in float32 at least. A covariance that
    is not positive gives NaN.

    Raises UserError for channels that four does not divide, ValueError when trained on one value a channel.
    """

    running_mean: Tensor
    running_covariance: Tensor
    places: Tensor

    def __init__(self, num_features: int, eps: float = 1e-4, momentum: float = 0.1) -> None:
        super().__init__()
        quaternions = fours("num_features", num_features) // 4
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.empty(quaternions, 10))
        self.bias = nn.Parameter(torch.empty(num_features))
        self.register_buffer("running_mean", torch.empty(num_features))
        self.register_buffer("running_covariance", torch.empty(quaternions, 4, 4))
        self.register_buffer("places", torch.tensor(_PLACES), persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The start of the parameters, and mean 0 and covariance 1 of the running statistics."""
        self.weight.zero_()[:, :4] = 0.5
        self.bias.zero_()
        self.running_mean.zero_()
        self.running_covariance.copy_(torch.eye(4, device=self.running_covariance.device))

    @property
    def num_features(self) -> int:
        """Real channels, four for each quaternion."""
        return self.bias.shape[0]

    def affine(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices (C / 4, 4, 4) and shifts (4, C / 4) of y = matrix x + shift, for a mean (C) and a covariance."""
        eye = torch.eye(4, dtype=covariance.dtype, device=covariance.device)
        factor, failed = torch.linalg.cholesky_ex(covariance + self.eps * eye)
        # Asking whether it failed would wait for the device; NaN is found by whoever looks.
        factor = factor.masked_fill((failed > 0)[:, None, None], torch.nan)
        whitening = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        scale = self.weight.to(covariance.dtype)[:, self.places]
        # Sums, not matrix products: those a counter would take for a layer's MACs.
        matrix = (scale.unsqueeze(-1) * whitening.unsqueeze(1)).sum(2)
        moved = (matrix * mean.view(4, -1).T.unsqueeze(1)).sum(-1)
        return matrix, self.bias.to(covariance.dtype).view(4, -1) - moved.T

    def forward(self, x: Tensor) -> Tensor:
        # Shapes alone (the meta device) know no autocast.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            parts = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (4, -1))
            if self.training:
                mean, covariance = self._statistics(parts)
            else:
                mean = self.running_mean.to(parts.dtype)
                covariance = self.running_covariance.to(parts.dtype)
            matrix, shift = self.affine(mean, covariance)
            y = shift[:, :, None, None]
            for column in range(4):
                y = torch.addcmul(y, matrix[:, :, column].T[:, :, None, None], parts[:, column : column + 1])
            return y.flatten(1, 2).to(x.dtype)

    def _statistics(self, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (C) and covariance (C / 4, 4, 4) of a batch; moves the running ones."""
        count = parts.numel() // self.num_features
        if count <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {parts.shape}")
        mean = parts.mean((0, 3, 4), keepdim=True)
        centred = (parts - mean).permute(2, 1, 0, 3, 4).flatten(2)  # (C / 4, 4, values)
        covariance = centred @ centred.transpose(1, 2) / count
        mean = mean.flatten()
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = covariance * (count / (count - 1))
            self.running_covariance.lerp_(unbiased.to(self.running_covariance.dtype), self.momentum)
        return mean, covariance

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"
