"""AutoWarmup in a Ray Train loop of one's own: four lines, marked, reports and checkpoints that restore.

python experiments/examples/ray_train.py --workers 2
python experiments/examples/ray_train.py --workers 2 --crash-after 3
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from torch.utils.data import DataLoader, TensorDataset

from autolr_ray import AutoWarmup  # 1
from autolr_ray.tasks import TensorData, get_task


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """One worker's part: ``epochs``, ``batch_size`` (of all workers together), ``limit``, ``crash_after``."""
    task, context = get_task("fashion_mnist_subset"), ray.train.get_context()
    train = task.data(None).train
    assert isinstance(train, TensorData)
    data = TensorDataset(task.transform(train.inputs[: config["limit"]]), train.targets[: config["limit"]])
    per_worker_batch_size = config["batch_size"] // context.get_world_size()
    loader = ray.train.torch.prepare_data_loader(DataLoader(data, per_worker_batch_size, shuffle=True))
    torch.manual_seed(0)
    network = task.model()
    model = ray.train.torch.prepare_model(network)
    optimizer = torch.optim.AdamW(model.parameters())
    # The bare network, so that the state's names do not depend on whether the model is wrapped for DDP.
    scheduler = AutoWarmup(optimizer, total_steps=config["epochs"] * len(loader), model=network)  # 2
    first_epoch = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = torch.load(
                Path(folder) / "state.pt", map_location=ray.train.torch.get_device(), weights_only=True
            )
        network.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])  # after the optimizer, whose learning rates it sets
        first_epoch = state["epochs_done"]

    for epoch in range(first_epoch, config["epochs"]):
        torch.manual_seed(epoch)  # the order of the data follows from the epoch: a resumed run has the same
        if context.get_world_size() > 1:
            loader.sampler.set_epoch(epoch)
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = task.loss(model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step(loss)  # 3
        metrics = {  # 4
            "epoch": epoch + 1,
            "loss": loss.item(),
            "lr": scheduler.get_last_lr()[0],
            "phase": scheduler.phase,
            "switch_step": scheduler.switch_step,
            "peak_lr": scheduler.peak_lr,
            "reason": scheduler.reason,
        }
        scheduler.synchronize()  # on every rank: rank 0's state then holds the losses of all
        if context.get_world_rank() != 0:
            ray.train.report(metrics)
        else:
            print("epoch {epoch}: loss {loss:.4f}, lr {lr:.6g}, {phase}".format_map(metrics), flush=True)
            state = {
                "model": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "epochs_done": epoch + 1,
            }
            with tempfile.TemporaryDirectory() as folder:
                torch.save(state, Path(folder) / "state.pt")
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        if config["crash_after"] == epoch + 1 and checkpoint is None:
            # The report just made may be lost with the workers; the one before it is safe.
            raise RuntimeError("crashed, as asked: Ray Train restarts the workers from the last checkpoint")


def main() -> None:
    """Train the packaged CNN on the packaged images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="length of the whole run")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch, all workers together")
    parser.add_argument("--limit", type=int, help="train on the first LIMIT images only, for a quick try")
    parser.add_argument("--workers", type=int, default=1, help="processes that share each batch")
    parser.add_argument("--gpu", action="store_true", help="give each worker a GPU")
    parser.add_argument("--storage", type=Path, help="folder for Ray's runs; default: ~/ray_results")
    parser.add_argument("--name", help="name of the run: one that was stopped goes on under the same name")
    parser.add_argument("--crash-after", type=int, metavar="EPOCH", help="fail once, after that epoch (>= 2)")
    arguments = parser.parse_args()

    trainer = ray.train.torch.TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "epochs": arguments.epochs,
            "batch_size": arguments.batch_size,
            "limit": arguments.limit,
            "crash_after": arguments.crash_after,
        },
        scaling_config=ray.train.ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        run_config=ray.train.RunConfig(
            name=arguments.name,
            storage_path=None if arguments.storage is None else str(arguments.storage.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=1),
        ),
    )
    metrics = trainer.fit().metrics
    print("switch at step {switch_step}, peak lr {peak_lr:.6g}: {reason}".format_map(metrics))
    print("epoch {epoch}: loss {loss:.4f}, lr {lr:.6g}, {phase}".format_map(metrics))


if __name__ == "__main__":
    main()
