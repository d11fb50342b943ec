"""The gradient that W ranks average is the gradient of one large batch: exactly, for vectors, parameters and scale."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mmstream.errors import UsageError
from mmstream.train.gather import all_gather, check_equal_rows
from mmstream.train.losses import info_nce

NUM_ROWS = 12  # divisible by 1, 2, 3


class Pair(nn.Module):
    """The smallest dual encoder: two linear maps and a scale."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.image, self.text = nn.Linear(5, 4, dtype=dtype), nn.Linear(6, 4, dtype=dtype)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07), dtype=dtype))

    def forward(self, image_BC: Tensor, text_BE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y = F.normalize(self.image(image_BC), dim=1), F.normalize(self.text(text_BE), dim=1)
        return x, y, self.log_scale.exp()


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(NUM_ROWS, 11, generator=generator, dtype=torch.float64).to(dtype)
    return wide[:, :5], wide[:, 5:]


def one_large_batch(dtype: torch.dtype) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and parameters after a step of SGD, written out without mmstream."""
    model = Pair(dtype)
    x, y, scale = model(*batch(dtype))
    own = torch.arange(NUM_ROWS)
    loss = (F.cross_entropy(scale * x @ y.T, own) + F.cross_entropy(scale * y @ x.T, own)) / 2
    loss.backward()
    return loss.item(), *_after_a_step(model)


def _after_a_step(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return grads, {name: p.detach().clone() for name, p in model.named_parameters()}


def on_a_rank(rank: int, dtype: torch.dtype):
    model = Pair(dtype)
    ddp = DistributedDataParallel(model)
    rows = NUM_ROWS // dist.get_world_size()
    loss = info_nce(*ddp(*(x[rank * rows : (rank + 1) * rows] for x in batch(dtype))))
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean.item() / dist.get_world_size(), *_after_a_step(model)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_ranks_together_have_loss_gradient_and_step_of_one_large_batch(
    tmp_path: Path, world_size: int, dtype: torch.dtype, tolerance: float
):
    loss, grads, parameters = one_large_batch(dtype)
    for found_loss, found_grads, found_parameters in run_on_ranks(on_a_rank, world_size, str(tmp_path), dtype):
        assert abs(found_loss - loss) <= tolerance * loss
        for expected, found in ((grads, found_grads), (parameters, found_parameters)):
            assert found.keys() == expected.keys() == {n for n, _ in Pair(dtype).named_parameters()}
            for name, value in expected.items():
                assert (found[name] - value).norm() <= tolerance * value.norm(), name


def gather_numbered(rank: int):
    gathered = all_gather(torch.full((2, 3), float(rank)))
    mine = torch.full((2, 3), float(rank), requires_grad=True)
    weights = torch.arange(6.0).view(6, 1) * (rank + 1)
    (all_gather(mine) * weights).sum().backward()
    return gathered, mine.grad


def test_a_gather_is_in_the_order_of_ranks_and_its_gradient_is_summed_over_them(tmp_path: Path):
    for rank, (gathered, grad) in enumerate(run_on_ranks(gather_numbered, 3, str(tmp_path))):
        assert gathered[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
        assert grad[:, 0].tolist() == [row * (1 + 2 + 3) for row in (2 * rank, 2 * rank + 1)]


def check_rank_plus_one_rows(rank: int) -> str:
    check_equal_rows(4)
    with pytest.raises(UsageError) as e:
        check_equal_rows(rank + 1)
    return str(e.value)


def test_unequal_rows_are_refused_on_every_rank_before_anything_is_gathered(tmp_path: Path):
    said = run_on_ranks(check_rank_plus_one_rows, 2, str(tmp_path))
    assert said[0] == said[1] and "1 to 2 rows" in said[0]


def test_chance_is_the_logarithm_of_the_number_of_rows():
    same = F.normalize(torch.ones(50, 8), dim=1)
    assert info_nce(same, same, torch.tensor(20.0)).item() == pytest.approx(math.log(50), abs=1e-5)


def test_logits_are_made_in_float32_even_under_autocast():
    x, y = (F.normalize(torch.randn(32, 64), dim=1) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(x, y, torch.tensor(50.0)), info_nce(x.clone(), y, torch.tensor(50.0)))
    assert info_nce(x.bfloat16(), y.bfloat16(), torch.tensor(50.0)).dtype == torch.float32
