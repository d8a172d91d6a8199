"""The same training three ways: by hand, by `Classifier` in `Trainer.fit`, and by the usual stack."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich import reconfigure
from torch import Generator, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from smallnets.bench.images import Batches, RandomImages
from smallnets.bench.modules import Usual, make_optimizer, make_schedule
from smallnets.bench.timing import clock
from smallnets.callbacks import Health
from smallnets.callbacks.attach import run_callbacks, run_loggers
from smallnets.callbacks.bar import SeldomBar
from smallnets.callbacks.look import TensorBoardLook
from smallnets.data.augment import apply_all, normalise
from smallnets.data.modules import Specs
from smallnets.data.seeds import STREAM_AUGMENT, mix
from smallnets.results.run import RunFolder
from smallnets.training import Classifier


@dataclass(frozen=True)
class Work:
    """An epoch of `warm` steps that are not timed and `steps` that are.

    Every way of doing it takes the network as it is, trains it in place and returns the seconds of one timed step. The
    clock runs from the end of the last warm step to the end of the epoch, its logging and its schedule included.
    """

    device: torch.device
    warm: int
    steps: int
    batch_size: int = 128
    image_size: int = 32
    augment: Specs = ()

    @cached_property
    def batches(self) -> Batches:
        """What the loop by hand reads."""
        return Batches(self.device, self.warm + self.steps, self.batch_size, self.image_size, self.augment)

    @cached_property
    def data(self) -> RandomImages:
        """What `Trainer.fit` reads: the same images in the same order, augmented alike."""
        return RandomImages(self.warm + self.steps, self.batch_size, self.image_size, self.augment)

    def by_hand(self, net: nn.Module) -> float:
        """The limit: what must be done to train, and nothing else. Neither loss nor accuracy is kept."""
        batches, start = self.batches, 0.0
        net = net.to(self.device).train()
        optimizer = make_optimizer(net.parameters())
        schedule = make_schedule(optimizer)
        for number, (images, labels, place) in enumerate(batches.loader(), 1):
            generator = Generator(self.device).manual_seed(mix(0, STREAM_AUGMENT, *place))  # type: ignore[misc]
            images = normalise(apply_all(batches.augmentations, images, generator), *batches.constants)
            optimizer.zero_grad()
            cross_entropy(net(images), labels).backward()
            optimizer.step()
            if number == self.warm:
                start = clock(self.device)
        schedule.step()
        return (clock(self.device) - start) / self.steps

    def by_hand_captured(self, net: nn.Module) -> float:
        """The limit on a GPU: forward and backward as one CUDA graph, the optimizer's step behind it."""
        batches, start = self.batches, 0.0
        net = net.to(self.device).train()
        optimizer = make_optimizer(net.parameters())
        schedule = make_schedule(optimizer)
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        inputs = torch.zeros(shape, device=self.device)
        targets = torch.zeros(self.batch_size, dtype=torch.int64, device=self.device)
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):
                cross_entropy(net(inputs), targets).backward()
        torch.cuda.synchronize(self.device)
        optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            cross_entropy(net(inputs), targets).backward()
        for number, (images, labels, place) in enumerate(batches.loader(), 1):
            generator = Generator(self.device).manual_seed(mix(0, STREAM_AUGMENT, *place))  # type: ignore[misc]
            images = apply_all(batches.augmentations, images, generator)
            inputs.copy_(normalise(images, *batches.constants))
            targets.copy_(labels)
            graph.replay()
            optimizer.step()
            if number == self.warm:
                start = clock(self.device)
        schedule.step()
        return (clock(self.device) - start) / self.steps

    def by_trainer(self, net: nn.Module, *callbacks: Callback, steps_alone: bool = False, **options: bool) -> float:
        """`Classifier`, with `options`, on an `ImageData`; no logger. In the fast mode `warm` must be whole chunks.

        `steps_alone` stops the clock after the last step.
        """
        module = Classifier(net, make_optimizer, make_schedule, **options)
        return self._fit(module, callbacks, datamodule=self.data, steps_alone=steps_alone)

    def by_run(self, net: nn.Module, bar: bool = False) -> float:
        """`by_trainer` with all that `smallnets fit` attaches to a run, in a folder that is removed; of steps alone.

        What comes once an epoch or once a run, such as checkpoints and the row, is written and not timed. `bar` adds
        the bar of a terminal, drawn into nowhere.
        """
        module = Classifier(net, make_optimizer, make_schedule)
        with TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random labels, which nothing can be learned from
            run = RunFolder.claim(Path(folder), "bench", None)
            callbacks: list[Callback] = run_callbacks(run, Health(), TensorBoardLook(graph=False))
            if bar:
                console = {"file": nowhere, "force_terminal": True}
                callbacks.append(SeldomBar(console_kwargs=console))
            loggers = run_loggers(run, 1, lines=False)
            try:
                return self._fit(
                    module, tuple(callbacks), datamodule=self.data, logger=loggers, enable_progress_bar=bar,
                    enable_checkpointing=True, log_every_n_steps=1, steps_alone=True,
                )  # fmt: skip
            finally:
                reconfigure()  # the console is rich's own, of all that print

    def by_module(self, module: L.LightningModule) -> float:
        """Another LightningModule on the same `ImageData`: what is Lightning's own cost, and what the module's."""
        return self._fit(module, (), datamodule=self.data)

    def by_usual_stack(self, net: nn.Module, dataset: Any) -> float:
        """`Usual` on a DataLoader over `dataset`, in this process."""
        pinned = self.device.type == "cuda"
        loader: Any = DataLoader(dataset, self.batch_size, shuffle=True, num_workers=0, pin_memory=pinned)
        return self._fit(Usual(net), (), train_dataloaders=loader)

    def _fit(
        self,
        module: L.LightningModule,
        callbacks: tuple[Callback, ...],
        datamodule: Any = None,
        train_dataloaders: Any = None,
        steps_alone: bool = False,
        **options: Any,
    ) -> float:
        stopwatch = Stopwatch(self.device, self.warm, steps_alone)
        bare = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        with quiet():
            trainer = L.Trainer(
                accelerator="gpu" if self.device.type == "cuda" else "cpu",
                devices=1,
                max_epochs=1,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                enable_model_summary=False,
                use_distributed_sampler=False,
                callbacks=[*callbacks, stopwatch],
                **{**bare, **options},
            )
            trainer.fit(module, train_dataloaders, datamodule=datamodule)
        return stopwatch.seconds / self.steps


class Stopwatch(Callback):
    """`seconds` from the end of step `warm`, counted from 1, to the end of training, or of its last step."""

    def __init__(self, device: torch.device, warm: int, steps_alone: bool = False) -> None:
        self.device, self.warm, self._steps_alone = device, warm, steps_alone
        self.seconds = self._start = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.warm:
            self._start = clock(self.device)
        if self._steps_alone and trainer.is_last_batch:
            self.seconds = clock(self.device) - self._start

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._steps_alone:
            self.seconds = clock(self.device) - self._start


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's notes and warnings, which are about runs that are meant to be kept."""
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def fresh(make: Callable[[], nn.Module]) -> nn.Module:
    """A new network with the same weights every time; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()
