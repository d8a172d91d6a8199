"""The lines of docs/clusters.md, run by a shell with stand-ins for the cluster's programs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from smallnets.verbs.resolve import FitResolver
from smallnets.verbs.study import _parser

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/clusters.md").read_text(), re.DOTALL)

# Each writes down what it was called with, and does what a cluster would: start the rest of its line, perhaps often.
PROGRAM = """#!{python}
import json, os, subprocess, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
gpu, task = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("SLURM_ARRAY_TASK_ID")
with open("calls.jsonl", "a") as file:
    file.write(json.dumps([name, words, gpu, task]) + "\\n")
if name == "smallnets" and words[:2] == ["study", "commands"]:
    print("\\n".join(f"smallnets fit --config {{n}}.yaml" for n in "abc"))
if name == "srun":
    sys.exit(subprocess.call(words))
if name == "torchrun":
    sys.exit(subprocess.call(words[words.index("--no-python") + 1:]))
if name == "sbatch":
    first, last = next(w for w in words if w.startswith("--array=")).partition("=")[2].split("-")
    for task in range(int(first), int(last) + 1):
        env = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}}
        subprocess.check_call(["bash", "-c", words[words.index("--wrap") + 1]], env=env)
"""

Call = tuple[str, list[str], str | None, str | None]


@pytest.fixture
def shell(here: Path):
    """Runs a block and returns the calls of its programs."""
    (here / "bin").mkdir()
    for name in ("smallnets", "srun", "sbatch", "torchrun", "ray"):
        (here / "bin" / name).write_text(PROGRAM.format(python=sys.executable))
        (here / "bin" / name).chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "SLURM_ARRAY_TASK_ID")}
    env["PATH"] = f"{here / 'bin'}:{env['PATH']}"

    def run(block: str) -> list[Call]:
        calls = here / "calls.jsonl"
        calls.write_text("")
        subprocess.run(["bash", "-euc", block + "\nwait"], env=env, cwd=here, check=True, timeout=60)
        return [tuple(json.loads(line)) for line in calls.read_text().splitlines()]

    return run


def block(word: str) -> str:
    (found,) = (each for each in BLOCKS if word in each)
    return found


def of(calls: list[Call], name: str) -> list[Call]:
    return [call for call in calls if call[0] == name]


@pytest.mark.parametrize("program", ["srun", "torchrun"])
def test_one_network_on_several_machines(shell, program):
    calls = of(shell(block(program)), "smallnets")
    ((_, (verb, *arguments), _, _),) = calls
    assert verb == "fit"
    config = arguments[arguments.index("--config") + 1]
    trainer = FitResolver().settings([str(ROOT / config) if word == config else word for word in arguments])["trainer"]
    assert (trainer["num_nodes"], str(trainer["devices"]), trainer["strategy"]) == (2, "4", "ddp")


def test_an_array_of_workers(shell):
    calls = of(shell(block("study work study.yaml --storage=$URL")), "smallnets")
    options = [_parser().parse(words[1:]) for _, words, _, _ in calls]
    assert sorted(each.action for each in options) == ["run"] + ["work"] * 8
    assert {each.storage for each in options} == {"postgresql://me@host/studies"}
    assert sorted(task for *_, task in calls if task) == list("12345678")


def test_several_workers_on_each_gpu(shell):
    calls = of(shell(block("CUDA_VISIBLE_DEVICES")), "smallnets")
    assert sorted(gpu for _, _, gpu, _ in calls) == ["0"] * 4 + ["1"] * 4
    assert all(_parser().parse(words[1:]).action == "work" for _, words, _, _ in calls)


def test_workers_on_ray(shell):
    calls = shell(block("--on=ray"))
    assert [words[0] for _, words, _, _ in of(calls, "ray")] == ["start"] * 2
    ((_, words, _, _),) = of(calls, "smallnets")
    options = _parser().parse(words[1:])
    assert (options.on, options.address, options.workers, options.gpus_per_worker) == ("ray", "HOST:6379", 8, 0.25)


def test_a_line_a_task(shell):
    calls = of(shell(block("study commands")), "smallnets")
    assert [(words[-1], task) for _, words, _, task in calls] == [
        ("study.yaml", None), ("a.yaml", "1"), ("b.yaml", "2"), ("c.yaml", "3"),
    ]  # fmt: skip


def test_every_block_is_tried_above():
    assert len(BLOCKS) == 6
