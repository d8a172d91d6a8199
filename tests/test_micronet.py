"""Scores: document 001's course score by its own inputs, and the MicroNet rules by hand counts."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from smallnets.errors import UserError
from smallnets.measure import count
from smallnets.measure.micronet import BASELINE_OPERATIONS, BASELINE_PARAMETERS, course_score, micronet_score
from smallnets.models import DenseNet, ViT, resnet20
from smallnets.surgery import fold
from smallnets.verbs.score import course_scores

STATED = (0, 32, 32, 198_309, 29_055_103)  # P_u, q_w, q_a, w, f of document 001


# --- the course -------------------------------------------------------------------------------------------------------


def test_the_documents_inputs_give_0_0493_and_its_stated_score_is_that_of_another_share() -> None:
    assert round(course_score(0.3, *STATED), 4) == 0.0493
    assert round(course_score(0.2, *STATED), 4) == 0.0563


def test_the_terms_one_by_one() -> None:
    assert course_score(0, 0, 32, 32, 5_600_000, 0) == 1
    assert course_score(0, 0, 32, 32, 0, 830_000_000) == 1
    assert course_score(0, 0, 32, 32, 0, 280_000_000, "corrected") == 1
    # Single zeros make nothing cheaper to compute; the operation is as wide as its widest input.
    assert course_score(0, 0.5, 32, 32, 5_600_000, 830_000_000) == 1.5
    assert course_score(0.5, 0, 32, 32, 5_600_000, 830_000_000) == 1
    assert course_score(0, 0, 8, 32, 5_600_000, 830_000_000) == 1.25
    assert course_score(0, 0, 8, 16, 5_600_000, 830_000_000) == 0.75


def test_the_undiscounted_network_and_the_corrected_baseline() -> None:
    dense = (0, 32, 32, 272_474, 40_813_184)
    assert round(course_score(0, *dense), 6) == 0.097829
    assert round(course_score(0.3, *dense), 6) == 0.068480
    assert round(course_score(0.3, *dense, "corrected"), 6) == 0.136092


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.1, 0, 32, 32, 1, 1), "p_structured is a share of 1, from 0 to 1, got 1.1"),
        ((0.6, 0.6, 32, 32, 1, 1), "p_structured + p_unstructured is at most 1, got 0.6 + 0.6"),
        ((0, 0, 0, 32, 1, 1), "weight_bits is 1 to 32, got 0"),
        ((0, 0, 32, 64, 1, 1), "activation_bits is 1 to 32, got 64"),
        ((0, 0, 32, 32, -1, 1), "parameters and macs are 0 or more, got -1 and 1"),
        ((0, 0, 32, 32, 1, 1, "old"), "baseline is one of published, corrected, got 'old'"),
    ],
)
def test_mistakes_are_told(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError) as caught:
        course_score(*arguments)
    assert str(caught.value) == message


# --- the challenge ----------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """On 3 x 2 x 2: a 1x1 convolution to 4 channels, ReLU, the average of 4 pixels, and 2 logits with bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 2)
        nn.init.ones_(self.conv.weight)
        nn.init.ones_(self.head.weight)
        nn.init.ones_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.relu(self.conv(images))).flatten(1))


def test_a_dense_network_counted_by_hand() -> None:
    found = micronet_score(Small(), image_size=2)
    layers = {layer.name: (layer.storage, layer.multiplications, layer.additions) for layer in found.layers}
    # 4 pixels x 4 filters of 3 terms: 3 multiplications, 2 additions each; 16 ReLUs; 4 averages of 4; 2 x (4, 3 + 1).
    assert layers == {"conv": (12, 48, 32), "relu": (0, 16, 0), "pool": (0, 4, 12), "head": (10, 8, 8)}
    assert (found.storage, found.multiplications, found.additions) == (22, 76, 52)
    assert found.score == 22 / BASELINE_PARAMETERS + 128 / BASELINE_OPERATIONS
    assert found.uncounted == ()


def test_a_mask_costs_a_bit_an_entry_and_zeros_are_not_multiplied() -> None:
    net = Small()
    with torch.no_grad():
        net.conv.weight[0] = 0  # a filter with nothing left adds nothing
        net.conv.weight[1, :2] = 0  # one term: no addition
    found = micronet_score(net, image_size=2)
    conv = next(layer for layer in found.layers if layer.name == "conv")
    # 7 of 12 are left: 7 values and 12 bits; at each of 4 pixels 7 multiplications and 0 + 0 + 2 + 2 additions.
    assert conv.storage == 7 + 12 / 32
    assert (conv.multiplications, conv.additions) == (28, 16)


def test_a_tensor_with_few_zeros_is_stored_dense() -> None:
    net = Small()
    with torch.no_grad():
        net.conv.weight[0, 0] = 0
    sizes = {bits: micronet_score(net, 2, weight_bits=bits).layers[0].storage for bits in (32, 1)}
    # 11 values and 12 bits are less than 12 values of 32 bits; of 1 bit, the mask alone is as much as all.
    assert sizes == {32: 11 + 12 / 32, 1: 12 / 32}


