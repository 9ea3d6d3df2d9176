"""AutoWarmup in a plain PyTorch loop: four lines, marked, and a checkpoint that resumes bit for bit.

python experiments/examples/plain_pytorch.py --checkpoints runs/plain
python experiments/examples/plain_pytorch.py --resume runs/plain/epoch-2.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from autolr_ray import AutoWarmup  # 1
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
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch")
    parser.add_argument("--limit", type=int, help="train on the first LIMIT images only, for a quick try")
    parser.add_argument("--checkpoints", type=Path, help="folder for one checkpoint an epoch; default: none")
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint, with the settings it had")
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = DataLoader(training_data(arguments.limit), batch_size=arguments.batch_size, shuffle=True)
    torch.manual_seed(0)
    model = TASK.model().to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = AutoWarmup(optimizer, total_steps=arguments.epochs * len(loader), model=model)  # 2
    first_epoch = 0
    if arguments.resume is not None:
        state = torch.load(arguments.resume, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])  # after the optimizer, whose learning rates it sets
        first_epoch = state["epochs_done"]

    for epoch in range(first_epoch, arguments.epochs):
        torch.manual_seed(epoch)  # the order of the data follows from the epoch: a resumed run has the same
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = TASK.loss(model(inputs.to(device)), targets.to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step(loss)  # 3
        lr = scheduler.get_last_lr()[0]
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}, lr {lr:.6g}, {scheduler.phase}")  # 4
        if arguments.checkpoints is not None:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "epochs_done": epoch + 1,
            }
            arguments.checkpoints.mkdir(parents=True, exist_ok=True)
            torch.save(state, arguments.checkpoints / f"epoch-{epoch + 1}.pt")

    print(f"switch at step {scheduler.switch_step}, peak lr {scheduler.peak_lr:.6g}: {scheduler.reason}")


if __name__ == "__main__":
    main()
