"""The speed of this package beside what it is compared with; a part a file, each with `measure(settings) -> rows`.

Measurements, not tests: they say how long something took here and now, beside what it is compared with, in one process
and by turns, so that what else the machine does meets both sides alike. Nothing here is imported by any other room.
"""

PARTS = {
    "pipeline": "augmentation and normalisation of batches, against torchvision on PIL images",
    "recipes": "cutout, erasing, RandAugment, TrivialAugment, mixup and CutMix, beside torchvision's where it has them",
    "fit": "a training step in Trainer.fit, against a loop by hand and against the usual stack",
    "overhead": "what Lightning adds to a step that has nearly nothing to compute",
    "optimizer": "a step of SGD and Adam in the form that Classifier gives them, against torch's default",
    "adabound": "an AdaBound step, against its package and torch's Adam",
    "quaternion": "a quaternion convolution and a folded quaternion network, against the real ones",
    "masks": "an optimizer's step with masks applied after it, against the step alone and torch.nn.utils.prune",
    "lottery": "rounds of a lottery inside one fit, against a plain fit of the same epochs",
    "startup": "--help, and the time to the first training step",
}
