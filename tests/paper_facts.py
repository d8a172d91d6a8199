"""What the documents say of every cell of their studies, written by hand: rows, counts, figures and settings.

"Stated" is in a document's text, "read" in its authors' code; what neither says is as the recipes' comments chose it.
"""

import fnmatch
from typing import Any

# -- the rows of the documents' tables ---------------------------------------------------------------------------------

# Row -> the study, or search, that makes it, and its cells; a command in the file's header where it is no training.
Where = tuple[str, list[str]]


def _numbered(prefix: str, first: int, where: list[Where]) -> dict[str, list[Where]]:
    return {f"{prefix}{first + place}": [each] for place, each in enumerate(where)}


def _three(file: str, *nets: str, end: str = "") -> list[Where]:
    return [(file, [f"{o},{net}{end}" for net in nets]) for o in ("SGDM", "Adam", "AdaBound")]


_SMALL_VITS = ("vit_h4_s_published", "vit_h4_s")
_DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_BOTH = ("real", "quaternion")
ROWS: dict[str, list[Where]] = {
    **_numbered("000-", 1, _three("000/cifar10_resnet", "resnet18")),
    **_numbered("000-", 4, _three("000/cifar10_resnet", "resnet18_s")),
    **_numbered("000-", 7, _three("000/cifar100_resnet", "resnet18")),
    **_numbered("000-", 10, _three("000/cifar100_resnet", "resnet18_s")),
    **_numbered("000-", 13, _three("000/cifar10_vit", "vit_h4")),
    **_numbered("000-", 16, _three("000/cifar10_vit", *_SMALL_VITS)),
    **_numbered("000-", 19, _three("000/cifar100_vit", "vit_h4")),
    **_numbered("000-", 22, _three("000/cifar100_vit", *_SMALL_VITS)),
    "000-25": _three("000/vgg", "vgg16,CIFAR10", "vgg16,CIFAR100", "vgg16_s,CIFAR10", "vgg16_s,CIFAR100"),
    "000-26": [("000/one_shot", ["200", "50", "smallnets curves"])],
    "001-1": [("001/table", ["1-densenet121", "1-densenet121-printed"])],
    "001-2": [("001/table", ["2-resnet34"])],
    "001-3": [("001/table", ["3-resnet34-once", "3-resnet34-rounds"])],
    "001-4": [("001/table", ["4-resnet34-once", "4-resnet34-rounds"])],
    "001-5": [("001/table", ["5-resnet34-once", "5-resnet34-rounds"])],
    "001-6": [("001/table", ["6-resnet34"])],
    "001-7": [("001/table", ["7-resnet34-share", "7-resnet34-count"])],
    "001-8": [("001/table", ["8-resnet20"])],
    "001-9": [("001/table", ["9-resnet20-share", "9-resnet20-count"])],
    "001-10": [("001/table", ["smallnets export"])],
    "001-11": [("001/table", ["11-preact_resnet18"])],
    "001-12": [("001/table", ["smallnets score"])],
    "002-T5.1": [("002/table5", ["1", "1-printed"])],
    "002-T5.2": [("002/table5", ["2"])],
    "002-T5.3": [("002/table5", ["3"])],
    "002-T5.4": [("002/table5", ["4-printed", "4-read"])],
    "002-T5.5": [("002/table5", ["5"])],
    "002-T5.6": [("002/table5", ["6"])],
    "002-T5.7": [("002/table5", ["7-printed", "7-counted"])],
    "002-T5.8": [("002/table5", ["8"])],
    "002-T5.9": [("002/table5", ["9"])],
    "002-T1.1": [("002/table1_augmentation", ["flip-crop"])],
    "002-T1.2": [("002/table1_augmentation", ["auto", "auto-alone"])],
    "002-T1.3": [("002/table1_augmentation", ["auto-perspective"])],
    "002-T2.1": [("002/table2_blocks", ["3333"])],
    "002-T2.2": [("002/table2_blocks", ["3323", "3323-alone"])],
    "002-T2.3": [("002/table2_blocks", ["3463", "3463-alone"])],
    "002-T2.4": [("002/table2_blocks", ["2222-alone"])],
    "002-T3.1": [("002/table3_channels", ["128-100-160-200", "128-100-164-200"])],
    "002-T3.2": [("002/table3_channels", ["136-100-188-204-stated", "136-100-188-204-read"])],
    "002-T3.3": [("002/table3_channels", ["32-64-128-256"])],
    "002-T3.4": [("002/table3_channels", ["16-32-64-128"])],
    "002-T4.1": [("002/table4_optimizers", ["SGD-cosine"])],
    "002-T4.2": [("002/table4_optimizers", ["Adadelta-cosine"])],
    "002-T4.3": [("002/table4_optimizers", ["AdamW-cosine", "AdamW-cosine-read"])],
    "002-T4.4": [("002/table4_optimizers", ["SGD-step"])],
    "003-C100": [(f"003/cifar100_{n}", [f"{d}-{f}" for d in _DEPTHS for f in _BOTH]) for n in ("stated", "read")],
    "003-I64": [(f"003/imagenet64_{n}", [f"{d}-{f}" for d in _DEPTHS for f in _BOTH]) for n in ("stated", "read")],
    "003-earlier": [
        ("003/earlier_lenet", [f"{net}-{f}" for net in ("lenet_300_100", "lenet_12") for f in _BOTH]),
        ("003/earlier_cifar10", [f"conv{n}-{f}" for n in (2, 4, 6) for f in _BOTH]),
        ("003/earlier_cifar100", [f"conv{n}-{f}" for n in (2, 4, 6) for f in _BOTH]),
    ],
    "004-P": [("004/networks", ["pruned", "pruned-decay"])],
    "004-L": [("004/networks", ["removed", "removed-400"])],
    "004-M": [("004/networks", ["manual", "manual-pruned"])],
    "004-T1.1": [("004/table1_schedules", ["cosine"])],
    "004-T1.2": [("004/table1_schedules", ["linear", "linear-read"])],
    "004-T1.3": [("004/table1_schedules", ["step"])],
    "004-T1.4": [("004/table1_schedules", ["cyclic", "cyclic-read"])],
    "004-O": [("004_optuna", []), ("004_read_sgd_rmsprop", []), ("004_read_others", [])],
}
# The list of them, as the documents' tables number them.
IDS = [
    *(f"000-{n}" for n in range(1, 27)),
    *(f"001-{n}" for n in range(1, 13)),
    *(f"002-T5.{n}" for n in range(1, 10)),
    *(f"002-T{table}.{n}" for table, rows in ((1, 3), (2, 4), (3, 4), (4, 4)) for n in range(1, rows + 1)),
    "003-C100", "003-I64", "003-earlier",
    "004-P", "004-L", "004-M", *(f"004-T1.{n}" for n in range(1, 5)), "004-O",
]  # fmt: skip

