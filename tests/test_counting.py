"""Parameters, layers and multiply-accumulates against counts made by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from example_networks import EncoderStack, ViT, vision_resnet18, vision_resnet50
from torch import Tensor, nn

from lit_fast import models
from lit_fast.pair.counting import count_layers, count_macs, count_parameters
from lit_fast.sections.cutting import split


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def test_convolutions_count_outputs_times_inputs_per_group():
    x = torch.zeros(1, 8, 6, 6)
    assert count_macs(nn.Conv2d(8, 12, 3, padding=1), x) == 6 * 6 * 12 * 8 * 9
    assert count_macs(nn.Conv2d(8, 12, 3, padding=1, groups=4), x) == 6 * 6 * 12 * 2 * 9
    assert count_macs(nn.Conv2d(8, 12, 3, stride=2, padding=1), x) == 3 * 3 * 12 * 8 * 9
    assert count_macs(nn.Linear(7, 5), torch.zeros(1, 7)) == 35


def test_macs_are_per_image():
    model = models.resnet20()
    assert count_macs(model, torch.zeros(1, 3, 16, 16)) == count_macs(model, torch.zeros(5, 3, 16, 16))


def encoder_macs(tokens: int, dim: int, depth: int) -> int:
    projections = 4 * tokens * dim * dim
    attention = 2 * tokens * tokens * dim
    feed_forward = 2 * tokens * dim * (2 * dim)
    return depth * (projections + attention + feed_forward)


@pytest.mark.parametrize("training", [False, True])
def test_attention_is_counted_though_eval_mode_fuses_the_layer(training):
    model = EncoderStack(depth=3).train(training)
    assert count_macs(model, torch.randint(50, (1, 7))) == encoder_macs(7, 32, 3) + 32 * 5
    assert torch.backends.mha.get_fastpath_enabled()


def test_parts_sum_to_the_whole():
    for model, x in (
        (split(models.resnet20()), torch.randn(1, 3, 16, 16)),
        (split(ViT(), ["layers.1", "layers.3"], stem="embed"), torch.randn(1, 3, 16, 16)),
    ):
        total, parameters, out = 0, 0, x
        for part in model.parts:
            total += count_macs(part, out)
            parameters += count_parameters(part)
            out = part(out)
        assert total == count_macs(model, x) == count_macs(model.model, x)
        assert parameters == count_parameters(model)


def test_layers_are_counted_as_networks_are_named():
    assert count_layers(models.resnet44()) == 44
    assert count_layers(vision_resnet18()) == 18
    assert count_layers(vision_resnet50()) == 50
    assert count_layers(split(vision_resnet18(), ["layer2"])) == 18
    # patches; in, out, and two feed-forward projections in each of 4 layers; classifier
    assert count_layers(ViT(depth=4)) == 1 + 4 * 4 + 1


def test_a_shared_parameter_counts_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert count_parameters(model) == 16 + 4 + 4


class Stateful(nn.Module):
    """Cannot run without values, counts its calls, draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.sum().item() > 1e9:
            return x
        return self.linear(x) + torch.rand(4)


@pytest.mark.parametrize("make", [Stateful, lambda: models.resnet20()])
def test_counting_leaves_no_trace(make):
    model = make().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x = torch.ones(2, 4) if isinstance(model, Stateful) else torch.ones(2, 3, 8, 8)
    assert count_macs(model, x) > 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_attention_is_counted_too_where_the_model_must_run():
    model = nn.Sequential(EncoderStack(depth=3), LooksAtValues()).eval()
    assert count_macs(model, torch.randint(50, (1, 7))) == encoder_macs(7, 32, 3) + 32 * 5
    assert torch.backends.mha.get_fastpath_enabled()


class LooksAtValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() < 1e9 else -x


def test_a_module_that_looks_at_values_is_counted_by_running_it():
    assert count_macs(Stateful(), torch.ones(2, 4)) == 16
