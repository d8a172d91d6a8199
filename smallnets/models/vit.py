"""The vision transformer of document 000."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.layers.arguments import check_image, one_of, share, whole, whole_list


class Attention(nn.Module):
    """Multi-head self-attention, (N, T, dim) -> (N, T, dim): softmax(scale * q k^T) v over the T tokens, projected.

    `scale` and `head_width` (channels of a head) are fixed at construction; whole heads may be removed afterwards, and
    `heads` is the number that is left.
    """

    def __init__(self, dim: int, heads: int, qkv_bias: bool, scale: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = dim // heads
        self.scale = scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.project = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        # Widths are read from the tensor: with heads removed, q, k and v are narrower than the tokens.
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (parts[i].unflatten(-1, (self.heads, -1)).transpose(1, 2) for i in range(3))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.dropout(self.project(mixed.transpose(1, 2).flatten(2)))


class EncoderBlock(nn.Module):
    """(N, T, dim) -> (N, T, dim): x + attention(norm(x)), then x + mlp(norm(x)) with one GELU layer of mlp_dim."""

    def __init__(self, dim: int, mlp_dim: int, attention: Attention, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Images (N, in_channels, image_size, image_size) -> logits (N, num_classes). Dosovitskiy et al.; document 000.

    Patches are flattened (channel, row, column) and embedded linearly, a class token is put before them and a learned
    position added to each; pre-norm encoder blocks follow; the head reads LayerNorm of the class token. Linear layers
    start as PyTorch draws them, class token and positions from N(0, 1), as in document 000.

    Args:
        patch_size: side of a patch in pixels; must divide `image_size`.
        dim: width of a token; must be a multiple of `heads`.
        depth: encoder blocks.
        mlp_dim: hidden width of each block's mlp.
        head_widths: hidden widths of the head, each with GELU and dropout. Document 000 has one, equal to mlp_dim; the
            usual linear head has none.
        dropout: after the attention's projection, in each mlp and in the head.
        embedding_dropout: after the positions are added.
        qkv_bias: bias of the q, k, v projection. With it and `head_widths=()` the network is torchvision's.
        attention_scale: "head_dim" scales q k^T by (dim / heads)^-0.5, as is usual; "dim" by dim^-0.5, as the published
            code of document 000 does.

    Raises UserError for arguments that do not fit together.
    """

    def __init__(
        self,
        num_classes: int = 10,
        patch_size: int = 4,
        dim: int = 512,
        depth: int = 6,
        heads: int = 8,
        mlp_dim: int = 512,
        head_widths: Sequence[int] = (512,),
        dropout: float = 0.1,
        embedding_dropout: float = 0.1,
        qkv_bias: bool = False,
        attention_scale: Literal["head_dim", "dim"] = "head_dim",
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        self.num_classes = whole("num_classes", num_classes)
        self.patch_size = whole("patch_size", patch_size)
        self.dim = whole("dim", dim)
        self.depth = whole("depth", depth)
        self.heads = whole("heads", heads)
        self.mlp_dim = whole("mlp_dim", mlp_dim)
        self.head_widths = whole_list("head_widths", head_widths, least_length=0)
        self.dropout = share("dropout", dropout)
        self.embedding_dropout = share("embedding_dropout", embedding_dropout)
        self.qkv_bias = qkv_bias
        self.attention_scale = one_of("attention_scale", attention_scale, ("head_dim", "dim"))
        self.in_channels = whole("in_channels", in_channels)
        self.image_size = whole("image_size", image_size)
        if image_size % patch_size:
            raise UserError(f"patch_size {patch_size} does not divide image_size {image_size}")
        if dim % heads:
            raise UserError(f"dim {dim} is not a multiple of heads {heads}")

        tokens = (image_size // patch_size) ** 2
        scale = (dim if self.attention_scale == "dim" else dim // heads) ** -0.5
        self.patches = nn.Linear(in_channels * patch_size**2, dim)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, tokens + 1, dim))
        self.drop = nn.Dropout(embedding_dropout)
        self.encoder = nn.Sequential(
            *(
                EncoderBlock(dim, mlp_dim, Attention(dim, heads, qkv_bias, scale, dropout), dropout)
                for _ in range(depth)
            )
        )
        members: list[nn.Module] = [nn.LayerNorm(dim)]
        width = dim
        for hidden in self.head_widths:
            members += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout)]
            width = hidden
        self.head = nn.Sequential(*members, nn.Linear(width, self.num_classes))

    def forward(self, x: Tensor) -> Tensor:
        check_image("ViT", x, self.in_channels, self.image_size)
        p = self.patch_size
        x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (N, C, rows, p, columns, p)
        x = self.patches(x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.encoder(self.drop(x + self.positions))
        return self.head(x[:, 0])
