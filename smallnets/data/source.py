"""`Source`: where the images of a data set come from."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from smallnets.data.arrays import Arrays, Part
from smallnets.data.files import FileState


class Source(ABC):
    """Reads a data set, gets it and checks it. Final classes stand in the file named after the set.

    `fetchable` is true where `fetch` can get what is missing.
    """

    fetchable: ClassVar[bool] = False

    @abstractmethod
    def read(self, part: Part) -> Arrays:
        """The images of the training part (validation included) or of the test part.

        Raises:
            RunError: a file is missing or damaged; it is named, with the remedy.
        """

    def fetch(self) -> None:  # noqa: B027 - most sets have nothing to do here
        """Gets the files unless they are complete; nothing where that is not possible.

        Raises:
            RunError: the download failed.
        """

    def prepare(self) -> None:  # noqa: B027 - as above
        """What is done once, on one process, before reading: conversion to a form that can be read by index."""

    def verify(self) -> list[FileState]:
        """The files of the set, each checked in full; none for a set without files of its own."""
        return []

    def remember(self, key: str, compute: Callable[[], Any]) -> Any:
        """Plain data that take long to compute, from a store where a set has one."""
        return compute()
