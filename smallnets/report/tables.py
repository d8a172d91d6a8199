"""`ResultTable`: a line for each cell: mean, deviation, interval, difference to a baseline, stated value, flags."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from smallnets.report.collect import Results
from smallnets.report.flags import flags, unequal_tuning
from smallnets.report.stats import difference, holm, summary

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class ResultTable:
    """All cells of `results` by one figure.

    Differences to the baseline are paired by seed; their p values, of the paired t test, are adjusted for the number
    of cells that are compared (Holm). Runs that failed are in no mean, and in the flags.

    Args:
        results: what `collect` found.
        metric: a figure of the row.
        baseline: name of the cell to compare with; None for no comparison.
        limits: count -> the most that is allowed, for the flags.
    """

    results: Results
    metric: str = "val_accuracy"
    baseline: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """A line a cell; accuracies are shares of 1; what is not known is missing, `flags` are joined by semicolons."""
        base = self.results.cell(self.baseline) if self.baseline is not None else None
        cells = self.results.cells
        found = {
            cell.name: difference(cell.values(self.metric), base.values(self.metric))
            for cell in cells
            if base is not None and cell is not base
        }
        p_values = dict(zip(found, holm([d.p if d else None for d in found.values()]), strict=True))
        tuning = unequal_tuning(cells)
        lines = []
        for cell in cells:
            told = [*flags(cell, base, self.metric, self.limits), *([tuning[cell.name]] if cell.name in tuning else [])]
            about, less = summary(list(cell.values(self.metric).values())), found.get(cell.name)
            stated = cell.stated.get(self.metric)
            lines.append(
                {
                    "cell": cell.name,
                    "n": about.n if about else 0,
                    "mean": about.mean if about else None,
                    "sd": about.sd if about else None,
                    "low": about.low if about else None,
                    "high": about.high if about else None,
                    "pairs": less.pairs if less else None,
                    "difference": less.mean if less else None,
                    "difference_low": less.low if less else None,
                    "difference_high": less.high if less else None,
                    "p": less.p if less else None,
                    "p_adjusted": p_values.get(cell.name),
                    "p_wilcoxon": less.p_wilcoxon if less else None,
                    "seeds_needed": less.seeds_needed if less else None,
                    "stated": stated,
                    "to_stated": about.mean - stated if about and stated is not None else None,
                    **{name: cell.mean(name) for name in ("parameters", "macs", "bytes")},
                    "flags": "; ".join(told),
                }
            )
        return pd.DataFrame(lines)

    def shown(self) -> list[list[str]]:
        """A header and a line a cell, as texts: accuracies in percent; an empty cell says so."""
        frame = self.frame()
        stated = bool(frame["stated"].notna().any())
        percent = is_share(self.metric)
        signed_rank = bool(frame["p_wilcoxon"].notna().any())
        header = ["cell", "n", f"{self.metric}{' (%)' if percent else ''} ± sd", "95 % CI"]
        if self.baseline is not None:
            header += [
                f"less {self.baseline} (95 % CI)",
                "p (Holm)",
                *(["p (Wilcoxon)"] if signed_rank else []),
                "seeds needed",
            ]
        header += [*(["stated", "less stated"] if stated else []), "parameters", "MACs", "flags"]
        lines = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return [header, *(self._line(line, percent, stated, signed_rank) for line in lines)]

    def _line(self, line: dict[str, Any], percent: bool, stated: bool, signed_rank: bool) -> list[str]:
        # A mean of no runs was not measured; a deviation of one run is not there to be measured.
        empty = NOT_MEASURED if line["n"] == 0 else "-"
        mean = number(line["mean"], percent, empty)
        if line["sd"] is not None:
            mean += f" ± {number(line['sd'], percent, empty)}"
        texts = [line["cell"], str(line["n"]), mean, interval(line["low"], line["high"], percent, empty)]
        if self.baseline is not None:
            itself = line["cell"] == self.baseline
            compared = ["baseline", *["-"] * 3] if itself else self._compared(line, percent, empty)
            texts += compared if signed_rank else [*compared[:2], compared[3]]
        if stated:
            less = number(line["to_stated"], percent, "-" if line["stated"] is None else empty, signed=True)
            texts += [number(line["stated"], percent, "-"), less]
        return [*texts, *(number(line[k], False, empty) for k in ("parameters", "macs")), line["flags"] or "-"]

    @staticmethod
    def _compared(line: dict[str, Any], percent: bool, empty: str) -> list[str]:
        less = number(line["difference"], percent, empty, signed=True)
        if line["difference_low"] is not None:
            less += f" ({interval(line['difference_low'], line['difference_high'], percent, empty, signed=True)})"
        needed = line["seeds_needed"]
        return [
            less,
            p_value(line["p_adjusted"], empty),
            p_value(line["p_wilcoxon"], empty),
            f"{int(needed):,}" if needed is not None else "-",
        ]

    def markdown(self) -> str:
        return markdown(self.shown())

    def latex(self) -> str:
        return latex(self.shown())


def is_share(metric: str) -> bool:
    """Whether a figure is a share of 1, which tables show in percent."""
    return "accuracy" in metric


def number(value: float | None, percent: bool, empty: str, signed: bool = False) -> str:
    """A figure as text: `91.23` for a share, `11,173,962` for a count."""
    if value is None:
        return empty
    sign = "+" if signed else ""
    if percent:
        return f"{100 * value:{sign}.2f}"
    return f"{round(value):{sign},}" if float(value).is_integer() or abs(value) >= 1e5 else f"{value:{sign},.4g}"


def interval(low: float | None, high: float | None, percent: bool, empty: str, signed: bool = False) -> str:
    """`90.10 to 92.36`."""
    if low is None or high is None:
        return empty
    return f"{number(low, percent, empty, signed)} to {number(high, percent, empty, signed)}"


def p_value(p: float | None, empty: str) -> str:
    return empty if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def figure_columns(lines: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns of a table (a header and lines) hold figures, which stand to the right."""
    header, *rest = lines
    return [bool(rest) and all(_is_figure(line[i]) for line in rest) for i in range(len(header))]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    header, *rest = [[text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines]
    rule = ["---:" if figures else "---" for figures in figure_columns(lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *rest)) + "\n"


def latex(lines: Sequence[Sequence[str]]) -> str:
    """A `tabular` of the package booktabs."""
    header, *rest = [[_escaped(text) for text in line] for line in lines]
    # Behind the end of a line a bracket or a star would be read as its argument.
    rest = [[f"{{}}{first}" if first[:1] in ("[", "*") else first, *others] for first, *others in rest]
    columns = "".join("r" if figures else "l" for figures in figure_columns(lines))
    body = "\n".join(" & ".join(line) + r" \\" for line in rest)
    return (
        f"% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
        f"{' & '.join(header)} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "±": r"$\pm$", "|": r"\textbar{}", "\n": " ",
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _is_figure(text: str) -> bool:
    return text in ("-", "baseline", NOT_MEASURED) or text[:1] in "+-<0123456789"
