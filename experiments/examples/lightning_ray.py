"""AutoWarmup in a LightningModule, under Ray Train or alone, with gradient accumulation and checkpoints.

python experiments/examples/lightning_ray.py --workers 2
python experiments/examples/lightning_ray.py --plain --checkpoints runs/lightning
python experiments/examples/lightning_ray.py --plain --resume runs/lightning/epoch=1.ckpt
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from autolr_ray import AutoWarmup
from autolr_ray.tasks import TensorData, get_task


class Classifier(lightning.LightningModule):
    """The packaged CNN; Lightning steps optimizer and schedule (automatic optimization)."""

    scheduler: AutoWarmup

    def __init__(self) -> None:
        super().__init__()
        self.task = get_task("fashion_mnist_subset")
        self.network = self.task.model()
        self.losses: list[Tensor] = []

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule, which is stepped when the optimizer is."""
        optimizer = torch.optim.AdamW(self.network.parameters())
        self.scheduler = AutoWarmup(
            optimizer,
            total_steps=int(self.trainer.estimated_stepping_batches),  # accumulation and workers counted in
            model=self.network,
            scaler=getattr(self.trainer.precision_plugin, "scaler", None),  # with precision="16-mixed"
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch; with accumulation an optimizer step has several."""
        inputs, targets = batch
        loss = self.task.loss(self.network(inputs), targets)
        self.losses.append(loss.detach())
        return loss

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Once after each optimizer step: hand over the mean loss of the batches that it was made from."""
        scheduler.step(torch.stack(self.losses).mean())
        self.losses.clear()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what Ray's callback reports, numbers only; switch_step is -1 during the warmup."""
        switch_step = -1 if self.scheduler.switch_step is None else self.scheduler.switch_step
        self.log("loss", outputs["loss"])
        self.log("lr", self.scheduler.get_last_lr()[0])
        self.log("switch_step", float(switch_step))

    def on_train_epoch_end(self) -> None:
        """One line an epoch."""
        if self.trainer.is_global_zero:
            lr, phase = self.scheduler.get_last_lr()[0], self.scheduler.phase
            print(f"epoch {self.current_epoch + 1}: lr {lr:.6g}, {phase}", flush=True)

    def on_train_end(self) -> None:
        """Say when and why the warmup ended."""
        if self.trainer.is_global_zero:
            step, peak_lr = self.scheduler.switch_step, self.scheduler.peak_lr
            print(f"switch at step {step}, peak lr {peak_lr:.6g}: {self.scheduler.reason}", flush=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put all ranks' losses into the one state that rank 0 writes.

        Lightning saves and restores the schedule by itself, under "lr_schedulers", and calls this hook on
        every rank after it has collected the states. On one process the state stays as it was.
        """
        if "lr_schedulers" in checkpoint:
            self.scheduler.synchronize()
            checkpoint["lr_schedulers"] = [self.scheduler.state_dict()]


def loader_of(module: Classifier, trainer: lightning.Trainer, config: dict[str, Any]) -> Any:
    """This process's share of each batch of the first ``limit`` images (None: all 10,800), normalised."""
    train = module.task.data(None).train
    assert isinstance(train, TensorData)
    limit, workers = config["limit"], trainer.world_size
    data = TensorDataset(module.task.transform(train.inputs[:limit]), train.targets[:limit])
    # Lightning tells this sampler the epoch, from which its order follows: a resumed run has the same.
    # With shuffle=True one process would go on with an order of its own.
    sampler: Any = DistributedSampler(data, num_replicas=workers, rank=trainer.global_rank)
    return DataLoader(data, config["batch_size"] // workers, sampler=sampler)


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What the trainer is told with and without Ray."""
    return {
        "max_epochs": config["epochs"],
        "accumulate_grad_batches": config["accumulate"],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def fit_plain(config: dict[str, Any]) -> None:
    """Train in this process."""
    torch.manual_seed(0)
    module = Classifier()
    folder = config["checkpoints"]
    trainer = lightning.Trainer(
        devices=1,
        callbacks=ModelCheckpoint(folder, "{epoch}", save_top_k=-1) if folder else None,
        enable_checkpointing=bool(folder),
        **settings_of(config),
    )
    loader = loader_of(module, trainer, config)
    trainer.fit(module, loader, ckpt_path=config["resume"])


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """One worker's part on Ray."""
    import ray.train
    from ray.train import lightning as ray_lightning

    torch.manual_seed(0)
    module = Classifier()
    trainer = ray_lightning.prepare_trainer(
        lightning.Trainer(
            devices="auto",
            strategy=ray_lightning.RayDDPStrategy(),
            plugins=[ray_lightning.RayLightningEnvironment()],
            callbacks=[ray_lightning.RayTrainReportCallback()],  # one report and checkpoint an epoch
            enable_checkpointing=False,
            **settings_of(config),
        )
    )
    loader = loader_of(module, trainer, config)
    checkpoint = ray.train.get_checkpoint()  # after a failure: Ray starts the workers anew
    if checkpoint is None:
        trainer.fit(module, loader)
    else:
        with checkpoint.as_directory() as folder:
            name = ray_lightning.RayTrainReportCallback.CHECKPOINT_NAME
            trainer.fit(module, loader, ckpt_path=str(Path(folder) / name))


def fit_on_ray(config: dict[str, Any], *, workers: int, use_gpu: bool, storage: Path | None) -> None:
    """Train in workers of Ray; one failure is made good from the last checkpoint."""
    import ray.train
    from ray.train.torch import TorchTrainer

    result = TorchTrainer(
        train_loop_per_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            storage_path=None if storage is None else str(storage.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=1),
        ),
    ).fit()
    print("reported last: switch_step {switch_step:.0f}, lr {lr:.6g}".format_map(result.metrics))


def main() -> None:
    """Train the packaged CNN on the packaged images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="length of the whole run")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch, all workers together")
    parser.add_argument("--accumulate", type=int, default=1, help="batches to an optimizer step")
    parser.add_argument("--limit", type=int, help="train on the first LIMIT images only, for a quick try")
    parser.add_argument("--workers", type=int, default=1, help="processes of Ray that share each batch")
    parser.add_argument("--gpu", action="store_true", help="give each worker a GPU")
    parser.add_argument("--storage", type=Path, help="folder for Ray's runs; default: ~/ray_results")
    parser.add_argument("--plain", action="store_true", help="without Ray, in this process")
    parser.add_argument("--checkpoints", help="with --plain: folder for one checkpoint an epoch")
    parser.add_argument("--resume", help="with --plain: go on from this checkpoint")
    arguments = parser.parse_args()
    config = vars(arguments)
    if arguments.plain:
        fit_plain(config)
    else:
        fit_on_ray(
            {name: config[name] for name in ("epochs", "batch_size", "accumulate", "limit")},
            workers=arguments.workers,
            use_gpu=arguments.gpu,
            storage=arguments.storage,
        )


if __name__ == "__main__":
    main()