# -- settings ----------------------------------------------------------------------------------------------------------

Settings = dict[str, Any]
# CIFAR-10's mean with the often copied deviations (000), CIFAR-10's own (003 read), those of normalised images (002).
_COPIED = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
_CIFAR10_OWN = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2470, 0.2435, 0.2616]}
_TWICE = {"mean": [-0.4948, -0.4858, -0.4136], "std": [1.3125, 1.3154, 1.2739]}
_OWN: Settings = {"mean": None, "std": None}
_PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
_PERSPECTIVE = {"perspective": {"distortion": 0.6, "p": 0.5}}
_CROP, _AUTO = ["crop", "flip"], ["autoaugment", "crop", "flip"]


def _sgd(lr: float, decay: float, momentum: float = 0.9, nesterov: bool = False) -> Settings:
    return {"optimizer": "SGD", "lr": lr, "momentum": momentum, "weight_decay": decay, "nesterov": nesterov}


def _other(optimizer: str, lr: float, decay: float, **more: float) -> Settings:
    # What this optimizer does not have, None.
    return {"optimizer": optimizer, "lr": lr, "weight_decay": decay, "momentum": None, "nesterov": None, **more}


def _steps(*milestones: int) -> Settings:
    return {"scheduler": "MultiStepLR", "by": list(milestones), "gamma": 0.1}


