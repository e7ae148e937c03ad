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
from doc_pages import ROOT
from everyday import exhaustive
from hub_networks import BERT, CLASSES, NETWORKS, TOKENS, Network, transformers
from torch import Tensor, nn
from transformers import BatchEncoding

import lit_fast as lf
from lit_fast.extension import EXTENSION
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


def test_the_documentation_lists_these_networks() -> None:
    page = (ROOT / "docs" / "own-model.md").read_text()
    header = "| architecture | library | how | where its blocks are |\n|---|---|---|---|\n"
    lines = []
    for network in NETWORKS:
        if network.library != "own":
            named = [network.cut["blocks"]] if "blocks" in network.cut else network.cut["at"]
            blocks = ", ".join(f"`{name}`" for name in named)
            lines.append(f"| {network.name} | {network.library} | {network.how} | {blocks} |")
    assert header + "\n".join(lines) + "\n" in page


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
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-13, msg=f"{name} differs")


@SOME
def test_a_student_learns(network: Network) -> None:
    teacher, student = pair(network)
    with torch.no_grad():  # fresh attention blocks are too close to the identity to be learned
        for parameter in (p for section in teacher.sections for p in section.parameters() if p.dim() == 2):
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


# -- what transformers does beside -------------------------------------------------------------------------------------


def of_hub(name: str) -> Network:
    return next(network for network in NETWORKS if (network.name, network.library) == (name, "transformers"))


def test_labels_in_a_batch_are_the_steps_and_not_the_models() -> None:
    network = of_hub("BERT")
    teacher, student = pair(network)
    step = lf.LITStep(teacher, student, lf.LITLoss(), torch.optim.SGD(student.parameters(), lr=0.1))
    inputs, labels = network.batch(), torch.tensor([0, 1, 2])
    batch = BatchEncoding({**inputs, "labels": labels})  # as tokenizers and collators of transformers give it
    assert torch.equal(step.loss(batch), step.loss(inputs, labels))


def test_padding_holds_back_what_the_mask_does() -> None:
    """Teacher-fed sections take the mask: what stands in the padding changes no token's IR."""
    model, inputs = of_hub("BERT").split(2).eval(), of_hub("BERT").batch()
    (first, second), _ = model.run(inputs)
    tokens = inputs["attention_mask"].bool()
    garbage = torch.where(tokens[..., None], first, torch.randn_like(first))
    torch.testing.assert_close(model.sections[1](garbage)[tokens], second[tokens])
    assert not torch.allclose(model.sections[1](garbage)[~tokens], second[~tokens])


@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_gradient_checkpointing_of_transformers_changes_no_gradient(name: str) -> None:
    network = of_hub(name)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        teacher, student = pair(network)
        if checkpointing:
            student.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        step = lf.LITStep(
            teacher, student, lf.LITLoss(), torch.optim.SGD(student.parameters(), lr=0.1), targets=network.targets
        )
        inputs = network.batch()
        step.loss(inputs, network.labels(logits_of(call(teacher.model, inputs)))).backward()
        gradients.append([p.grad for p in student.model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-8)


def test_an_example_shows_what_runs_before_the_blocks_however_it_is_registered() -> None:
    network = of_hub("BART encoder")
    model = network.build(1)
    by_order, by_example = (lf.split(model, **network.cut, example=example) for example in (None, network.batch()))
    norm = "model.encoder.layernorm_embedding"
    assert norm in str(by_order.head)
    assert norm in str(by_example.stem)
    assert norm not in str(by_example.head)
    assert "model.decoder" in str(by_example.head)


def test_a_batch_of_one_tensor_is_traced_where_the_mask_is_optional() -> None:
    network = of_hub("DINOv2")
    model = network.build(1)
    assert lf.split(model, **network.cut).how == "recorded"
    batch = {**network.batch(), "labels": torch.tensor([0, 1])}
    assert lf.split(model, **network.cut, example=batch).how == "traced"


# -- the runner --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "library"), [("ViT", "timm"), ("RegNet", "torchvision")])
def test_a_traced_teacher_runs_in_the_runner(name: str, library: str) -> None:
    (network,) = (n for n in NETWORKS if (n.name, n.library) == (name, library))
    teacher, student = pair(network)
    inputs, labels = network.batch(), torch.tensor([0, 1, 2, 3])
    losses = []
    for engine in ("auto", "eager"):
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        step = lf.LITStep(teacher, student, lf.LITLoss(), optimizer, engine=engine)
        losses.append(step.loss(inputs, labels))
        assert step.engine == ("runner" if engine == "auto" and EXTENSION.loaded else "eager")
    torch.testing.assert_close(*losses)
    irs, logits = lf.FrozenTeacher(teacher).run(inputs)
    for got, expected in zip([*irs, logits], [*teacher.run(inputs)[0], teacher.model(inputs)]):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# -- what cannot be cut ------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """A block as Mamba's authors have it: it hands on the hidden state and the sum so far."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        return self.mixer(self.norm(residual)), residual


class Pairs(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layers = nn.ModuleList(Pair() for _ in range(depth))
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden, residual = self.embed(x), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return self.last(hidden + residual)


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("how", ["auto", "recorded"])
def test_two_hidden_tensors_are_refused(depth: int, how: str) -> None:
    model = lf.split(Pairs(depth), blocks="layers", sections=2, how=how)
    with pytest.raises(lf.SplitError, match=r"two tensors .* both change .* an IR must be one tensor: let the modules"):
        model.run(torch.randn(2, 6))


@pytest.mark.parametrize("family", ["Mamba", "Mamba2", "FalconMamba"])
def test_state_space_models_of_transformers_keep_their_sum_inside_and_can_be_cut(family: str) -> None:
    more = {"num_heads": 4, "head_dim": 8, "n_groups": 1} if family == "Mamba2" else {}
    build = transformers(f"{family}ForCausalLM", f"{family}Config", hidden_size=16, state_size=4, **more, **TOKENS)
    model = lf.split(build(2), blocks="backbone.layers", sections=2).eval()
    inputs = of_hub("Llama").batch()
    irs, output = model.run(inputs)
    assert torch.equal(output.logits, model(**inputs).logits)
    for section, given, ir in zip(model.sections, [model.entered, *irs], irs):
        assert torch.equal(section(given), ir)


def test_a_cut_inside_a_block_is_refused_by_both_names() -> None:
    network = of_hub("BERT")
    cut = ["bert.encoder.layer.0.attention", "bert.encoder.layer.1"]
    model = lf.split(network.build(1), at=cut)
    with pytest.raises(
        lf.SplitError, match=r"layer\.1' is not given the tensor that '.*attention' returned.*move that"
    ):
        model.run(network.batch())


def test_layers_that_share_one_module_are_refused() -> None:
    build = transformers("AlbertForSequenceClassification", "AlbertConfig", embedding_size=8, **BERT)
    inner = "albert.encoder.albert_layer_groups.0.albert_layers"
    model = lf.split(build(2), blocks=inner)
    with pytest.raises(lf.SplitError, match=r"is called twice in one forward.* cut a model whose blocks are modules"):
        model.run(of_hub("BERT").batch())
