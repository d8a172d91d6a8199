"""Filters and parameters layer by layer, of several networks: figures 1 and 2 of document 004."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
from torch import nn

from smallnets.compress.subject import Subject, read_subject
from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.report.figures import colour
from smallnets.results.run import RunFolder

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_KINDS = (("conv", "C"), ("norm", "BN"), ("linear", "Linear"))
_LONG = 900  # points of width
_TITLES = {"filters": "output filters", "nonzero_parameters": "nonzero parameters"}


@dataclass(frozen=True)
class Layer:
    """One layer of one network.

    `layer` is its path, `label` what the figure calls it (`C-1`, `BN-2`, ..., `Linear-49`: numbered, as torchsummary
    does, in the order of the network with each block counted behind its layers), `stage` where it stands.
    """

    layer: str
    label: str
    stage: str
    kind: str
    filters: int
    parameters: int
    nonzero_parameters: int
    macs: int


def layers_of(net: nn.Module, image_size: int = 32, in_channels: int = 3) -> list[Layer]:
    """The layers of a network that hold parameters or multiply. UserError if it cannot run on such images.

    `filters` are output channels of convolutions and BatchNorm, output features of linear layers, and the width of
    tokens.
    """
    places = _places(net)
    return [
        Layer(
            each.name,
            f"{next((short for part, short in _KINDS if part in each.kind.lower()), each.kind)}-{places[each.name]}",
            _stage(each.name),
            each.kind,
            _width(each.output_shape),
            each.parameters,
            each.nonzero_parameters,
            each.macs,
        )
        for each in count(net, image_size, in_channels).layers
        if each.name
    ]


def _places(net: nn.Module) -> dict[str, int]:
    """Path -> number: layers, and blocks behind what they hold; activations and containers are not numbered."""
    found: dict[str, int] = {}

    def walk(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            walk(child, f"{path}.{name}" if path else name)
        holds = any(True for _ in module.parameters())
        if path and holds and not isinstance(module, _CONTAINERS):
            found[path] = len(found) + 1

    walk(net, "")
    return found


def _width(shape: tuple[int, ...]) -> int:
    if not shape:
        return 0
    return shape[0] if len(shape) == 3 else shape[-1]


def _stage(path: str) -> str:
    """`stages.0.1.conv1` is in L1; what is in no stage, in what its path begins with (`head`, `stem`)."""
    parts = path.split(".")
    for index, part in enumerate(parts[:-1]):
        if parts[index + 1].isdecimal() and part not in ("shortcut", "head"):
            return f"L{int(parts[index + 1]) + 1}"
    return "head" if parts[0] in ("head", "fc", "classifier", "linear") else "stem" if len(parts) == 1 else parts[0]


def read_nets(arguments: Sequence[str]) -> dict[str, list[Layer]]:
    """Label -> layers, for checkpoints given as PATH or NAME=PATH; without a name the run's, or the network's.

    Raises:
        UserError: two of one name, no such file, or not a checkpoint of smallnets.
        RunError: a file that is cut short or damaged.
    """
    found: dict[str, list[Layer]] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        # A file whose own name holds a `=`, as those of studies do, is no named one.
        named = bool(equals) and not Path(argument).is_file()
        subject = read_subject(path if named else argument)
        label = name if named else _label(subject)
        if label in found:
            raise UserError(f"--figure layers: two checkpoints are called {label!r}: give them names, NAME=PATH")
        found[label] = layers_of(subject.stored, subject.image_size, subject.in_channels)
    return found


def _label(subject: Subject) -> str:
    folder = RunFolder.owning(subject.checkpoint)
    return f"{folder.name}/{folder.run}" if folder else subject.checkpoint.stem


def aligned(nets: dict[str, list[Layer]]) -> list[Layer]:
    """One layer for each path that some network has, in order: those of the first, others behind what they follow."""
    order: list[Layer] = []
    for layers in nets.values():
        place = -1
        for layer in layers:
            index = next((i for i, each in enumerate(order) if each.layer == layer.layer), None)
            if index is None:
                index = place + 1
                order.insert(index, layer)
            place = index
    return order


@dataclass(frozen=True)
class LayersFigure:
    """One figure over the layers of several networks; a layer that a network lacks stands at 0.

    Args:
        nets: label -> layers (`layers_of`).
        show: `filters`, lines, figure 1 of document 004; or `parameters`, bars, figure 2, with a broken axis where few
            layers are far larger than the others; or `nonzero_parameters`, bars too, for networks with masks.
    """

    nets: dict[str, list[Layer]]
    show: str = "filters"

    def frame(self) -> pd.DataFrame:
        """A line for each network and layer, in the order of the layers."""
        lines = []
        for place, layer in enumerate(aligned(self.nets), 1):
            for net, layers in self.nets.items():
                own = next((each for each in layers if each.layer == layer.layer), None)
                counts = ("filters", "parameters", "nonzero_parameters", "macs")
                lines.append(
                    {
                        "net": net,
                        "place": place,
                        "layer": layer.layer,
                        "label": layer.label,
                        "stage": layer.stage,
                        "kind": (own or layer).kind,
                        **{name: getattr(own, name) if own else 0 for name in counts},
                        "there": own is not None,
                    }
                )
        return pd.DataFrame(lines)

    def plot(self) -> Any:
        """The chart; its shading shows the stages. A broken axis is two panels, one above the other."""
        frame = self.frame()
        low, high = (None, None) if self.show == "filters" else _broken(frame[self.show].tolist())
        if high is None:
            return self._panel(frame, None, "both").properties(width=_LONG, height=260)
        upper = self._panel(frame, high, "upper").properties(width=_LONG, height=70)
        lower = self._panel(frame, low, "lower").properties(width=_LONG, height=220)
        return alt.vconcat(upper, lower, spacing=4).properties(title=alt.Title("the axis is broken", fontSize=11))

    def _panel(self, frame: pd.DataFrame, domain: tuple[float, float] | None, part: str) -> Any:
        names, bottom, top = list(self.nets), part != "upper", part != "lower"
        look = alt.Axis(labelAngle=-90, labelOverlap=False, labelFontSize=9) if bottom else None
        x = alt.X("label:N", sort=list(dict.fromkeys(frame["label"])), axis=look, title="layer" if bottom else None)
        scale = alt.Scale(domain=list(domain), nice=False) if domain else alt.Undefined
        title = (_TITLES.get(self.show) or self.show) if bottom else None
        y = alt.Y(f"{self.show}:Q", title=title, scale=scale, axis=alt.Axis(format="~s", tickCount=5 if bottom else 2))
        tip: list[Any] = ["net:N", "layer:N", "kind:N", alt.Tooltip(f"{self.show}:Q", format=",")]
        tint = colour("net", names) if top else colour("net", names).legend(None)
        base = alt.Chart(frame).encode(x=x, y=y, color=tint, tooltip=tip)
        if self.show == "filters":
            marks = base.mark_line(interpolate="step", strokeWidth=2, opacity=0.85).encode(strokeDash=_dash(names))
        else:
            marks = base.mark_bar(clip=True).encode(xOffset=alt.XOffset("net:N", sort=names))
        layers = [_shading(frame, x), marks, *([_stage_names(frame, x)] if top else [])]
        return alt.layer(*layers).resolve_scale(color="independent")


def _shading(frame: pd.DataFrame, x: alt.X) -> alt.Chart:
    stages = frame.drop_duplicates("label")[["label", "stage"]]
    order = list(dict.fromkeys(stages["stage"]))
    stages = stages.assign(odd=[order.index(stage) % 2 for stage in stages["stage"]])
    scale = alt.Scale(range=["#f4f4f4", "#e4e4e4"], domain=[0, 1])
    shade = alt.Color("odd:O", scale=scale, legend=None)
    return alt.Chart(stages).mark_rect().encode(x=x, color=shade, tooltip=["label:N", "stage:N"])


def _stage_names(frame: pd.DataFrame, x: alt.X) -> alt.Chart:
    """Each stage's name over its middle layer."""
    stages = frame.drop_duplicates("label")[["label", "stage"]]
    middle = [group.iloc[len(group) // 2] for _, group in stages.groupby("stage", sort=False)]
    text = alt.Chart(pd.DataFrame(middle)).mark_text(fontSize=11, color="#666")
    return text.encode(x=x, y=alt.value(10), text="stage:N")


def _dash(names: list[str]) -> alt.StrokeDash:
    dashes = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
    return alt.StrokeDash(
        "net:N",
        sort=names,
        legend=None,
        scale=alt.Scale(domain=names, range=[dashes[i % 4] for i in range(len(names))]),
    )


def _broken(values: list[int]) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Domains below and above the break: of the widest gap, if that is two fifths of the largest value or more."""
    known = sorted({0, *values})
    gap, below, above = max(((b - a, a, b) for a, b in pairwise(known)), default=(0, 0, 0))
    if below == 0 or gap < 0.4 * known[-1]:
        return (0.0, 1.05 * known[-1]), None
    return (0.0, 1.08 * below), (above - 0.02 * known[-1], 1.01 * known[-1])