def test_operations_are_as_wide_as_their_widest_input() -> None:
    found = micronet_score(Small(), image_size=2, weight_bits=8, activation_bits=16)
    layers = {layer.name: (layer.storage, layer.multiplications, layer.additions) for layer in found.layers}
    # Weights at 8 bits, biases at 32; products at 16; sums of products at 32, the pool's at 16.
    assert layers == {"conv": (3, 24, 32), "relu": (0, 8, 0), "pool": (0, 2, 6), "head": (4, 4, 8)}
    narrow = micronet_score(Small(), image_size=2, weight_bits=8, activation_bits=8, accumulator_bits=16)
    assert (narrow.multiplications, narrow.additions) == (76 / 4, 40 / 2 + 12 / 4)


def test_batchnorm_costs_until_it_is_folded() -> None:
    net = resnet20()
    plain, folded = micronet_score(net), micronet_score(fold(net))
    # 19 + 2 BatchNorms: one multiplication a value, gone; the folded bias is the addition that stays.
    values = 16 * 1024 * 7 + 32 * 256 * 7 + 64 * 64 * 7
    assert plain.multiplications - folded.multiplications == values
    assert plain.additions == folded.additions
    relus, heads = values - 32 * 256 - 64 * 64, 64 + 0
    assert folded.multiplications == 40_813_184 + relus + heads


@pytest.mark.parametrize(
    "net",
    [
        ViT(patch_size=4, dim=16, depth=1, heads=2, mlp_dim=16, head_widths=[], image_size=8),
        DenseNet(growth_rate=4, blocks=[2, 2], stem_channels=8),
    ],
    ids=["vit", "densenet"],
)
def test_every_operation_of_the_families_has_a_rule(net: nn.Module) -> None:
    assert micronet_score(net, image_size=8).uncounted == ()


def test_an_operation_without_a_rule_is_named() -> None:
    class Sorts(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).cumsum(1)

    assert micronet_score(Sorts(), image_size=2).uncounted == ("cumsum",)


def test_the_courses_zeros_are_those_of_weights() -> None:
    """A BatchNorm's bias is 0 since its birth: of an unpruned network nothing is discounted."""
    net = resnet20()
    counts = count(net)
    assert counts.nonzero_parameters < counts.parameters
    dense = course_score(0, 0, 32, 32, 272_474, 40_813_184)
    assert course_scores(net, counts, 32, 32)["published"] == dense
    assert round(dense, 4) == 0.0978
    with torch.no_grad():
        net.stages[2][0].conv2.weight.view(-1)[::2] = 0  # half of 64 x 64 x 9
    found = course_scores(net, count(net), 32, 32)["published"]
    assert found == pytest.approx(dense - 64 * 64 * 9 / 2 / 5.6e6, abs=1e-12)


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_score_of_a_checkpoint(here: Path, tiny, capsys: pytest.CaptureFixture[str]) -> None:
    from smallnets.cli import main

    assert main(tiny("fit", "--trainer.max_epochs=1")) == 0
    (best,) = here.glob("lightning_logs/*/*/checkpoints/best.ckpt")
    capsys.readouterr()
    assert main(["score", str(best), "--weight_bits=8", "--activation_bits=8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    # 64 -> 12 -> 10 on 8 x 8 digits.
    parameters, macs = 64 * 12 + 12 + 12 * 10 + 10, 64 * 12 + 12 * 10
    assert (found["parameters"], found["macs"]) == (parameters, macs)
    assert found["course"]["published"] == course_score(0, 0, 8, 8, parameters, macs)
    assert found["course"]["corrected"] == course_score(0, 0, 8, 8, parameters, macs, "corrected")
    assert found["micronet"]["storage"] == macs / 4 + 22
    assert found["forms"]["int8"] == macs + 22 * 4 + 22 * 4
    assert main(["score", str(best), "--layers"]) == 0
    shown = capsys.readouterr().out
    # Which of the two terms counts what.
    assert (
        "its two terms       parameters over 5.6e+06 (half of ResNet-18's); MACs over 8.3e+08 (published: its"
        " multiplications, halved, and additions) or 2.8e+08 (corrected: half of its MACs)\n"
    ) in shown
    header, *layers = shown[shown.index("layer  ") :].splitlines()
    columns = re.split("  +", header)
    table = {cells[0]: dict(zip(columns, cells, strict=True)) for cells in (re.split("  +", line) for line in layers)}
    # 64 -> 12: 768 weights and 12 biases; 64 values in, 12 out; 768 products, 756 - 12 + 12 sums.
    assert table["head.0"] == {
        "layer": "head.0", "fp32": "3,120", "sparse": "3,120", "fp16": "1,560", "int8": "864",
        "effective MACs": "768", "storage": "780", "operations": "1,536", "activations fp32": "304",
        "activations int8": "76",
    }  # fmt: skip
    assert table["head.1"]["storage"] == "0" and table["head.1"]["operations"] == "12"  # ReLU
    assert main(["score", str(best), "--weight_bits=64"]) == 2
    assert capsys.readouterr().err == "smallnets: error: weight_bits is 1 to 32, got 64\n"
    (here / "a.ckpt").write_bytes(b"nothing")
    assert main(["score", "a.ckpt"]) == 1
    assert "not a whole checkpoint" in capsys.readouterr().err
