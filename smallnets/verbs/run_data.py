"""The data of a run that has been: from its configuration, for verbs that evaluate its checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import instantiate_class
from torch import Tensor

from smallnets.data import ImageData
from smallnets.errors import UserError
from smallnets.results.load import CHECKPOINT_KEY
from smallnets.results.run import RunFolder


def owner_of(path: str) -> RunFolder:
    """The run that a checkpoint belongs to. UserError for a file from elsewhere."""
    owner = RunFolder.owning(Path(path))
    if owner is None:
        raise UserError(f"{path} lies in no run's checkpoints folder, so its data are not known")
    return owner


def data_of(owner: RunFolder, root: str | None) -> ImageData:
    """The run's data set, with its settings."""
    described = yaml.safe_load(owner.config.read_text())["data"]
    if root is not None:
        described["init_args"]["root"] = root
    data: ImageData = instantiate_class((), described)
    data.prepare_data()
    data.setup("validate")
    return data


def require_same_split(checkpoint: dict[str, Any], data: ImageData) -> None:
    """UserError if the network was trained on another split than `data` has."""
    trained = checkpoint[CHECKPOINT_KEY].get("split_seed")
    if trained is not None and trained != data.split_seed:
        raise UserError(f"the network was trained with split_seed {trained}, the run's config says {data.split_seed}")


def validation_batches(data: ImageData) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels of the validation split."""
    return data.batches("val")