def _step(size: int) -> Settings:
    return {"scheduler": "StepLR", "by": size, "gamma": 0.1}


def _cosine(t_max: int) -> Settings:
    return {"scheduler": "CosineAnnealingLR", "by": t_max, "gamma": None}


_CONSTANT: Settings = {"scheduler": None, "by": None, "gamma": None}


def _lottery(fraction: float, rounds: int, epochs: int, scope: str, unit: str = "weight") -> Settings:
    lottery = {"fraction": fraction, "rounds": rounds, "epochs_per_round": epochs, "scope": scope, "unit": unit}
    return {"epochs": epochs * (1 + rounds), "LotteryTicket": lottery}


def _masks(density: float, **more: Any) -> Settings:
    return {"PruningSchedule": {"density": density, "scope": "layer", **more}}


def _channels(**more: Any) -> Settings:
    return {"ChannelPruning": more}


def _forms(real: int, other: int) -> list[tuple[str, int, str]]:
    """Of document 003: form, rounds, and what is pruned by itself; r, i, j and k of a quaternion layer."""
    return [("real", real, "weight"), ("quaternion", other, "component"), ("narrow", other, "weight")]


_SEVENTHS = {"resnet18": (20, 20), "resnet34": (20, 20), "resnet50": (20, 20), "resnet101": (22, 20),
             "resnet152": (22, 17)}  # fmt: skip
_ROUNDS_64 = {"resnet18": (18, 17), "resnet34": (22, 20), "resnet50": (21, 18)}
_BLOCKS = [0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3]
_PRUNED_004 = _channels(ratios=[share for share in _BLOCKS for _ in range(2)], criterion="l1")
_LEAST = {"data": "CIFAR10", "label_smoothing": 0.0, "interval": "epoch", "warmup": 0, **_OWN}

