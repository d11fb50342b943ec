"""Matrices go to Muon, the rest to AdamW; the schedule rises and falls; a saved state goes on exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmstream.models.dual import DualEncoder, DualEncoderConfig
from mmstream.train.optim import Optim, OptimConfig, schedule


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.conv, self.norm = nn.Embedding(9, 4), nn.Conv2d(4, 8, 3), nn.GroupNorm(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids).mT.reshape(-1, 4, 3, 3)
        return self.out(self.norm(self.conv(x)).flatten(1))


def take_steps(net: Net, optim: Optim, steps: range) -> None:
    for step in steps:
        ids = torch.randint(0, 9, (16, 9), generator=torch.Generator().manual_seed(step))
        F.cross_entropy(net(ids), ids[:, 0] % 3).backward()
        optim.step(step)


def test_every_parameter_moves_and_weights_of_maps_and_convolutions_by_muon():
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optim = Optim.of(net, OptimConfig(), 10)
    take_steps(net, optim, range(2))
    assert all(not torch.equal(p, before[name]) for name, p in net.named_parameters())
    by_muon = {id(weight) for weight, _ in optim.matrices}
    assert by_muon == {id(net.conv.weight), id(net.out.weight)}
    assert all(p.grad is None for p in net.parameters())


def test_a_step_of_muon_moves_all_directions_of_a_matrix_alike():
    net = Net()
    before = net.out.weight.detach().clone()
    take_steps(net, Optim.of(net, OptimConfig(weight_decay=0), 1), range(1))
    moved = torch.linalg.svdvals(before - net.out.weight.detach()) / 0.02
    assert moved.min() > 0.4 and moved.max() < 1.5


def test_without_a_matrix_learning_rate_adamw_moves_everything():
    optim = Optim.of(Net(), OptimConfig(matrix_learning_rate=None), 10)
    assert not optim.matrices and len(optim.optimizers) == 1


def test_only_weights_decay():
    net = Net()
    (adamw,) = Optim.of(net, OptimConfig(matrix_learning_rate=None), 10).optimizers
    decayed = {id(p) for g in adamw.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(net.conv.weight), id(net.out.weight)}


def test_the_schedule_rises_to_one_and_falls_to_zero():
    rates = [schedule(step, 100, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0 and rates[100] == pytest.approx(0)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.5)


def test_a_gradient_is_clipped_over_all_parameters_together():
    model = DualEncoder(DualEncoderConfig())
    optim = Optim.of(model, OptimConfig(matrix_learning_rate=None, betas=(0.0, 0.0), weight_decay=0, clip=0.5), 1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    seen = [parameter.grad for parameter in model.parameters()]
    optim.step(0)
    assert torch.cat([g.flatten() for g in seen if g is not None]).norm().item() == pytest.approx(0.5, rel=1e-3)


def test_a_run_that_goes_on_from_a_saved_state_has_the_same_weights_bit_for_bit():
    whole, optim = Net(), None
    optim = Optim.of(whole, OptimConfig(), 8)
    take_steps(whole, optim, range(4))
    weights = {k: v.clone() for k, v in whole.state_dict().items()}
    state = {k: v.clone() for k, v in optim.state().items()}
    take_steps(whole, optim, range(4, 8))
    again = Net()
    other = Optim.of(again, OptimConfig(), 8)
    again.load_state_dict(weights)
    other.load_state(state)
    take_steps(again, other, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
