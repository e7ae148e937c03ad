"""Networks that people have, in tiny configurations: cut as they are, trained as by hand.

What their own code does is the oracle throughout: their forward, and their blocks called with the arguments that hooks
see in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from everyday import exhaustive
from hub_networks import NETWORKS, Network
from torch import Tensor, nn

import lit_fast as lf
from lit_fast.loss.targets import logits_of

ALPHA, BETA, TAU = 0.5, 0.5, 3.0

# One of each kind, for what takes longer than a forward.
EVERYDAY = {
    ("GPT-2", "transformers"),  # a decoder, whose weights are tied
    ("BERT", "transformers"),  # an encoder with a mask
    ("T5 decoder", "transformers"),  # two stacks
    ("ViT", "timm"),
    ("RegNet", "torchvision"),
    ("two inputs", "own"),
}
EACH = pytest.mark.parametrize("network", NETWORKS, ids=lambda network: f"{network.library} {network.name}")
SOME = pytest.mark.parametrize(
    "network",
    [
        pytest.param(
            network,
            id=f"{network.library} {network.name}",
            marks=() if (network.name, network.library) in EVERYDAY else exhaustive,
        )
        for network in NETWORKS
    ],
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def pair(network: Network, dtype: torch.dtype = torch.float32) -> tuple[lf.SplitModel, lf.SplitModel]:
    """A teacher of twice the student's depth."""
    return network.split(2, dtype).eval().requires_grad_(False), network.split(1, dtype).train()


# -- forward -----------------------------------------------------------------------------------------------------------


@EACH
def test_it_is_cut_as_the_table_says(network: Network) -> None:
    model = network.split(1)
    assert model.how == network.how, model.why


@EACH
@pytest.mark.parametrize("training", [False, True])
def test_run_equals_the_models_own_forward_bit_for_bit(network: Network, training: bool) -> None:
    model, inputs = network.split(1, dropout=True).train(training), network.batch()
    torch.manual_seed(1)
    own = logits_of(call(model.model, inputs))
    torch.manual_seed(1)
    assert torch.equal(logits_of(model.run(inputs)[1]), own)


@EACH
def test_sections_called_again_repeat_the_models_own_run_bit_for_bit(network: Network) -> None:
    model, inputs = network.split(2).eval(), network.batch()
    irs, _ = model.run(inputs)
    entered = model.entered if model.how == "recorded" else model.stem(*_values(inputs))
    for section, given, ir in zip(model.sections, [entered, *irs], irs):
        assert torch.equal(section(given), ir)


def _values(inputs: Any) -> Sequence[Tensor]:
    return list(inputs.values()) if isinstance(inputs, dict) else [inputs]


# -- a step ------------------------------------------------------------------------------------------------------------


def names_by_section(network: Network, model: nn.Module) -> list[list[str]]:
    """The modules of each section, read off the arguments of the cut."""

    def children(name: str) -> list[str]:
        return [f"{name}.{child}" for child, _ in model.get_submodule(name).named_children()]

    if "blocks" in network.cut:
        names = children(network.cut["blocks"])
        half = len(names) // 2
        return [names[:half], names[half:]]
    at = network.cut["at"]
    stack = at[0].rpartition(".")[0]
    if not isinstance(model.get_submodule(stack), nn.Sequential) or not stack:
        return [[name] for name in at]
    names = children(stack)
    ends = [names.index(name) + 1 for name in at]
    stem = network.cut["stem"]
    start = names.index(stem) + 1 if stem else ends[0] - 1
    return [names[start:end] for start, end in zip([start, *ends], ends)]


class Watched:
    """A forward with hooks on some modules: their arguments, the hidden states that they gave, and the logits."""

    def __init__(self, model: nn.Module, names: Sequence[str], inputs: Any) -> None:
        self.given: dict[str, Any] = {}
        self.gave: dict[str, Tensor] = {}
        hooks = []
        for name in names:
            module = model.get_submodule(name)
            hooks.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            hooks.append(module.register_forward_hook(self._after(name)))
        self.logits = logits_of(call(model, inputs))
        for hook in hooks:
            hook.remove()

    def _before(self, name: str) -> Any:
        return lambda module, args, kwargs: self.given.__setitem__(name, (args, kwargs))

    def _after(self, name: str) -> Any:
        return lambda module, args, out: self.gave.__setitem__(name, hidden_in(out))


