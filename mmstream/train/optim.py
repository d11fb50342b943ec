"""Optimizers and the schedule of their learning rates.

The weights of linear maps and convolutions, as matrices [out, rest], are moved by Muon (momentum, made orthogonal),
everything else by AdamW, without weight decay. Both get the same warm-up and cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from mmstream.config import Config


class OptimConfig(Config):
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW, at the top of the schedule")
    matrix_learning_rate: float | None = Field(0.02, gt=0, description="of Muon; null leaves matrices to AdamW too")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = Field(0.95, ge=0, lt=1, description="of Muon")
    warmup: float = Field(0.04, ge=0, lt=1, description="share of all steps")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient of all parameters together")
    precision: str = Field("bfloat16", pattern="^(bfloat16|float32)$")


@dataclass(frozen=True)
class Optim:
    """The optimizers of one model, moved together. `matrices` are parameters with the matrix [out, rest] of each."""

    config: OptimConfig
    parameters: tuple[nn.Parameter, ...]
    matrices: tuple[tuple[nn.Parameter, Tensor], ...]
    optimizers: tuple[Optimizer, ...]
    total_steps: int

    @classmethod
    def of(cls, model: nn.Module, config: OptimConfig, total_steps: int) -> Optim:
        """For a model whose parameters stay where they are: a matrix shares the memory of its parameter."""
        weights, decayed, others = _grouped(model, config)
        matrices = tuple((weight, weight.detach().flatten(1)) for weight in weights)
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay, "peak": config.learning_rate},
            {"params": others, "weight_decay": 0.0, "peak": config.learning_rate},
        ]
        optimizers: list[Optimizer] = [AdamW([g for g in groups if g["params"]], betas=config.betas, fused=True)]
        if matrices:
            group = {"params": [m for _, m in matrices], "peak": config.matrix_learning_rate}
            optimizers.append(Muon([group], weight_decay=config.weight_decay, momentum=config.momentum))
        return cls(config, tuple(model.parameters()), matrices, tuple(optimizers), total_steps)

    def step(self, step: int) -> float:
        """Clips the gradients, moves the parameters by step number `step` (from 0) and forgets the gradients.

        Returns the learning rate of AdamW.
        """
        factor = schedule(step, self.total_steps, self.config.warmup)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        for weight, matrix in self.matrices:
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        return self.config.learning_rate * factor

    def state(self) -> dict[str, Tensor]:
        """All tensors of the optimizers' state, under `optimizer.parameter.name`."""
        return {
            f"{n}.{parameter}.{name}": value
            for n, optimizer in enumerate(self.optimizers)
            for parameter, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The counterpart of `state`, for the same model and config."""
        for n, optimizer in enumerate(self.optimizers):
            own: dict[int, dict[str, Tensor]] = {}
            for key, value in state.items():
                at, parameter, name = key.split(".", 2)
                if int(at) == n:
                    own.setdefault(int(parameter), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": own})


def schedule(step: int, total_steps: int, warmup: float) -> float:
    """Share of the peak learning rate at `step`: a linear warm-up, then half a cosine down to 0 at `total_steps`."""
    rising = max(1, round(warmup * total_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total_steps - rising))))


def _grouped(
    model: nn.Module, config: OptimConfig
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """(weights of linear maps and convolutions for Muon, others with weight decay, others without)."""
    maps = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)}
    matrices, decayed, others = [], [], []
    for parameter in model.parameters():
        if id(parameter) not in maps:
            others.append(parameter)
        elif config.matrix_learning_rate is None:
            decayed.append(parameter)
        else:
            matrices.append(parameter)
    return matrices, decayed, others
