"""Help pages that a person can read: jsonargparse lists every subclass of an option's type, some 700 of `nn.Module`."""

import re
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

# A list of classes longer than this is left out of a page.
_MOST_CLASSES = 30


def shortened(page: str) -> str:
    """A help page without its long lists of subclasses."""

    def keep(found: re.Match[str]) -> str:
        return found[0] if found[0].count(",") <= _MOST_CLASSES else ")"

    return re.sub(r",\s+known\s+subclasses:[^)]*\)", keep, page)


class BriefParser(ArgumentParser):
    """jsonargparse's parser with a shortened page."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The page that `--help` prints."""
        return shortened(super().format_help(*args, **kwargs))


class BriefLightningParser(LightningArgumentParser):
    """LightningCLI's parser with a shortened page."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The page that `--help` prints."""
        return shortened(super().format_help(*args, **kwargs))
