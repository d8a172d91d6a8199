"""`RemainingFigure`: accuracy against the share of the real network's weights, of a network and its other forms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt
import pandas as pd

from smallnets.report.crossing import Curve, compare, curve, in_words
from smallnets.report.figures import colour
from smallnets.report.forms import REAL
from smallnets.report.lottery import Lottery, crossings, height

# Dashes of the forms, in the order in which they appear: the real network's line is solid, as in document 003.
_DASHES = ([1, 0], [2, 3], [8, 4], [8, 3, 2, 3])
Against = Literal["remaining", "parameters"]


@dataclass(frozen=True)
class Family:
    """A real network's lottery and those of its other forms on the same data.

    Attributes:
        name: of the real network.
        real: its lottery, whose weights are the 100 %.
        forms: label (`quaternion`, `narrow`, the real network's too) -> lottery; cells of one form go by their names.
    """

    name: str
    real: Lottery
    forms: Mapping[str, Lottery]

    def curves(self) -> dict[str, Curve]:
        """Label -> mean accuracy at each share of the real network's weights."""
        return {label: curve(lottery, self.real.weights) for label, lottery in self.forms.items()}


def families(lotteries: Sequence[Lottery]) -> list[Family]:
    """The real networks among the lotteries that have another form beside them, each with its forms."""
    groups: dict[tuple[str, str], list[Lottery]] = {}
    for lottery in lotteries:
        if lottery.form is not None and lottery.points:
            groups.setdefault((lottery.form.shape, lottery.form.data), []).append(lottery)
    found = []
    for group in groups.values():
        kinds = [lottery.form.kind for lottery in group if lottery.form]
        if REAL not in kinds or len(set(kinds)) < 2:
            continue
        labels = [kind if kinds.count(kind) == 1 else each.name for kind, each in zip(kinds, group, strict=True)]
        real = group[kinds.index(REAL)]
        assert real.form is not None
        found.append(Family(real.form.name, real, dict(zip(labels, group, strict=True))))
    return found


def sentences(found: Sequence[Family]) -> list[str]:
    """Of each family, for its quaternion and narrower forms: where they cross the real one's line, and each other's."""
    said = []
    for family in found:
        curves, labels = family.curves(), list(family.forms)
        first = next(label for label in labels if family.forms[label] is family.real)
        for number, label in enumerate(labels):
            for other in [first, *[each for each in labels[number + 1 :] if each != first]] if label != first else []:
                said.append(in_words(family.name, label, other, compare(curves[label], curves[other])))
    return said


def remaining_table(found: Sequence[Family]) -> list[list[str]]:
    """A header and a line for each network, form and density, shares and accuracies in percent."""
    lines = [["network", "form", "own density", "of the real one", "parameters", "n", "accuracy (%) ± sd"]]
    for line in RemainingFigure(found, against="parameters").frame().to_dict("records"):
        mean = f"{100 * line['mean']:.2f}" + ("" if pd.isna(line["sd"]) else f" ± {100 * line['sd']:.2f}")
        shares = [f"{100 * line[name]:.3g} %" for name in ("density", "remaining")]
        lines.append([line["network"], line["form"], *shares, f"{line['parameters']:,.0f}", f"{line['n']:.0f}", mean])
    return lines


@dataclass(frozen=True)
class RemainingFigure:
    """Lines of mean accuracy with the band of one standard deviation, all against one real network's weights.

    The axis is document 003's: halvings, reversed; a quaternion network's line begins at about 25 %. Against
    `parameters` it is millions of parameters that are not removed, those without masks among them.

    Args:
        families: whose lines are shown.
        metric: the figure's name, for the axis.
        stated: points of documents, faint: mappings with `series` (`resnet18 quaternion`: a family and a label take
            the same colour and dash), `remaining` (share of 1 of the real network's weights) and `accuracy`. Against
            parameters they are that share of the family's real network's, as document 003 draws them.
        against: `remaining` or `parameters`.
    """

    families: Sequence[Family]
    metric: str = "val_accuracy"
    stated: Sequence[Mapping[str, Any]] = field(default_factory=list)
    against: Against = "remaining"

    def frame(self) -> pd.DataFrame:
        """A line for each network, form and density: n seeds, mean, sd; with another `source` than "measured",
        stated points and crossings with the real network's line.
        """
        lines: list[dict[str, Any]] = []
        for family in self.families:
            curves = family.curves()
            for label, lottery in family.forms.items():
                whole = lottery.parameters - lottery.weights
                who = {"network": family.name, "form": label, "lottery": lottery.name, "source": "measured"}
                for point in curves[label].points:
                    spread = point.sd or 0.0
                    about = {"density": point.density, "remaining": point.remaining, "n": point.n, "mean": point.mean}
                    size = {"sd": point.sd, "parameters": whole + point.density * lottery.weights}
                    band = {"band_low": point.mean - spread, "band_high": point.mean + spread}
                    lines.append({**who, **about, **size, **band})
            lines += self._crossed(family, curves)
        lines += [line for each in self.stated if (line := self._stated(each)) is not None]
        columns = ["network", "form", "lottery", "density", "remaining", "parameters", "n", "mean", "sd"]
        return pd.DataFrame(lines, columns=[*columns, "band_low", "band_high", "source"])

    def _crossed(self, family: Family, curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
        if self.against != "remaining":
            return []
        real = next(label for label, lottery in family.forms.items() if lottery is family.real)
        line = curves[real].line
        return [
            {"network": family.name, "form": label, "remaining": x, "mean": height(line, x), "source": "crossing"}
            for label, other in curves.items()
            for x in (crossings(other.line, line) if label != real else [])
        ]

    def _stated(self, point: Mapping[str, Any]) -> dict[str, Any] | None:
        series, share = str(point["series"]), float(point["remaining"])
        about = {"remaining": share, "mean": float(point["accuracy"]), "source": "stated"}
        for family in self.families:
            if series.startswith(f"{family.name} "):
                form = series.removeprefix(f"{family.name} ")
                return {"network": family.name, "form": form, "parameters": share * family.real.parameters, **about}
        return {"network": "stated", "form": series, **about} if self.against == "remaining" else None

    def plot(self) -> Any:
        frame = self.frame()
        frame["millions"] = frame["parameters"] / 1e6
        frame["line"] = frame["network"] + " " + frame["form"]
        shown = frame["millions"] if self.against == "parameters" else frame["remaining"]
        scale = alt.Scale(
            type="log", base=2, reverse=True, domain=[shown.min() / 1.1, max(shown.max(), 1e-9)], nice=False
        )
        if self.against == "parameters":
            x = alt.X("millions:Q", scale=scale, title="millions of parameters left", axis=alt.Axis(format=".2~g"))
        else:
            ticks = [0.5**n for n in range(40) if 0.5**n >= shown.min() / 1.1]
            axis = alt.Axis(format=".3~p", values=ticks, grid=True)
            x = alt.X("remaining:Q", scale=scale, title="of the real network's weights", axis=axis)
        y = alt.Y("mean:Q", title=self.metric, scale=alt.Scale(zero=False), axis=alt.Axis(format=".3~p"))
        networks, forms = (list(dict.fromkeys(frame[name])) for name in ("network", "form"))
        # One colour a network, as document 003 draws them; one a form where there is one network.
        tint = colour("network", networks) if len(networks) > 1 else colour("form", forms)
        dashes = alt.Scale(domain=forms, range=[_DASHES[i % len(_DASHES)] for i in range(len(forms))])
        dash = alt.StrokeDash("form:N", scale=dashes, title="")
        tip: list[Any] = [
            "line:N", alt.Tooltip("remaining:Q", format=".3%"), alt.Tooltip("parameters:Q", format=",.0f"),
            alt.Tooltip("mean:Q", format=".2%"), "n:Q",
        ]  # fmt: skip
        measured = alt.Chart(frame[frame["source"] == "measured"]).encode(x=x, color=tint, detail="line:N", tooltip=tip)
        layers = [
            measured.mark_area(opacity=0.15).encode(y=alt.Y("band_low:Q"), y2="band_high"),
            measured.mark_line().encode(y=y, strokeDash=dash),
            measured.mark_point(filled=True, size=25, opacity=0.9).encode(y=y),
        ]
        if len(stated := frame[frame["source"] == "stated"]):
            faint = alt.Chart(stated).encode(x=x, y=y, color=tint, detail="line:N", tooltip=tip[:4])
            layers += [faint.mark_line(opacity=0.25).encode(strokeDash=dash)]
            layers += [faint.mark_point(opacity=0.35, filled=False, size=25)]
        if len(crossed := frame[frame["source"] == "crossing"]):
            cross = alt.Chart(crossed).mark_point(shape="cross", size=110, color="black", filled=True)
            layers.append(cross.encode(x=x, y=y, tooltip=tip[:4]))
        return alt.layer(*layers).properties(width=600, height=360)