# (study, cell, what is so there): patterns; what comes later goes over what came before.
_SAID: list[tuple[str, str, Settings]] = [
    ("*", "*", _LEAST),
    # 000, read: batch 8, crop and flip, milestones 100 and 150; 1000 epochs, 100 of all CIFAR-100 and ViT runs.
    ("000/*", "*", {"batch": 8, "augment": _CROP, **_COPIED, **_steps(100, 150), "epochs": 100}),
    ("000/*", "SGDM,*", _sgd(0.1, 1e-3)),
    ("000/*", "Adam,*", _other("Adam", 1e-3, 1e-3)),
    ("000/*", "AdaBound,*", _other("AdaBound", 1e-3, 5e-4, final_lr=0.1, bound_gamma=1e-3)),
    ("000/cifar10_resnet", "*", {"epochs": 1000}),
    ("000/cifar100_*", "*", {"data": "CIFAR100"}),
    ("000/cifar10_vit", "SGDM,vit_h4", {"epochs": 13}),
    ("000/vgg", "*", {"epochs": 200}),
    ("000/vgg", "*,CIFAR100", {"data": "CIFAR100"}),
    ("000/one_shot", "*", _other("AdaBound", 1e-3, 5e-4, final_lr=0.1, bound_gamma=1e-3)),
    ("000/one_shot", "200", {"epochs": 200}),
    ("000/one_shot", "50", {"epochs": 50}),
    # 001, stated: batches, rates, decays, steps; chosen: Adam of rows 1 and 2, epochs, momentum of 8 and 9, smoothing.
    ("001/table", "*", {"augment": [], "epochs": 40}),
    ("001/table", "[12]-*", {**_other("Adam", 1e-3, 0.0), **_CONSTANT, "batch": 256}),
    ("001/table", "1-*", {"batch": 180}),
    ("001/table", "[345]-*", {**_other("Adam", 1e-3, 1e-5), **_step(10), "batch": 256}),
    ("001/table", "11-*", {**_other("Adam", 1e-3, 1e-5), **_step(10), "batch": 128, **_masks(0.8, at="10ep")}),
    ("001/table", "4-*", {"batch": 128}),
    ("001/table", "5-*", {"batch": 64}),
    ("001/table", "3-*-once", _masks(0.9, at="10ep")),
    ("001/table", "3-*-rounds", _masks(0.9**10, curve="geometric", end="10ep")),
    ("001/table", "[45]-*-once", _masks(0.8, at="10ep")),
    ("001/table", "[45]-*-rounds", _masks(0.8**10, curve="geometric", end="10ep")),
    ("001/table", "[67]-*", {**_sgd(0.1, 1e-4), **_step(30), "batch": 128, "augment": _CROP, "epochs": 90}),
    ("001/table", "7-*-share", _channels(ratio=0.2, scope="layer", criterion="l2", at="30ep")),
    ("001/table", "7-*-count", _channels(parameters="2M", scope="global", criterion="l2", at="30ep")),
    ("001/table", "[89]-*", {**_sgd(0.1, 1e-5), "batch": 128, "augment": _CROP, "label_smoothing": 0.1}),
    ("001/table", "8-*", {**_steps(40, 60), "epochs": 80}),
    # Row 9 begins at epoch 80 with the rate that 8 ends with; its milestones are 30 and 60 epochs later.
    ("001/table", "9-*", {**_steps(40, 60, 80 + 30, 80 + 60), "epochs": 160}),
    ("001/table", "9-*-share", _channels(ratio=0.3, scope="layer", criterion="l2", at="80ep")),
    ("001/table", "9-*-count", _channels(parameters=198_309, scope="layer", criterion="l2", at="80ep")),
    # 002, read: batch 128, SGD 0.1 with 5e-4, a cosine as long as the run, and the odd statistics of its notebooks.
    ("002/*", "*", {"batch": 128, "augment": [*_AUTO, _PERSPECTIVE]}),
    ("002/*", "*", {**_TWICE, **_sgd(0.1, 5e-4), **_cosine(300), "epochs": 300}),
    ("002/table5", "1-printed", {"augment": _AUTO}),
    ("002/table5", "[23]", {**_OWN, **_other("Adadelta", 0.1, 5e-4)}),
    ("002/table5", "2", {**_cosine(250), "epochs": 250}),
    ("002/table5", "3", {**_cosine(200), "epochs": 200}),
    ("002/table5", "4-*", {**_OWN, **_cosine(200), "epochs": 200, "augment": _AUTO}),
    ("002/table5", "4-read", _other("Adadelta", 0.1, 5e-4)),
    ("002/table5", "[5678]*", {**_OWN, **_sgd(0.1, 1e-4), **_step(15), "epochs": 100, "augment": _CROP}),
    ("002/table5", "5", {"epochs": 150}),
    ("002/table1_*", "flip-crop", {"augment": _CROP}),
    ("002/table1_*", "auto", {**_OWN, **_other("Adadelta", 0.1, 5e-4), **_cosine(200), "epochs": 200}),
    ("002/table1_*", "auto", {"augment": _AUTO}),
    ("002/table1_*", "auto-alone", {"augment": _AUTO}),
    ("002/table2_*", "3463", {**_OWN, **_sgd(0.1, 1e-4), **_step(15), "epochs": 150, "augment": _CROP}),
    ("002/table3_*", "*-read", _other("Adadelta", 0.1, 5e-4)),
    ("002/table3_*", "*-64-128*", {**_OWN, **_sgd(0.1, 1e-4), **_step(15), "epochs": 150, "augment": _CROP}),
    ("002/table3_*", "16-*", {"epochs": 100}),
    ("002/table4_*", "Adadelta-*", {**_OWN, **_other("Adadelta", 0.1, 5e-4)}),
    ("002/table4_*", "AdamW-cosine", _other("AdamW", 1e-3, 5e-4)),
    ("002/table4_*", "AdamW-cosine-read", _other("Adadelta", 0.1, 5e-4)),
    ("002/table4_*", "SGD-step", {**_OWN, **_sgd(0.1, 1e-4), **_step(15), "epochs": 100, "augment": _CROP}),
    # 003: no Nesterov momentum is stated, it was read; so were crop and flip of CIFAR-100, and none of ImageNet64.
    ("003/cifar100_*", "*", {"data": "CIFAR100", "batch": 100, "augment": _CROP}),
    ("003/imagenet64_*", "*", {"data": "ImageNet64", "batch": 256, "augment": []}),
    ("003/*_stated", "*", _sgd(0.1, 1e-4)),
    ("003/*_read", "*", _sgd(0.1, 1e-4, nesterov=True)),
    ("003/cifar100_stated", "*", _CONSTANT),
    ("003/cifar100_read", "*", {**_cosine(110), "interval": "step", "warmup": 10, **_CIFAR10_OWN}),
    ("003/imagenet64_stated", "*", _steps(10, 12)),
    ("003/imagenet64_read", "*", {**_steps(11, 13), **_PLAIN}),
    *(
        ("003/cifar100_*", f"{net}-{form}", _lottery(0.3, rounds, 100, "layer", unit))
        for net, (real, other) in _SEVENTHS.items()
        for form, rounds, unit in _forms(real, other)
    ),
    *(
        ("003/imagenet64_*", f"{net}-{form}", _lottery(0.3, rounds, 15, "layer", unit))
        for net, (real, other) in _ROUNDS_64.items()
        for form, rounds, unit in _forms(real, other)
    ),
    *(
        ("003/imagenet64_*", f"{net}-{form}", _lottery(0.5, rounds, 15, "layer", unit))
        for net in ("resnet101", "resnet152")
        for form, rounds, unit in _forms(13, 13)
    ),
    # The earlier paper, stated: Adam, batch 60, constant rate, no augmentation, 20 % of all weights a round.
    ("003/earlier_*", "*", {"batch": 60, "augment": [], **_CONSTANT, **_other("Adam", 3e-4, 0.0)}),
    ("003/earlier_*", "*", _lottery(0.2, 20, 40, "global")),
    ("003/earlier_lenet", "*", {"data": "MNIST", "lr": 1.2e-3}),
    ("003/earlier_lenet", "lenet_12-*", _lottery(0.2, 20, 20, "global")),
    ("003/earlier_cifar100", "*", {"data": "CIFAR100"}),
    ("003/earlier_cifar*", "conv2-*", {"lr": 2e-4}),
    ("003/earlier_cifar*", "conv6-*", _lottery(0.2, 20, 60, "global")),
    ("003/digits", "*", {"data": "Digits", "batch": 60, "augment": [], **_CONSTANT, **_other("Adam", 1.2e-3, 0.0)}),
    ("003/digits", "*", _lottery(0.3, 10, 15, "global")),
    ("003/digits", "real", _lottery(0.3, 14, 15, "global")),
    # 004: AutoAugment, crop and flip; batch 128 read; the rate of Optuna's, and SGD 0.01 with 5e-4.
    ("004/*", "*", {"batch": 128, "augment": _AUTO}),
    ("004/networks", "*", {**_cosine(200), "epochs": 200}),
    ("004/networks", "pruned*", {**_other("RMSprop", 0.0008781984559717051, 0.0, momentum=0.26583), **_PRUNED_004}),
    ("004/networks", "pruned-decay", {"weight_decay": 5e-4}),
    ("004/networks", "removed*", _sgd(0.01, 5e-4)),
    ("004/networks", "removed-400", {"epochs": 400}),
    ("004/networks", "manual*", {**_sgd(0.001, 5e-4), **_CONSTANT, "epochs": 118}),
    ("004/networks", "manual-pruned", _PRUNED_004),
    ("004/table1_*", "*", {**_sgd(0.01, 5e-4), "epochs": 50, **_PRUNED_004}),
    ("004/table1_*", "cosine", _cosine(200)),
    ("004/table1_*", "linear*", {"scheduler": "LinearLR", "by": 5, "gamma": None, "start_factor": 1 / 3}),
    ("004/table1_*", "step", _step(5)),
    ("004/table1_*", "cyclic*", {"scheduler": "CyclicLR", "by": 5, "gamma": None, "mode": "triangular2"}),
    ("004/table1_*", "cyclic", {"base_lr": 0.01, "max_lr": 0.1}),
    ("004/table1_*", "linear-read", {"lr": 0.03}),
    ("004/table1_*", "cyclic-read", {"base_lr": 0.001, "max_lr": 0.01}),
]  # fmt: skip


