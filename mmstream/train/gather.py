"""All ranks' vectors on every rank, with the exact gradient.

Legend: W ranks, B rows of each rank, D dimension.

Every rank computes the loss of its own rows against all columns. The gradient of what a rank gathered from another
belongs to that other rank: the backward pass sums over ranks and hands each its part. There is no factor of W, since
DistributedDataParallel averages the parameters' gradients over ranks, as the mean over all rows asks for.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmstream.errors import UsageError


def all_gather(x_BD: Tensor) -> Tensor:
    """[B, D] of this rank → [W * B, D] in the order of ranks; differentiable. On a single process, `x_BD` itself.

    Raises:
        UsageError: ranks hold different numbers of rows; a batch is cut so that they do not.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x_BD
    return _AllGather.apply(x_BD)


def check_equal_rows(rows: int, device: torch.device | None = None) -> None:
    """To be called once a batch on every rank: unequal rows would hang or silently misplace a gather.

    `device` is where the ranks' backend works: the CPU for gloo.

    Raises:
        UsageError: on every rank, where they differ.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    bounds = torch.tensor([rows, -rows], device=device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
    most, least = int(bounds[0]), -int(bounds[1])
    if most != least:
        raise UsageError(f"ranks hold {least} to {most} rows of one batch; cut every batch into equal parts.")


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BD.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)  # gloo has no reduce_scatter
        return total.chunk(dist.get_world_size())[dist.get_rank()]
