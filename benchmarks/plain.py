"""What the library is timed against: straightforward loops, written for these benchmarks.

They do the same work, as one would write it down from the papers and the authors' code (DeepInversion
excepted, which starts from noise; what its images are worth to a student is on its page): the teacher is asked anew for every student step, gradients of its weights are computed
and thrown away, images come through a DataLoader, systems are solved group by group.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class Transfer:
    """Gated knowledge transfer as the authors' notebook runs it, with the student in evaluation mode."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, generator: nn.Module, *, forget: int,
        batch_size: int,
    ) -> None:  # fmt: skip
        """Take the three networks; the class to forget; images a pseudo-batch."""
        self.teacher, self.student, self.generator = teacher.eval(), student.eval(), generator
        for parameter in teacher.parameters():
            parameter.requires_grad_(True)  # as loaded: nobody froze them
        self.forget, self.batch_size = forget, batch_size
        self.of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3)
        self.of_student = torch.optim.Adam(student.parameters(), lr=1e-3)
        self.randomness = torch.Generator().manual_seed(0)

    def pseudo_batch(self) -> None:
        """Take one step of the generator and ten of the student."""
        z = torch.randn(self.batch_size, 128, generator=self.randomness)
        images = self.generator(z)
        answers, _ = _with_maps(self.teacher, images)
        passes = answers.softmax(1)[:, self.forget] < 0.01
        said, _ = _with_maps(self.student, images)
        loss = -_divergence(answers[passes], said[passes])
        self.of_generator.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), 5)
        self.of_generator.step()
        images = self.generator(z).detach()
        for _ in range(10):
            with torch.no_grad():
                answers, maps = _with_maps(self.teacher, images)
            passes = answers.softmax(1)[:, self.forget] < 0.01
            said, own = _with_maps(self.student, images[passes])
            gaps = sum(
                (_attention(a) - _attention(b[passes])).pow(2).mean()
                for a, b in zip(own, maps, strict=True)
            )
            loss = _divergence(answers[passes], said) + 250 * gaps
            self.of_student.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.student.parameters(), 5)
            self.of_student.step()


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    return F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean") / 10


def _attention(activation: Tensor) -> Tensor:
    return F.normalize(activation.pow(2).mean(1).flatten(1))


def _with_maps(network: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return logits and the output of every ReLU."""
    kept: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, output: kept.append(output))
        for module in network.modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        return network(images), kept
    finally:
        for hook in hooks:
            hook.remove()


def invert(
    teacher: nn.Module, labels: Tensor, *, shape: tuple[int, int, int], steps: int
) -> Tensor:
    """Optimise images from noise, as NVlabs' code does: hooks on BatchNorm, Adam, random shifts."""
    teacher.eval()
    images = torch.randn(len(labels), *shape).requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=0.05)
    for _ in range(steps):
        gaps: list[Tensor] = []

        def look(layer: nn.Module, fed: tuple[Tensor], _: Tensor, gaps: list = gaps) -> None:
            mean, variance = fed[0].mean((0, 2, 3)), fed[0].var((0, 2, 3), unbiased=False)
            gaps.append((layer.running_mean - mean).norm() + (layer.running_var - variance).norm())

        hooks = [
            module.register_forward_hook(look)
            for module in teacher.modules()
            if isinstance(module, nn.BatchNorm2d)
        ]
        offsets = torch.randint(-2, 3, (2,)).tolist()
        moved = torch.roll(images, offsets, (2, 3))
        flat = moved[:, :, 1:] - moved[:, :, :-1], moved[..., 1:] - moved[..., :-1]
        loss = F.cross_entropy(teacher(moved), labels) + 0.01 * sum(gaps)
        loss = loss + 1e-4 * sum(part.norm() for part in flat)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for hook in hooks:
            hook.remove()
    return images.detach()


def train(
    network: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, batch_size: int, rate: float,
    l2: float,
) -> None:  # fmt: skip
    """Train by Adam through a DataLoader."""
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=rate, weight_decay=l2)
    loader = DataLoader(
        TensorDataset(images, labels), batch_size=batch_size, shuffle=True, drop_last=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rate, total_steps=epochs * len(loader)
    )
    for _ in range(epochs):
        for x, y in loader:
            optimiser.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimiser.step()
            schedule.step()


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], sides: Tensor, *, tolerance: float, most: int
) -> Tensor:
    """Solve for the columns of the right-hand sides ``[P, M]`` one after the other."""
    solved = []
    for b in sides.T:
        x, r = torch.zeros_like(b), b.clone()
        p, rr = r.clone(), r @ r
        for _ in range(most):
            if rr.sqrt() <= tolerance * b.norm():
                break
            ap = product(p)
            step = rr / (p @ ap)
            x, r = x + step * p, r - step * ap
            p, rr = r + (r @ r) / rr * p, r @ r
        solved.append(x)
    return torch.stack(solved, 1)
