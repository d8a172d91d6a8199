"""Latencies: the figures of known seconds, turns, threads; and files side by side in `smallnets bench`."""

import json
from pathlib import Path

import pytest
import torch

from smallnets.measure.latency import Latency, latencies, latency_of, torch_threads


def test_median_and_95th_percentile() -> None:
    assert latency_of([float(n) for n in range(100, 0, -1)]) == Latency(50.5, 95.0, 100)
    assert latency_of([3.0, 1.0, 2.0]) == Latency(2.0, 3.0, 3)
    assert latency_of([7.0]) == Latency(7.0, 7.0, 1)


def test_sides_are_called_by_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    seconds = latencies({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert [len(of) for of in seconds.values()] == [3, 3]
    assert all(each >= 0 for of in seconds.values() for each in of)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


def test_bench_of_a_checkpoint_and_its_exported_file(here: Path, tiny, capsys: pytest.CaptureFixture[str]) -> None:
    from smallnets.cli import main
    from smallnets.compress import read_subject, to_file

    assert main(tiny("fit", "--trainer.max_epochs=1")) == 0
    (best,) = here.glob("lightning_logs/*/*/checkpoints/best.ckpt")
    subject = read_subject(best)
    to_file(subject.net, "a.pt2", subject.shape, "pt2")
    to_file(subject.net, "b.pt2", subject.shape, "pt2", "bf16")
    capsys.readouterr()
    command = ["bench", "--quick", "--device=cpu", f"--ckpt={best}", "--ckpt=a.pt2", "--ckpt=b.pt2"]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["name"], row["a"], row["b"]) for row in rows] == [
        (f"batch {batch}", str(best), other) for batch in (1, 32) for other in ("a.pt2", "b.pt2")
    ]
    assert all(row["median_a_seconds"] > 0 and row["ratio"] > 0 for row in rows)
    assert main(command) == 0
    assert capsys.readouterr().out.count("batch 32: ") == 2

    for wrong, message in (
        (["--ckpt=a.pt2", "--ckpt=a.pt2"], "names a file twice"),
        (["--ckpt=a.pt2", "--only=fit"], "exclude each other"),
        (["--ckpt=c.pt2"], "no exported file at c.pt2"),
        (["--ckpt=c.ckpt"], "no checkpoint at c.ckpt"),
        ([f"--ckpt={best}", "--save"], "--save goes with --ckpt and without --quick"),
    ):
        assert main(["bench", "--quick", "--device=cpu", *wrong]) == 2
        error = capsys.readouterr().err.splitlines()
        assert message in error[-1] and len(error) == 1


def test_bench_keeps_a_latency_beside_the_row(here: Path, tiny, capsys: pytest.CaptureFixture[str]) -> None:
    from smallnets.bench.machine import describe_machine
    from smallnets.cli import main
    from smallnets.results import rows

    for width in (12, 14):
        assert main(tiny("fit", "--trainer.max_epochs=1", f"--model.net.hidden_widths=[{width}]", "--name=l")) == 0
    best = [str(here / f"lightning_logs/l/run-{n}/checkpoints/best.ckpt") for n in (1, 2)]
    assert all("latency_ms" not in row for row in rows(here / "lightning_logs/l"))
    command = ["bench", "--device=cpu", "--repeats=3", "--json", "--save"]
    assert main([*command, *(f"--ckpt={path}" for path in best)]) == 0
    shown = capsys.readouterr().out
    first = next(row for row in json.loads(shown[shown.index("{") :])["rows"] if row["name"] == "batch 1")
    found = rows(here / "lightning_logs/l")
    cpu = describe_machine(torch.device("cpu"))["cpu"]
    assert [row["latency_machine"] for row in found] == [f"{cpu}, 1 thread"] * 2
    seconds = [first["median_a_seconds"], first["median_b_seconds"]]
    assert [row["latency_ms"] for row in found] == [1e3 * each for each in seconds]
    kept = json.loads((here / "lightning_logs/l/run-1/latency.json").read_text())
    assert kept["checkpoint"] == "best.ckpt" and kept["rounds"] == 3 and kept["measured_on"]["cpu"] == cpu

    assert main([*command, "--ckpt=a.pt2"]) == 2
    assert "a.pt2 is no checkpoint in a run's folder" in capsys.readouterr().err
    (here / "lightning_logs/l/run-1/latency.json").write_text("{")
    told: list[str] = []
    found = rows(here / "lightning_logs/l", on_problem=told.append)
    assert ["latency_ms" in row for row in found] == [False, True] and "latency.json is damaged" in told[0]
