"""What `smallnets export` holds a file against: images of the run's own split, and what was found on them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from smallnets.compress.on_test import compare_on_test
from smallnets.compress.runtime import open_exported
from smallnets.compress.subject import Subject
from smallnets.compress.verify import Agreement, accuracy, compare_logits
from smallnets.data import ImageData, normalise
from smallnets.errors import UserError

COMPARED = 64  # images whose logits are compared


class Images:
    """Images of the run's own split, read when they are first asked for."""

    def __init__(self, parser: ArgumentParser, options: Namespace, subject: Subject) -> None:
        self._parser, self._options, self._subject = parser, options, subject
        self._data: ImageData | None = None

    def of(self, split: str, number: int | None) -> tuple[Tensor, Tensor]:
        """The first `number` images of a split, normalised as the checkpoint says and never augmented, and labels."""
        data = self._data = self._data or self._read()
        if split == "test":
            data.setup("test")
        loader = {"train": data.train_dataloader, "val": data.val_dataloader, "test": data.test_dataloader}[split]()
        images, labels, have = [], [], 0
        for pixels, known, _ in loader:
            images.append(normalise(pixels, self._subject.mean or data.mean, self._subject.std or data.std))
            labels.append(known)
            have += len(known)
            if number is not None and have >= number:
                break
        return torch.cat(images)[:number], torch.cat(labels)[:number]

    def _read(self) -> ImageData:
        if self._options.get("data") is None:
            raise UserError(
                f"{self._subject.checkpoint} lies in no run's folder, so its data are not known: give --data=NAME"
                " or --config FILE"
            )
        data: ImageData = self._parser.instantiate_classes(self._options).data
        for option, has, wants in (
            ("", data.name, self._subject.data),
            (".split_seed", data.split_seed, self._subject.split_seed),
        ):
            if wants is not None and has != wants:
                raise UserError(f"--data{option}={has}: {self._subject.checkpoint} was trained with {wants}")
        data.augment = []
        data.prepare_data()
        data.setup("fit")
        return data


@dataclass(frozen=True)
class Verified:
    """Agreement of logits, the images in words, accuracies by part of the data, and why the test part is not there."""

    agreement: Agreement
    words: str
    accuracies: dict[str, dict[str, float]]
    no_test: str | None = None


def verify(subject: Subject, part: Path, options: Namespace, images: Images, name: str) -> Verified:
    """What was found of the file, which gets `name`. RunError unless its logits agree with the network's."""
    file = open_exported(part)
    found: dict[str, dict[str, float]] = {}
    no_test = None
    if options.verify != "logits":
        compared, labels = images.of("val", None)
        words = "validation images"
        found["validation"] = {"network": accuracy(subject.net, compared, labels)}
        found["validation"]["file"] = accuracy(file, compared, labels)
    elif options.dtype == "int8":
        # Ranges were taken from images like these; noise would lie outside of them.
        compared, words = images.of("val", COMPARED)[0], "validation images"
    else:
        compared, words = subject.made_up_images(COMPARED), "images of random pixels"
    agreement = compare_logits(subject.net, file, compared)
    agreement.require(options.dtype, name)
    if options.verify != "logits":
        # After the file has been found right: no test image is read for one that is not kept.
        no_test, on_test = compare_on_test(
            subject, file, lambda: images.of("test", None), asked=options.verify == "test"
        )
        found |= {"test": on_test} if on_test else {}
    return Verified(agreement, words, found, no_test)
