"""`mask_overlap`: how much of their masks the tickets of different seeds share at each round, beside chance."""

import math
import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from smallnets.errors import UserError
from smallnets.pruning.connectivity import overlap
from smallnets.pruning.masks import Masks
from smallnets.report.collect import Results
from smallnets.report.lottery import records
from smallnets.results.load import CHECKPOINT_KEY

COLUMNS = ["cell", "round", "density", "seeds", "pairs", "jaccard", "lowest", "highest", "chance"]
# What torch raises of a file that is cut short, is another's, or has no masks.
_DAMAGED = (RuntimeError, OSError, EOFError, ValueError, TypeError, KeyError, pickle.UnpicklingError)
ABOUT = (
    "Jaccard similarity of the tickets' masks of two seeds, mean over the pairs of seeds; chance: what random masks of"
    " the same counts in each layer would have. Of the rounds whose checkpoints are there."
)


def mask_overlap(results: Results) -> tuple[pd.DataFrame, list[str]]:
    """A line for each lottery and round that two seeds or more have a checkpoint of, and one for each damaged file.

    `jaccard` is the mean over `pairs` of seeds, `lowest` and `highest` those of single pairs, `chance` the mean of what
    `smallnets.pruning.connectivity.overlap` expects of random masks. Checkpoints are mapped, not read: of each only the
    masks, and of one round at a time.
    """
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    for cell in results.cells:
        files: dict[int, dict[int, Path]] = {}
        for row in cell.rows:
            for record in records(row, "LotteryTicket"):
                for each in record.get("rounds") or []:
                    path = Path(str(row.get("folder"))) / str(each.get("checkpoint"))
                    if each["round"] > 0 and path.is_file() and row.get("seed") is not None:
                        files.setdefault(each["round"], {})[row["seed"]] = path
        for number, by_seed in sorted(files.items()):
            masks = {}
            for seed, path in sorted(by_seed.items()):
                try:
                    masks[seed] = _masks(path)
                except _DAMAGED as error:
                    problems.append(f"overlap of masks: {path} is damaged: {(str(error).splitlines() or ['?'])[0]}")
            try:
                found = [overlap(a, b) for a, b in combinations(masks.values(), 2)]
            except UserError as error:
                problems.append(f"overlap of masks: {cell.name}, round {number}: {error}")
                continue
            if found:
                alike = [each.jaccard for each in found]
                density = math.fsum(each.density for each in masks.values()) / len(masks)
                who = {"cell": cell.name, "round": number, "density": density, "seeds": len(masks), "pairs": len(found)}
                mean = {"jaccard": math.fsum(alike) / len(found), "lowest": min(alike), "highest": max(alike)}
                lines.append({**who, **mean, "chance": math.fsum(each.chance for each in found) / len(found)})
    return pd.DataFrame(lines, columns=COLUMNS), problems


def overlap_table(frame: pd.DataFrame) -> list[list[str]]:
    """A header and a line a round, as texts."""
    table = [["cell", "round", "density", "seeds", "overlap (lowest to highest pair)", "by chance"]]
    for line in frame.to_dict("records"):
        own = f"{line['jaccard']:.3f} ({line['lowest']:.3f} to {line['highest']:.3f})"
        who = [line["cell"], f"{line['round']:.0f}", f"{100 * line['density']:.3g} %", f"{line['seeds']:.0f}"]
        table.append([*who, own, f"{line['chance']:.3f}"])
    return table


def _masks(path: Path) -> Masks:
    """The masks in a checkpoint, without reading the rest of it."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return Masks.from_state_dict(checkpoint[CHECKPOINT_KEY]["masks"])
