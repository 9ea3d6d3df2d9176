"""AutoWarmup with Hugging Face Accelerate: the schedule stays out of ``prepare`` and is stepped with a loss.

python experiments/examples/accelerate_example.py --accumulate 2 --checkpoints runs/accelerate
python experiments/examples/accelerate_example.py --accumulate 2 --resume runs/accelerate/epoch-2
accelerate launch --num_processes 2 experiments/examples/accelerate_example.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from autolr_ray import AutoWarmup
from autolr_ray.tasks import TensorData, get_task

TASK = get_task("fashion_mnist_subset")


def training_data(limit: int | None) -> TensorDataset:
    """The first ``limit`` training images (None: all 10,800), normalised, with their labels."""
    train = TASK.data(None).train
    assert isinstance(train, TensorData)
    return TensorDataset(TASK.transform(train.inputs[:limit]), train.targets[:limit])


def main() -> None:
    """Train the packaged CNN on the packaged images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="length of the whole run")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch of one process")
    parser.add_argument("--accumulate", type=int, default=1, help="batches to an optimizer step")
    parser.add_argument("--limit", type=int, help="train on the first LIMIT images only, for a quick try")
    parser.add_argument("--checkpoints", type=Path, help="folder for one checkpoint an epoch; default: none")
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint, with the settings it had")
    arguments = parser.parse_args()

    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.accumulate,
        # The order of the data follows from the epoch: a resumed run has the same.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0),
    )
    torch.manual_seed(0)
    network = TASK.model()
    model, optimizer, loader = accelerator.prepare(
        network,
        torch.optim.AdamW(network.parameters()),
        DataLoader(training_data(arguments.limit), arguments.batch_size, shuffle=True),
    )
    # Not through prepare: a prepared schedule is stepped once for each process, and leaves out steps.
    scheduler = AutoWarmup(
        optimizer,
        total_steps=arguments.epochs * math.ceil(len(loader) / arguments.accumulate),
        model=network,
        scaler=accelerator.scaler,  # None but with mixed_precision="fp16"
    )
    accelerator.register_for_checkpointing(scheduler)
    first_epoch = 0
    if arguments.resume is not None:
        accelerator.load_state(str(arguments.resume))
        first_epoch = int(arguments.resume.name.removeprefix("epoch-"))

    losses: list[Tensor] = []
    for epoch in range(first_epoch, arguments.epochs):
        loader.set_epoch(epoch)
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = TASK.loss(model(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            if accelerator.sync_gradients:
                # The optimizer has stepped, or with fp16 gradients that overflowed left the step out
                # (optimizer.step_was_skipped). Such a step counts too: total_steps has counted it.
                scheduler.step(torch.stack(losses).mean())
                losses.clear()
        accelerator.print(f"epoch {epoch + 1}: lr {scheduler.get_last_lr()[0]:.6g}, {scheduler.phase}")
        if arguments.checkpoints is not None:
            scheduler.synchronize()  # on every process: the main one saves the losses of all
            accelerator.save_state(str(arguments.checkpoints / f"epoch-{epoch + 1}"))

    end = f"switch at step {scheduler.switch_step}, peak lr {scheduler.peak_lr:.6g}: {scheduler.reason}"
    accelerator.print(end)
    accelerator.end_training()


if __name__ == "__main__":
    main()
