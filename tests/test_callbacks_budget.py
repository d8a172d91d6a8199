"""ParameterBudget: a network over its budget never takes a step."""

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from smallnets.callbacks import ParameterBudget
from smallnets.errors import UserError
from smallnets.measure import BudgetExceeded

# Lightning 2.6 on the newest torch, and small loaders.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


class Module(L.LightningModule):
    """16 inputs, 3 outputs: 3 * 16 + 3 = 51 parameters, 48 MACs."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(L.LightningDataModule):
    in_channels, image_size = 1, 4

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)), 4)


def trainer(tmp_path, *callbacks, logger=False):
    return L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )


def test_over_budget_stops_before_the_first_step(tmp_path):
    module = Module()
    before = module.net[1].weight.detach().clone()
    made = trainer(tmp_path, ParameterBudget(parameters=50))
    with pytest.raises(BudgetExceeded, match=r"Sequential is over its budget: parameters 51 > limit 50"):
        made.fit(module, datamodule=Data())
    assert made.global_step == 0 and torch.equal(module.net[1].weight, before)


@pytest.mark.parametrize("limits", [{"parameters": 51}, {"macs": 48, "nonzero_parameters": "1k"}, {"bytes": "1M"}])
def test_at_the_limit_is_within(tmp_path, limits):
    made = trainer(tmp_path, ParameterBudget(**limits))
    made.fit(Module(), datamodule=Data())
    assert made.global_step == 4


def test_macs_over(tmp_path):
    with pytest.raises(BudgetExceeded, match="macs 48 > limit 47"):
        trainer(tmp_path, ParameterBudget(macs=47)).fit(Module(), datamodule=Data())


@pytest.mark.parametrize("first", [True, False])
def test_what_others_change_at_the_start_is_counted_in_either_order(tmp_path, first):
    class Shrink(L.Callback):
        def on_train_start(self, trainer, pl_module):
            pl_module.net[1].weight.data[:, 0] = 0.0

    budget = ParameterBudget(nonzero_parameters=48)
    callbacks = [budget, Shrink()] if first else [Shrink(), budget]
    trainer(tmp_path, *callbacks).fit(Module(), datamodule=Data())


def test_check_after_a_change_of_structure(tmp_path):
    class Grow(L.Callback):
        def __init__(self, budget):
            self.budget = budget

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.net[1] = nn.Linear(16, 30)
                self.budget.check(trainer, pl_module)

    budget = ParameterBudget(parameters=100)
    made = trainer(tmp_path, budget, Grow(budget))
    with pytest.raises(BudgetExceeded, match="parameters 510 > limit 100"):
        made.fit(Module(), datamodule=Data())
    assert made.global_step == 2


def test_counts_are_logged_once_a_fit_and_fit_twice_checks_twice(tmp_path):
    budget = ParameterBudget(parameters=60)
    logger = CSVLogger(tmp_path, name="logs", version="one")
    trainer(tmp_path, budget, logger=logger).fit(Module(), datamodule=Data())
    lines = (tmp_path / "logs" / "one" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    logged = [row for row in rows if row.get("budget/parameters")]
    assert len(logged) == 1
    assert (float(logged[0]["budget/parameters"]), float(logged[0]["budget/macs"])) == (51, 48)
    assert {"budget/nonzero_parameters", "budget/bytes"} <= set(logged[0])
    large = Module()
    large.net[1] = nn.Linear(16, 4)
    with pytest.raises(BudgetExceeded, match="68 > limit 60"):
        trainer(tmp_path, budget).fit(large, datamodule=Data())


def test_wrong_use(tmp_path):
    with pytest.raises(UserError, match="at least one limit"):
        ParameterBudget()
    with pytest.raises(UserError, match="many"):
        ParameterBudget(parameters="many")
    with pytest.raises(UserError, match="needs a data module with image_size and in_channels"):
        trainer(tmp_path, ParameterBudget(parameters="1M")).fit(Module(), Data().train_dataloader())
