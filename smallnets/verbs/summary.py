"""`smallnets summary`: one network layer by layer, against a budget."""

import json
import sys
from typing import Any

import torch
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from torch import nn

from smallnets.config import LINKED, expand_arguments
from smallnets.data import ImageData
from smallnets.errors import UserError
from smallnets.measure import Budget, Counts, count
from smallnets.models.name import name_of
from smallnets.pruning.quaternion_channels import real_twin
from smallnets.results.load import CHECKPOINT_KEY, network_of, read_checkpoint
from smallnets.surgery import Quaternion
from smallnets.verbs.brief import BriefParser
from smallnets.verbs.messages import as_user_errors


def run(argv: list[str]) -> int:
    """Prints the network of a config, a name (`--model.net=resnet20`) or a checkpoint; 1 if it is over the budget."""
    parser = _parser()
    if any(a in ("-h", "--help") for a in argv):
        parser.print_help()
        return 0
    with as_user_errors():
        options = parser.parse_args(expand_arguments(argv, keep=_network_and_data))
        net, image_size, in_channels = _from_checkpoint(options) or _from_options(parser, options)
    counts = count(net, image_size=image_size, in_channels=in_channels)
    limits = {k: v for k, v in options.budget.as_dict().items() if v is not None}
    broken = Budget(**limits).check(counts) if limits else []
    name, real = name_of(net), _real_counts(net, image_size, in_channels)
    if options.json:
        print(json.dumps({**_object(name, net, counts, limits, broken), **_of_real(real)}, indent=1))
    else:
        _show(f"{name} on {in_channels}x{image_size}x{image_size}", counts)
        if real is not None:
            shares = counts.parameters / real.parameters, counts.macs / real.macs
            print(
                f"the real network of these widths has {real.parameters:,} parameters and {real.macs:,} MACs: here are"
                f" {shares[0]:.1%} of its parameters, and {shares[1]:.1%} of its MACs"
            )
    for line in broken:
        print(f"smallnets summary: {name} is over its budget: {line}", file=sys.stderr)
    return 1 if broken else 0


def _parser() -> ArgumentParser:
    parser = BriefParser(prog="smallnets summary", exit_on_error=False, print_config=None, description=run.__doc__)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a config of `fit`; only net and data are read")
    parser.add_argument("--ckpt_path", type=str | None, default=None, help="show the network of a checkpoint")
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    for limit in ("parameters", "nonzero_parameters", "macs", "bytes", "activation_bytes"):
        parser.add_argument(f"--budget.{limit}", type=int | str | None, default=None, help="at most: 1M")
    parser.add_subclass_arguments(nn.Module, "model.net", required=False, help="a named network or a class path")
    parser.add_subclass_arguments(ImageData, "data", required=False, help="data set that sets classes and image size")
    parser.set_defaults({"data": {"class_path": "smallnets.data.CIFAR10"}})
    for name in LINKED:
        parser.link_arguments(f"data.{name}", f"model.net.init_args.{name}", apply_on="instantiate")
    return parser


def _network_and_data(config: dict[str, Any]) -> dict[str, Any]:
    """What `summary` reads of a config of `fit`."""
    net, data = (config.get("model") or {}).get("net"), config.get("data")
    return ({"model": {"net": net}} if net else {}) | ({"data": data} if data else {})


def _from_checkpoint(options: Namespace) -> tuple[nn.Module, int, int] | None:
    if options.ckpt_path is None:
        return None
    checkpoint = read_checkpoint(options.ckpt_path)
    about = checkpoint[CHECKPOINT_KEY]
    return network_of(checkpoint, options.ckpt_path), about["image_size"] or 32, about["in_channels"] or 3


def _from_options(parser: ArgumentParser, options: Namespace) -> tuple[nn.Module, int, int]:
    if options.get("model.net") is None:
        raise UserError("summary of which network? give --model.net=NAME, --config FILE or --ckpt_path FILE")
    built = parser.instantiate_classes(options)
    return built.model.net, built.data.image_size, built.data.in_channels


def _real_counts(net: nn.Module, image_size: int, in_channels: int) -> Counts | None:
    """Of a quaternion network, the counts of the real one of its widths on the same four channels, if it takes them."""
    if not isinstance(net, Quaternion):
        return None
    try:
        with torch.device("meta"):
            real = real_twin(net)
    except UserError:  # a user's own network that is not described by its arguments, or of three channels alone
        return None
    return count(real, image_size=image_size, in_channels=4 if in_channels == 3 else in_channels)


def _of_real(real: Counts | None) -> dict[str, Any]:
    return {} if real is None else {"real": {"parameters": real.parameters, "macs": real.macs}}


def _object(name: str, net: nn.Module, counts: Counts, limits: dict[str, Any], broken: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "num_classes": getattr(net, "num_classes", None),
        "parameters": counts.parameters,
        "nonzero_parameters": counts.nonzero_parameters,
        "macs": counts.macs,
        "flops": counts.flops,
        "bytes": counts.bytes,
        "activation_bytes": counts.activation_bytes,
        "budget": limits,
        "over_budget": broken,
        "layers": [vars(layer) for layer in counts.layers],
    }


def _show(title: str, counts: Counts) -> None:
    lines = [["layer", "kind", "output", "parameters", "nonzero", "MACs"]]
    lines += [
        [
            layer.name,
            layer.kind,
            "x".join(str(n) for n in layer.output_shape),
            f"{layer.parameters:,}",
            f"{layer.nonzero_parameters:,}",
            f"{layer.macs:,}",
        ]
        for layer in counts.layers
    ]
    lines.append(["total", "", "", f"{counts.parameters:,}", f"{counts.nonzero_parameters:,}", f"{counts.macs:,}"])
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    print(title)
    for line in lines:
        cells = [
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print(
        f"{counts.bytes:,} bytes stored (parameters and buffers); {counts.activation_bytes:,} bytes of activations held"
        f" at once; MACs of one image, FLOPs = 2 MACs = {counts.flops:,}"
    )
