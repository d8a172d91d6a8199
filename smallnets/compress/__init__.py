"""From a checkpoint to the device: files for other runtimes, smaller numbers, proof that they agree, and a card.

`to_file` writes a network for a runtime, `open_exported` runs such a file as that runtime does, `compare_logits` holds
it against the network. ONNX Runtime and ExecuTorch are imported when they are first needed (the extras `export` and
`executorch`).
"""

from smallnets.compress.export import DTYPES, FORMATS, to_file
from smallnets.compress.runtime import Exported, open_exported
from smallnets.compress.subject import Subject, read_subject
from smallnets.compress.verify import TOLERANCE, Agreement, accuracy, compare_logits

__all__ = [
    "DTYPES",
    "FORMATS",
    "TOLERANCE",
    "Agreement",
    "Exported",
    "Subject",
    "accuracy",
    "compare_logits",
    "open_exported",
    "read_subject",
    "to_file",
]
