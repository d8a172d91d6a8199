"""`load`: from a checkpoint back to the network, from the file alone."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smallnets.errors import RunError, UserError
from smallnets.models.spec import build, spec_of
from smallnets.pruning.masks import Masks
from smallnets.surgery.fake_quantize import FakeQuantized
from smallnets.surgery.widths import fit_widths

CHECKPOINT_KEY = "smallnets"
NET_PREFIX = "net."


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint at `path` as plain data and tensors on the CPU (`torch.load(weights_only=True)`).

    Raises:
        UserError: no such file, or not a checkpoint of smallnets.
        RunError: the file is cut short or damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: {'it is a folder' if path.is_dir() else 'no such file'}")
    if not zipfile.is_zipfile(path):
        # torch writes a zip archive, whose directory stands at its end: a file cut short has none.
        raise RunError(
            f"{path} is not a whole checkpoint ({path.stat().st_size:,} bytes): cut short, or another format"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load does not compare checksums: a flipped bit in a weight would pass.
            if (member := archive.testzip()) is not None:
                raise RunError(f"{path} is damaged: the checksum of {member} is wrong")
            # Any other archive: a file of torch.export, say.
            if not any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise UserError(f"{path} is not a checkpoint of smallnets: an archive of something else")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds pickled objects, so it is not a checkpoint of smallnets") from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of smallnets: it has no {CHECKPOINT_KEY!r} entry")
    return checkpoint


def network_of(checkpoint: dict[str, Any], path: str | Path, net: nn.Module | None = None) -> nn.Module:
    """The network in a checkpoint that was read, in eval mode on the CPU."""
    spec = checkpoint[CHECKPOINT_KEY]["net"]
    if spec is not None:
        net = build(spec)
    elif net is None:
        raise UserError(
            f"{path} does not say how its network was built (a constructor argument without an attribute of its"
            f" name); give the network: load(path, net=MyNet(...))"
        )
    state = {k.removeprefix(NET_PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(NET_PREFIX)}
    try:
        fit_widths(net, state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # assign keeps the stored tensors as they are, their memory format too: the same logits, bit for bit.
    net.load_state_dict(state, assign=True)
    return net.eval()


def fake_quantized(checkpoint: dict[str, Any], net: nn.Module) -> FakeQuantized | None:
    """`net`, that of a checkpoint, as quantisation-aware training left it; None where it was not trained so."""
    record = checkpoint[CHECKPOINT_KEY].get("quantization")
    return None if record is None else FakeQuantized(net, record=record).eval()


def require_float(checkpoint: dict[str, Any], path: str | Path, what: str) -> None:
    """UserError for a network of quantisation-aware training, whose weights alone are not what was trained."""
    if checkpoint[CHECKPOINT_KEY].get("quantization") is not None:
        raise UserError(f"{path} was trained with int8 numbers (QuantAwareTraining); {what} takes float networks")


def load(
    path: str | Path, net: nn.Module | None = None, like: nn.Module | None = None, rounded: bool = True
) -> nn.Module:
    """The network of a checkpoint, rebuilt from the file alone, in eval mode on the CPU.

    The logits are bitwise those of the network that was saved, whatever was pruned, converted or removed: the
    constructor's numbers are in the checkpoint as plain data, the widths are the shapes of its tensors. One of
    quantisation-aware training is a `surgery.FakeQuantized`, with the network of float weights as its `net`.

    Args:
        path: a checkpoint that a run wrote (`checkpoints/best.ckpt`).
        net: a network to load into, for a checkpoint of a class of your own whose constructor arguments cannot be
            read back from attributes of the same names.
        like: a network that the one in the checkpoint must be of the same class and number of classes as; it also
            serves as `net`.
        rounded: False for the network of float weights alone.

    Raises:
        UserError: no such file, not a checkpoint of smallnets, or not `like` what was asked for.
        RunError: the file is cut short or damaged.
    """
    checkpoint = read_checkpoint(path)
    loaded = network_of(checkpoint, path, net if net is not None else like)
    if like is not None:
        differ = type(loaded) is not type(like) or _classes(loaded) != _classes(like)
        if differ:
            raise UserError(f"{path} holds {_describe(loaded)}; asked for was {_describe(like)}")
    return (fake_quantized(checkpoint, loaded) if rounded else None) or loaded


def load_masks(path: str | Path) -> Masks | None:
    """The masks that a checkpoint's network was trained with; None for a dense one. Raises what `load` raises."""
    stored = read_checkpoint(path)[CHECKPOINT_KEY].get("masks")
    return Masks.from_state_dict(stored) if stored else None


def require_same_network(stored: dict[str, Any] | None, asked: dict[str, Any] | None, path: str) -> None:
    """Raises UserError unless a checkpoint's network has the spec that is asked for; None agrees with all."""
    if stored is None or asked is None or stored == asked:
        return
    if stored["class_path"] != asked["class_path"]:
        raise UserError(f"{path} holds a {stored['class_path']}; the command asks for a {asked['class_path']}")
    was, now = stored["init_args"], asked["init_args"]
    differ = [f"{k} {was.get(k)} (asked for: {now.get(k)})" for k in {**was, **now} if was.get(k) != now.get(k)]
    raise UserError(f"{path} holds another {stored['class_path']}: {', '.join(differ)}")


def _classes(net: nn.Module) -> int | None:
    return getattr(net, "num_classes", None)


def _describe(net: nn.Module) -> str:
    spec = spec_of(net)
    return f"{type(net).__name__}({', '.join(f'{k}={v}' for k, v in (spec or {'init_args': {}})['init_args'].items())})"
