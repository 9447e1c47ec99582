"""PGD adversarial training written plainly: what the loop's speed is compared with. Nothing of the suite is used."""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def small_cnn(channels: int, side: int, width: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * width * (side // 4) ** 2, 10),
    )  # fmt: skip


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Tensor:
    model.eval()
    delta = torch.empty_like(x).uniform_(-eps, eps)
    for _ in range(steps):
        x_adv = (x + delta).clamp(0, 1).requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y, reduction="sum"), x_adv)
        delta = (x_adv.detach() - x + alpha * grad.sign()).clamp(-eps, eps)
    model.train()
    return (x + delta).clamp(0, 1)


def train(model: nn.Module, x: Tensor, y: Tensor, eps: float, epochs: int, batch: int, lr: float = 0.1,
          autocast: torch.dtype | None = None) -> list[float]:  # fmt: skip
    """Seconds of each epoch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    seconds = []
    for _ in range(epochs):
        began = time.perf_counter()
        for rows in torch.randperm(len(x), device=x.device).split(batch):
            with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
                x_adv = pgd(model, x[rows], y[rows], eps, eps / 4, 10)
                loss = F.cross_entropy(model(x_adv), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if not bool(torch.isfinite(loss)):
                raise RuntimeError("the loss is not finite")
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    digits = torch.rand(1280, 1, 8, 8), torch.randint(0, 10, (1280,))
    print(train(small_cnn(1, 8), *digits, 0.15, arguments.epochs, 128))
