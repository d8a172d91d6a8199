"""`predict` and what is read from it, by numbers that one can check in the head."""

import math

import pytest
import torch
from torch import Tensor, nn

from smallnets.errors import UserError
from smallnets.results.predictions import Predictions, predict


class Fixed(nn.Module):
    """Logits are the image's own pixels; counts the images it was asked for, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.frozen = nn.BatchNorm1d(2).eval()
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        return self.scale * images.flatten(1)


def made(logits: list[list[float]], labels: list[int]) -> Predictions:
    return Predictions(torch.tensor(logits), torch.tensor(labels))


def test_predictions_are_the_networks_in_the_order_of_the_images_and_its_modes_stay() -> None:
    images = torch.arange(12.0).view(6, 1, 1, 2)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    net = Fixed().train()
    net.frozen.eval()
    found = predict(net, zip(images.split(4), labels.split(4), strict=True))
    assert torch.equal(found.logits, torch.arange(12.0).view(6, 2)) and torch.equal(found.labels, labels)
    assert net.modes == [False, False] and net.training and not net.frozen.training
    assert not found.logits.requires_grad and len(found) == 6


def test_the_mode_comes_back_when_a_batch_fails() -> None:
    net = Fixed().train()
    with pytest.raises(AttributeError):
        predict(net, [(None, None)])
    assert net.training


def test_half_precision_logits_come_as_float32() -> None:
    found = predict(Fixed().bfloat16(), [(torch.ones(1, 1, 1, 2, dtype=torch.bfloat16), torch.zeros(1).long())])
    assert found.logits.dtype == torch.float32


def test_probabilities_accuracy_and_confidence() -> None:
    found = made([[0.0, math.log(3)], [math.log(9), 0.0], [0.0, 0.0]], [1, 1, 0])
    expected = torch.tensor([[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(found.probabilities, expected, atol=1e-6, rtol=0)
    assert found.predicted.tolist() == [1, 0, 0]
    torch.testing.assert_close(found.confidence, torch.tensor([0.75, 0.9, 0.5], dtype=torch.float64), atol=1e-6, rtol=0)
    assert found.accuracy == 2 / 3


def test_confusion_has_the_true_classes_in_rows() -> None:
    # Three images of class 0, two of which are taken for class 2; one of class 2, taken for 1; none of class 1.
    found = made([[1.0, 0, 0], [0, 0, 1.0], [0, 0, 1.0], [0, 1.0, 0]], [0, 0, 0, 2])
    assert found.confusion().tolist() == [[1, 0, 2], [0, 0, 0], [0, 1, 0]]
    assert found.confusion().dtype == torch.int64


def test_confusion_is_a_count_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5, generator=generator)
    labels = torch.randint(-1, 5, (200,), generator=generator)
    expected = torch.zeros(5, 5, dtype=torch.int64)
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label >= 0:
            expected[label, row.index(max(row))] += 1
    found = Predictions(logits, labels)
    assert torch.equal(found.confusion(), expected)
    assert found.accuracy == int(expected.diagonal().sum()) / int(expected.sum())
    assert len(found.mistakes()) == int(expected.sum() - expected.diagonal().sum())


def test_mistakes_come_most_confident_first_and_equals_in_their_order() -> None:
    found = made([[2.0, 0], [0, 1.0], [5.0, 0], [0, 9.0], [2.0, 0], [3.0, 0]], [1, 0, 1, 1, 1, -1])
    assert found.mistakes().tolist() == [2, 0, 4, 1]
    assert found.mistakes(2).tolist() == [2, 0]
    assert found.mistakes(0).tolist() == []


def test_mistakes_are_ordered_where_probabilities_all_round_to_one() -> None:
    found = made([[100.0, 0, 0], [300.0, 0, 0], [200.0, 0, 0]], [1, 1, 1])
    assert found.confidence.tolist() == [1.0, 1.0, 1.0]
    assert found.mistakes().tolist() == [1, 2, 0]


def test_images_without_a_label_count_nowhere() -> None:
    found = made([[1.0, 0], [0, 1.0]], [-1, 1])
    assert found.accuracy == 1.0 and found.confusion().tolist() == [[0, 0], [0, 1]]
    assert math.isnan(made([[1.0, 0]], [-1]).accuracy)


def test_what_is_no_prediction_is_refused() -> None:
    with pytest.raises(UserError, match=r"logits \(N, C\) and labels \(N,\), not \(2, 3\) and \(3,\)"):
        Predictions(torch.zeros(2, 3), torch.zeros(3).long())
    with pytest.raises(UserError, match="no images"):
        predict(Fixed(), [])
    with pytest.raises(UserError, match="0 or more, not -1"):
        made([[1.0, 0]], [1]).mistakes(-1)