def hidden_in(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def naive_loss(network: Network, teacher: nn.Module, student: nn.Module, inputs: Any, labels: Tensor | None) -> Tensor:
    """Two passes by hand."""
    if network.targets in ("causal_lm", "tokens"):
        inputs = {**inputs, "use_cache": False}  # a block called by hand would append to it
    sections = names_by_section(network, student)
    with torch.no_grad():
        by_teacher = names_by_section(network, teacher)
        target = Watched(teacher, [section[-1] for section in by_teacher], inputs)
    composed = Watched(student, [name for section in sections for name in section], inputs)
    targets = [target.gave[section[-1]] for section in by_teacher]
    irs = [composed.gave[sections[0][-1]]]
    for section, hidden in zip(sections[1:], targets):
        for name in section:
            args, kwargs = composed.given[name]
            args, kwargs = ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})
            hidden = hidden_in(student.get_submodule(name)(*args, **kwargs))
        irs.append(hidden)
    z_t, _ = rows(network, target.logits, inputs, labels)
    z_s, y = rows(network, composed.logits, inputs, labels)
    kl = F.kl_div(F.log_softmax(z_s / TAU, 1), F.softmax(z_t / TAU, 1), reduction="batchmean") * TAU**2
    kd = ALPHA * F.cross_entropy(z_s, y) + (1 - ALPHA) * kl
    return BETA * kd + (1 - BETA) * sum(F.mse_loss(ir, target) for ir, target in zip(irs, targets))


def rows(network: Network, logits: Tensor, inputs: Any, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits [N, C] with their labels [N]."""
    if labels is None:
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)[:, 1:]
        logits = logits[:, :-1]
    if network.targets == "dense":
        logits = logits.permute(0, 2, 3, 1)
    return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)


@SOME
def test_gradients_equal_those_of_two_passes_by_hand(network: Network) -> None:
    teacher, student = pair(network, torch.float64)
    inputs = network.batch(torch.float64)
    labels = network.labels(logits_of(call(teacher.model, inputs)))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    criterion = lf.LITLoss(alpha=ALPHA, beta=BETA, tau=TAU)
    step = lf.LITStep(teacher, student, criterion, optimizer, engine="eager", targets=network.targets)
    parameters = {name: p for name, p in student.model.named_parameters() if p.requires_grad}
    naive = naive_loss(network, teacher.model, student.model, inputs, labels)
    expected = torch.autograd.grad(naive, list(parameters.values()), allow_unused=True)
    loss = step.loss(inputs, labels)
    loss.backward()
    torch.testing.assert_close(loss, naive, rtol=1e-10, atol=0)
    for (name, parameter), gradient in zip(parameters.items(), expected):
        if gradient is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-13, msg=lambda m: f"{name}: {m}")


@SOME
def test_a_student_learns(network: Network) -> None:
    teacher, student = pair(network)
    with torch.no_grad():  # fresh blocks of transformers are too close to the identity to be learned
        for parameter in (p for section in teacher.sections for p in section.parameters() if p.dim() > 1):
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    lf.copy_parts(teacher, student, ["stem", "head"])
    student.freeze("stem", "head")
    inputs = network.batch()
    labels = network.labels(logits_of(call(teacher.model, inputs)))
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=1e-2)
    step = lf.LITStep(teacher, student, lf.LITLoss(alpha=ALPHA, beta=BETA), optimizer, targets=network.targets)
    errors = [float(step(inputs, labels).ir.sum()) for _ in range(20)]
    assert errors[-1] < 0.9 * errors[0], errors


@SOME
def test_inspect_says_how_the_pair_was_cut(network: Network) -> None:
    teacher, student = pair(network)
    report = str(lf.inspect(teacher, student, network.batch()))
    assert ("the student is recorded, its own forward runs" in report) == (network.how == "recorded"), report
