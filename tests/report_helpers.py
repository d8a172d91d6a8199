"""Folders of rows as runs leave them, without any run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def row(name: str, run: str, seed: int, accuracy: float | None, **more: Any) -> dict[str, Any]:
    """A finished run's row; settings in `config` as `fit` writes them."""
    config = {
        "name": name,
        "seed_everything": seed,
        "model": {"net": {"class_path": "Net"}, "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}}},
    }
    return {
        "schema": 1, "name": name, "run": run, "status": "finished", "error": None, "net": "Net", "data": "CIFAR10",
        "num_classes": 10, "parameters": 1000, "nonzero_parameters": 1000, "macs": 5000, "bytes": 4096, "seed": seed,
        "val_accuracy": accuracy, "test_accuracy": None, "test_reads": 0, "test_size": None, "epochs": 20,
        "config": config, **more,
    }  # fmt: skip


def put(folder: Path, row: dict[str, Any]) -> Path:
    """Writes a row into its run's folder under `folder`."""
    path = folder / row["run"] / "row.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))
    return path


def study(folder: Path, cells: dict[str, dict[str, Any]], seeds: Sequence[int], **plan: Any) -> Path:
    """A study's folder with its plan: cells are name -> axes. Each is its own digest, `<index>` in eight digits."""
    planned = [
        {"cell": name, "axes": axes, "digest": f"{index:08x}", "settings": {}, "arguments": []}
        for index, (name, axes) in enumerate(cells.items())
    ]
    about = {"schema": 1, "name": folder.name, "asks": "Which one?", "seeds": list(seeds), "stated": {}, "excluded": {}}
    (folder / "study" / "runs").mkdir(parents=True)
    (folder / "study" / "plan.json").write_text(json.dumps({**about, "cells": planned, **plan}))
    return folder


def in_study(folder: Path, cell: str, seed: int, accuracy: float | None, **more: Any) -> dict[str, Any]:
    """Puts a row of a study's cell; returns it."""
    plan = json.loads((folder / "study" / "plan.json").read_text())
    digest = next(each["digest"] for each in plan["cells"] if each["cell"] == cell)
    made = row(folder.name, f"{cell}-seed{seed}-{digest}", seed, accuracy, **more)
    put(folder, made)
    return made


def lottery_record(accuracies: Sequence[float], fraction: float = 0.5, total: int = 1000) -> dict[str, Any]:
    """What `LotteryTicket` leaves of a dense training and rounds that each keep 1 - `fraction` of what is left."""
    rounds, kept = [], total
    for number, accuracy in enumerate(accuracies):
        kept = kept if number == 0 else kept - int(fraction * kept)
        rounds.append(
            {"round": number, "kept": kept, "total": total, "density": kept / total, "epochs": 10,
             "val_accuracy": accuracy - 0.01, "val_accuracy_best": accuracy, "layers": {}}
        )  # fmt: skip
    plan = {"rounds": len(accuracies) - 1, "criterion": "magnitude", "scope": "global", "rewind": "weights"}
    return {"callback": "LotteryTicket", "plan": plan, "rounds": rounds}


def control_record(control: str, density: float, from_round: str, number: int, total: int = 1000) -> dict[str, Any]:
    """What `LotteryControl` leaves."""
    kept = round(density * total)
    about = {"round": number, "mask_seed": 0, "kept": kept, "total": total, "density": density, "layers": {}}
    return {"callback": "LotteryControl", "control": control, "from_round": from_round, **about}


def write_curve(folder: Path, run: str, **columns: Sequence[float | None]) -> None:
    """A run's `metrics.csv`: the rate at step 0, then a row an epoch; `val_loss` is the column `val/loss`."""
    names = {name: name.replace("_", "/", 1) for name in columns}
    lines = [",".join(["epoch", "step", "lr-SGD", *names.values()]), ",".join(["", "0", "0.1", *[""] * len(names)])]
    for epoch, values in enumerate(zip(*columns.values(), strict=True)):
        lines.append(",".join([str(epoch), str(10 * epoch + 9), "", *("" if v is None else str(v) for v in values)]))
    (folder / run / "metrics.csv").write_text("\n".join(lines) + "\n")
