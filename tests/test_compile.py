"""`--model.compile`, and what is said of bfloat16 on a CPU that has no units for it."""

import functools
import types

import pytest
import torch
from test_interruption import checkpoint, equal

import smallnets
from smallnets.cli import main
from smallnets.data import chunks
from smallnets.training import precision

pytestmark = pytest.mark.filterwarnings("default::smallnets.callbacks.HealthWarning")


def last(here, name):
    return checkpoint(here / f"lightning_logs/{name}/run-1/checkpoints/last.ckpt")


def near(a, b):
    return all(torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-4) for key in a)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_network_trains_as_it_does_and_is_stored_as_itself(here, tiny, own, monkeypatch, backend):
    """In both modes. `aot_eager` traces forward and backward and makes no machine code: seconds instead of a minute."""
    monkeypatch.setattr(chunks, "STEPS", 2)
    calls = []

    def compiled(net, **options):
        made = torch_compile(net, backend=backend, **options)
        calls.append(made)
        return made

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    run = [*tiny("fit", "--data.batch_size=50", net="own_nets.Net"), "--model.net.drop=0.0"]
    more = {"plain": [], "compiled": ["--model.compile=true"]}
    more["fast"] = [*more["compiled"], "--model.fast=true"]
    for name, options in more.items():
        torch.compiler.reset()
        assert main([*run, f"--name={name}", *options]) == 0
    assert len(calls) == 2
    plain, once, fast = (last(here, name) for name in more)
    # No step is done by the network itself, or the compiled forward would have been left out.
    assert plain["state_dict"].keys() == once["state_dict"].keys()
    assert near(plain["state_dict"], once["state_dict"])
    assert equal(once["state_dict"], fast["state_dict"]) and equal(once["optimizer_states"], fast["optimizer_states"])
    net = smallnets.load(here / "lightning_logs/fast/run-1/checkpoints/last.ckpt")
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_compiled_network_is_the_one_that_is_called(monkeypatch):
    from smallnets.training import Classifier

    monkeypatch.setattr(torch, "compile", lambda net: functools.partial(lambda n, images: n(images) + 1, net))
    net = torch.nn.Flatten()
    images = torch.zeros(2, 1, 2, 2)
    assert torch.equal(Classifier(net, compile=True)(images), torch.ones(2, 4))
    assert torch.equal(Classifier(net)(images), torch.zeros(2, 4))


@pytest.mark.parametrize(("units", "asked"), [(False, "bf16-mixed"), (True, "bf16-mixed"), (False, "32-true")])
@pytest.mark.filterwarnings("default:.*this CPU has no units for bfloat16")
def test_bfloat16_without_units_for_it_is_named_once(here, tiny, monkeypatch, capsys, units, asked):
    monkeypatch.setattr(precision, "has_bf16_units", lambda: units)
    assert main(tiny("fit", f"--trainer.precision={asked}", "--trainer.max_epochs=1")) == 0
    told = capsys.readouterr().err.count("precision=bf16-mixed: this CPU has no units for bfloat16")
    assert told == (not units and asked == "bf16-mixed")


@pytest.mark.parametrize(("machine", "units", "expected"), [
    ("x86_64", (False, False), False), ("x86_64", (True, False), True), ("x86_64", (False, True), True),
    ("riscv64", (False, False), True),
])  # fmt: skip
def test_units_of_a_processor(monkeypatch, machine, units, expected):
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units[0])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units[1])
    assert precision.has_bf16_units() is expected
    told = precision.slow_precision(torch.device("cpu"), "bf16-true")
    assert (told is None) is expected
    assert precision.slow_precision(torch.device("cuda"), "bf16-true") is None


@pytest.mark.parametrize(("built_in", "units"), [(False, None), (True, True), (True, False)])
def test_units_of_an_arm_processor_are_asked_of_onednn_where_it_is_built_in(monkeypatch, built_in, units):
    monkeypatch.setattr(precision.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: built_in)
    # A build without oneDNN has no such operator: AttributeError.
    operators = types.SimpleNamespace(**({"_is_mkldnn_bf16_supported": lambda: units} if built_in else {}))
    monkeypatch.setattr(torch.ops, "mkldnn", operators)
    assert precision.has_bf16_units() is (units is not False)
    assert (precision.slow_precision(torch.device("cpu"), "bf16-mixed") is None) is (units is not False)