def said(study: str, cell: str) -> Settings:
    """The settings that the documents give to a cell."""
    found: Settings = {}
    for studies, cells, settings in _SAID:
        if fnmatch.fnmatchcase(study, studies) and fnmatch.fnmatchcase(cell, cells):
            found |= settings
    return found


# -- figures -----------------------------------------------------------------------------------------------------------

# Study -> cell -> all its figures, where it has more than the one beside its count in test_paper_studies.
FIGURES: dict[str, dict[str, dict[str, float]]] = {
    "001/table": {
        **{f"3-resnet34-{n}": {"val_accuracy": 0.8, "nonzero_parameters": 7_597_872} for n in ("once", "rounds")},
        **{f"4-resnet34-{n}": {"val_accuracy": 0.78, "nonzero_parameters": 2_340_117} for n in ("once", "rounds")},
        **{f"5-resnet34-{n}": {"val_accuracy": 0.8, "nonzero_parameters": 2_340_117} for n in ("once", "rounds")},
        "7-resnet34-count": {"val_accuracy": 0.85, "nonzero_parameters": 2_000_000},
        **{f"9-resnet20-{n}": {"val_accuracy": 0.9159, "nonzero_parameters": 198_309} for n in ("share", "count")},
        "11-preact_resnet18": {"val_accuracy": 0.893, "nonzero_parameters": 8_934_873},
    },
    "004/networks": {
        "pruned": {"train_accuracy_last": 0.97, "val_accuracy": 0.91, "test_accuracy": 0.9382},
        "pruned-decay": {"val_accuracy": 0.8984, "test_accuracy": 0.9356},
        "removed": {"train_accuracy_last": 0.971, "val_accuracy": 0.915},
        "removed-400": {"val_accuracy": 0.9148, "val_accuracy_last": 0.8694, "test_accuracy": 0.9412},
        "manual": {"train_accuracy_last": 0.93, "val_accuracy": 0.86},
        "manual-pruned": {"train_accuracy_last": 0.93, "val_accuracy": 0.86},
    },
    "004/table1_schedules": {
        "cosine": {"train_accuracy_last": 0.90976, "val_accuracy_last": 0.8562, "test_accuracy": 0.9134},
        **{n: {"train_accuracy_last": 0.87342, "val_accuracy_last": 0.8268, "test_accuracy": 0.885}
           for n in ("linear", "linear-read")},
        "step": {"train_accuracy_last": 0.81193, "val_accuracy_last": 0.8008, "test_accuracy": 0.8565},
        **{n: {"train_accuracy_last": 0.91198, "val_accuracy_last": 0.855, "test_accuracy": 0.9044}
           for n in ("cyclic", "cyclic-read")},
    },
}  # fmt: skip
