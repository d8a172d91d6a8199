"""How the networks of this package are initialised."""

from torch import nn


def init_convs(net: nn.Module) -> None:
    """Draw every Conv2d weight from N(0, 2 / (k * k * C_out)) (Kaiming normal, fan-out) and set its bias to 0.

    This is what the code of documents 000 (VGG) and 002 (ResNet) does. All else keeps PyTorch's own start:
    BatchNorm 1 and 0, Linear uniform in +-1/sqrt(in_features). Document 002 also draws its head fan-out; with ten
    outputs that gives logits of a standard deviation of several units at the start, so it is not followed.
    """
    for module in net.modules():
        # On the meta device there is nothing to draw, and drawing it would cost seconds.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
