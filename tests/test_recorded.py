"""Recorded sections: the same step as traced ones give, for networks that cannot be traced; refusals by name."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recorded_graphs import RecordedGraphs
from test_capture import adamw, assert_same, make, state
from test_capture import batches as image_batches
from text_networks import CLASSES, WIDTH, WORDS, Causal, Text, text
from tiny_networks import Net
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lit_fast as lf
from lit_fast.errors import SplitError, UntraceableError
from lit_fast.sections.recorded import RecordedModel
from lit_fast.settings.variants import VARIANTS
from lit_fast.step import capture


def text_pair(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[lf.SplitModel, lf.SplitModel]:
    torch.manual_seed(0)
    teacher = lf.split(Text(6).to(dtype), blocks="layers", sections=3).eval().requires_grad_(False)
    return teacher, lf.split(Text(3, **options).to(dtype), blocks="layers", sections=3).train()


def text_step(dtype: torch.dtype = torch.float32, **options: Any) -> lf.LITStep:
    teacher, student = text_pair(dtype)
    criterion = lf.LITLoss(alpha=0.5, beta=0.5, tau=2.0)
    return lf.LITStep(teacher, student, criterion, torch.optim.SGD(student.parameters(), lr=0.1), **options)


# -- the same as traced -----------------------------------------------------------------------------------------------

AT = ["layer1", "layer2", "layer3"]


def image_step(how: Any, variant: str = "lit", *, width: int = 8, dropout: float = 0.0, **options: Any) -> lf.LITStep:
    torch.manual_seed(0)
    teacher, student = (lf.split(net, AT, how=how) for net in (Net(), Net(width, dropout).train()))
    parameters = list(student.parameters())
    if width != 8:
        options["projector"] = lf.make_projectors(teacher, student, torch.zeros(2, 3, 8, 8))
        parameters += options["projector"].parameters()
    switches = VARIANTS[variant]
    options.setdefault("criterion", lf.LITLoss(alpha=0.9, beta=0.6 if switches.ir != "none" else 1.0, tau=3.0))
    return lf.LITStep(
        teacher,
        student,
        options.pop("criterion"),
        torch.optim.SGD(parameters, lr=0.125, momentum=0.9),
        ir_sections=switches.ir_sections(3) or "all",
        student_input=switches.student_input,
        engine="eager",
        **options,
    )


@pytest.mark.parametrize(
    ("variant", "options"),
    [(variant, {}) for variant in VARIANTS]
    + [("lit", {"bn_policy": policy}) for policy in ("both", "teacher_fed", "recalibrate")]
    + [
        ("lit", {"criterion": lf.LITLoss(beta=0.0)}),
        ("lit", {"criterion": lf.LITLoss(beta=0.0), "bn_policy": "teacher_fed"}),
        ("lit", {"dropout": 0.3}),
        ("lit", {"width": 6}),
        ("multi_ir", {"width": 6}),
        ("lit", {"precision": "bf16"}),
    ],
)
def test_a_step_is_that_of_traced_sections_bit_for_bit(variant: str, options: dict[str, Any]) -> None:
    steps = [image_step(how, variant, **options) for how in ("traced", "recorded")]
    assert [step.student.how for step in steps] == ["traced", "recorded"]
    results = []
    for step in steps:
        torch.manual_seed(3)
        for images, labels in image_batches(3):
            step(images, labels)
        results.append(state(step))
    assert_same(*results)


def test_diagnostics_are_those_of_traced_sections() -> None:
    images, labels = next(image_batches(1))
    ours, right = (lf.section_diagnostics(image_step(how), images, labels) for how in ("recorded", "traced"))
    assert ours == right


def test_recalibration_is_that_of_traced_sections() -> None:
    students = [image_step(how).student for how in ("traced", "recorded")]
    for student in students:
        lf.recalibrate(student, [images for images, _ in image_batches(3)])
    assert_same(*(student.model.state_dict() for student in students))


@pytest.mark.parametrize("optimizer", [None, adamw])
def test_captured_steps_are_the_eager_ones_bit_for_bit(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "graphs_for", lambda _: RecordedGraphs())
    monkeypatch.setattr("test_capture.split", lambda net: lf.split(net, AT, how="recorded"))
    eager, captured = (make(on, optimizer=optimizer) for on in (False, True))
    for images, labels in image_batches():
        for step in (eager, captured):
            step(images, labels)
    assert captured.captured, captured.capture_reason
    assert_same(state(eager), state(captured))


@pytest.mark.parametrize("targets", ["classification", "causal_lm"])
def test_captured_steps_on_dicts_are_the_eager_ones_bit_for_bit(targets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "graphs_for", lambda _: RecordedGraphs())
    kind = Text if targets == "classification" else Causal
    results = []
    for captured in (False, True):
        torch.manual_seed(0)
        teacher, student = (lf.split(kind(n), blocks="layers", sections=2) for n in (4, 2))
        for layer in (*teacher.model.layers, *student.model.layers):
            layer.decides = False
        optimizer = adamw(list(student.parameters()))
        step = lf.LITStep(
            teacher,
            student.train(),
            lf.LITLoss(),
            optimizer,
            targets=targets,
            capture=captured,
            fused_head=False,
        )
        for seed in range(4):
            batch, labels = text(seed=seed)
            step(batch, labels if targets == "classification" else None)
        assert step.captured == captured, step.capture_reason
        results.append(state(step))
    assert_same(*results)


# -- what cannot be traced --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_run_is_the_models_forward_and_sections_repeat_it(training: bool) -> None:
    model = text_pair()[1].train(training)
    batch, _ = text()
    irs, output = model.run(batch)
    assert torch.equal(output.logits, model(**batch).logits)
    for section, given, ir in zip(model.sections, [model.entered, *irs], irs):
        assert torch.equal(section(given), ir)


def naive_gradients(step: lf.LITStep, batch: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Both passes written out for this network."""
    (teacher, student), mask = (step.teacher.model, step.student.model), batch["attention_mask"]

    def blocks(model: Text, hidden: Tensor, layers: Any) -> Tensor:
        steps = torch.arange(hidden.shape[1])
        for layer in layers:
            hidden = layer(hidden, mask, bias=model.bias * (steps[:, None] - steps).abs())[0]
        return hidden

    def whole(model: Text, each: int) -> tuple[list[Tensor], Tensor]:
        hidden, irs = model.embed(batch["input_ids"]), []
        for i in range(3):
            hidden = blocks(model, hidden, model.layers[i * each : (i + 1) * each])
            irs.append(hidden)
        return irs, model.last(hidden.mean(1))

    with torch.no_grad():
        targets, soft = whole(teacher, 2)
    composed, logits = whole(student, 1)
    fed = [composed[0], *(blocks(student, targets[i - 1], [student.layers[i]]) for i in (1, 2))]
    hard = F.cross_entropy(logits, labels)
    kl = 4 * F.kl_div((logits / 2).log_softmax(1), (soft / 2).softmax(1), reduction="batchmean")
    loss = 0.5 * (0.5 * hard + 0.5 * kl) + 0.5 * sum(F.mse_loss(a, b) for a, b in zip(fed, targets))
    names, parameters = zip(*student.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, parameters)))


def test_gradients_are_those_of_two_passes_written_out() -> None:
    step, (batch, labels) = text_step(torch.float64), text()
    expected = naive_gradients(step, batch, labels)
    step.loss(batch, labels).backward()
    for name, parameter in step.student.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12, msg=lambda m, n=name: n + m)


def test_a_student_learns() -> None:
    teacher, student = text_pair()
    step = lf.LITStep(teacher, student, lf.LITLoss(), torch.optim.Adam(student.parameters(), lr=0.01))
    batch, labels = text(16)
    losses = [step({**batch, "labels": labels}).ir.sum().item() for _ in range(20)]
    assert losses[-1] < 0.6 * losses[0]


def test_labels_in_the_batch_are_the_labels() -> None:
    batch, labels = text()
    ours, right = text_step(), text_step()
    assert torch.equal(ours({**batch, "labels": labels}).total, right(batch, labels).total)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_checkpointed_blocks_give_the_same(precision: str, reentrant: bool) -> None:
    batch, labels = text()
    plain, saving = text_step(precision=precision), text_step(precision=precision)
    saving.student.model.checkpointing = reentrant
    for step in (plain, saving):
        step(batch, labels)
    ours, right = (dict(step.student.model.state_dict()) for step in (saving, plain))
    torch.testing.assert_close(ours, right, rtol=0 if not reentrant else 1e-6, atol=0 if not reentrant else 1e-8)


@pytest.mark.parametrize("how", ["compile_blocks", "torch.compile"])
def test_compiled_blocks_give_the_same(how: str) -> None:
    batch, labels = text()
    plain, compiled = text_step(), text_step()
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    for split in (compiled.teacher, compiled.student):
        if how == "compile_blocks":
            split.compile_blocks(backend=backend)
        else:
            for i, layer in enumerate(split.model.layers):
                split.model.layers[i] = torch.compile(layer, backend=backend)
    for step in (plain, compiled):
        for _ in range(2):
            step(batch, labels)
    ours = {k.replace("._orig_mod", ""): v for k, v in compiled.student.model.state_dict().items()}
    torch.testing.assert_close(ours, dict(plain.student.model.state_dict()))
    assert graphs


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_own_their_parameters_and_their_runs(duplicate: Any) -> None:
    model, (batch, _) = text_pair()[1], text()
    irs, _ = model.run(batch)
    twin = duplicate(model)
    with pytest.raises(SplitError, match="from the last run, and there is none"):
        twin.sections[1](irs[0])
    with torch.no_grad():
        twin.model.layers[1].feed.weight.add_(1.0)
    assert torch.equal(model.sections[1](irs[0]), irs[1])
    twins, _ = twin.run(batch)
    assert torch.equal(twins[0], irs[0])
    assert not torch.equal(twins[1], irs[1])


def test_a_step_lets_go_of_what_it_recorded() -> None:
    step, (batch, labels) = text_step(), text()
    masks: list[weakref.ref[Tensor]] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        masks.append(weakref.ref(kwargs["bias"]))

    for model in (step.teacher.model, step.student.model):
        model.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    gc.disable()  # nothing is to wait for it
    try:
        step(batch, labels)
        assert len(masks) == 2  # section 1 runs once
        assert [mask() for mask in masks] == [None, None]
    finally:
        gc.enable()
    with pytest.raises(SplitError, match="there is none"):
        step.student.sections[1](torch.zeros(4, 6, WIDTH))


def test_the_model_stays_as_it_was() -> None:
    model = Text(2)
    before = [(dict(vars(m)), dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()]
    split = lf.split(model, blocks="layers")
    split.run(text()[0])
    with pytest.raises(ValueError, match="an empty mask"):
        split.run({"input_ids": text()[0]["input_ids"], "attention_mask": torch.zeros(4, 6)})
    assert [(dict(vars(m)), dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in model.modules()] == before


def test_a_cache_is_left_out_when_blocks_run_again() -> None:
    class Cache:
        def __init__(self) -> None:
            self.kept: list[Tensor] = []

        def get_seq_length(self) -> int:
            return len(self.kept)

    class Keeps(nn.Linear):
        def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
            if cache is not None:
                x = x + cache.kept[0] if cache.kept else x
                cache.kept.append(x)
            return super().forward(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Keeps(4, 4), Keeps(4, 4)

        def forward(self, x: Tensor, attention_mask: Any = None) -> Tensor:
            return self.b(self.a(x, Cache()), cache=Cache())

    model = lf.split(Model(), blocks=["a", "b"])
    irs, _ = model.run(torch.randn(2, 4))
    assert torch.equal(model.sections[1](irs[0]), irs[1])


def test_recording_adds_no_operation() -> None:
    model, (batch, _) = text_pair()[1], text()
    counts = []
    for run in (lambda: model.model(**batch), lambda: model.run(batch)):
        with Operations() as operations:
            run()
        counts.append(operations.names)
    assert counts[0] == counts[1]


class Operations(TorchDispatchMode):
    """The names of all that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


# -- where to cut -----------------------------------------------------------------------------------------------------


class Pooled(nn.Module):
    """Two inputs; a module between the cuts that no name tells of, and one that runs outside the chain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.side, self.low = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 4)
        self.act, self.high, self.last = nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.first(x) + self.side(y)
        return self.last(self.high(self.act(self.low(h))))


def two() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4), torch.randn(3, 3)


def sections_of(model: lf.SplitModel) -> list[str]:
    return [", ".join(part._targets) for part in model.parts]


def test_two_inputs_are_recorded_and_an_example_shows_the_modules_between_the_cuts() -> None:
    model = lf.split(Pooled(), ["low", "high"])
    assert (model.how, "takes 2 inputs (x, y)" in model.why) == ("recorded", True)
    with pytest.raises(SplitError, match=r"'high' is not given the tensor that 'low' returned.*example="):
        model.run(two())
    model = lf.split(Pooled(), ["low", "high"], example=two())
    assert sections_of(model) == ["first, side", "low", "act, high", "last"]
    irs, output = model.run(two())
    assert torch.equal(model.model.last(irs[1]), output)


def test_an_example_shows_what_runs_before_section_1() -> None:
    class Reordered(Pooled):
        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Linear(3, 4)
            first = self.first
            del self.first
            self.first = first  # registered last, called first

    assert sections_of(lf.split(Reordered(), ["low"], how="recorded"))[-1] == "act, high, last, first"
    model = lf.split(Reordered(), ["low"], example=two())
    assert sections_of(model) == ["side, first", "low", "act, high, last"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"blocks": "layers", "sections": 3}, ["layers.0, layers.1", "layers.2, layers.3", "layers.4, layers.5"]),
        ({"blocks": "layers", "sections": 4}, ["layers.0", "layers.1, layers.2", "layers.3", "layers.4, layers.5"]),
        ({"blocks": "layers", "cuts": [1, 4]}, ["layers.0", "layers.1, layers.2, layers.3", "layers.4, layers.5"]),
        ({"blocks": ["layers.0", "layers.1"]}, ["layers.0", "layers.1"]),
        ({"at": ["layers.2", "layers.5"]}, ["layers.2", "layers.3, layers.4, layers.5"]),
        (
            {"at": ["layers.2", "layers.5"], "stem": "embed"},
            ["layers.0, layers.1, layers.2", "layers.3, layers.4, layers.5"],
        ),
        ({"at": ["layers.2"], "stem": "layers.0"}, ["layers.1, layers.2"]),
    ],
)
def test_blocks_make_sections(options: dict[str, Any], expected: list[str]) -> None:
    model = lf.split(Text(6), **options)
    assert (model.how, sections_of(model)[1:-1]) == ("recorded", expected)


def test_a_stack_that_can_be_traced_is() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.blocks, self.last = (
                nn.Linear(4, 4),
                nn.Sequential(*map(nn.Linear, [4] * 6, [4] * 6)),
                nn.Linear(4, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.blocks(self.stem(x)))

    model, x = lf.split(Plain(), blocks="blocks", sections=2), torch.randn(2, 4)
    assert (model.how, sections_of(model)[0], sections_of(model)[-1]) == ("traced", "stem", "last")
    irs, _ = model.run(x)
    recorded = lf.split(model.model, blocks="blocks", sections=2, how="recorded")
    assert all(map(torch.equal, irs, recorded.run(x)[0]))
    with pytest.raises(SplitError, match="traced, so its parts take one tensor, got 2 inputs"):
        model.run((x, x))


# -- refusals ---------------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """``a``, ``b`` and ``c``, with something else between them where a test says so."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c = (modules.get(name, nn.Linear(4, 4)) for name in "abc")

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class Twice(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(self.a(x))))


class Between(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x) * 2))


class Pair(nn.Module):
    """Hands on two tensors that both change, as Mamba's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        return self.linear(residual), residual


class Pairs(Chain):
    def __init__(self) -> None:
        super().__init__(a=Pair(), b=Pair(), c=Pair())

    def forward(self, x: Tensor) -> Tensor:
        hidden, residual = self.a(x)
        hidden, residual = self.b(hidden, residual)
        return self.c(hidden, residual)[0]


class Nothing(nn.Linear):
    def forward(self, x: Tensor) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("model", "blocks", "words"),
    [
        (Twice(), "abc", "'a' is called twice in one forward.*modules of their own"),
        (
            Between(),
            "abc",
            r"'b' is not given the tensor that 'a' returned \(shape \(2, 4\)\) but one of shape \(2, 4\)",
        ),
        (Pairs(), "abc", "between 'a' and 'b' two tensors are handed on that both change.*an IR must be one tensor"),
        (Chain(), "bac", "'a' runs before 'b', which was listed before it; list modules in the order"),
        (Chain(a=Nothing(4, 4)), "abc", "'a' gives NoneType, an IR must be one tensor; cut elsewhere"),
    ],
)
def test_what_is_no_chain_is_refused_by_name(model: nn.Module, blocks: str, words: str) -> None:
    split = lf.split(model, blocks=list(blocks), how="recorded")
    with pytest.raises(SplitError, match=words):
        split.run(torch.randn(2, 4))
    with pytest.raises(lf.PairError, match=words):
        lf.inspect(split.eval().requires_grad_(False), split, torch.randn(2, 4))


def test_a_module_that_is_not_called_is_named() -> None:
    model = Text(2)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(SplitError, match="'extra' was not called in the model's forward on this batch"):
        lf.split(model, blocks=["layers.0", "layers.1", "extra"]).run(text()[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"blocks": "layers", "at": ["layers.1"]}, "blocks, at: expected one of the two"),
        ({"blocks": "layers", "sections": 2, "cuts": [1]}, "sections, cuts: expected one of the two"),
        ({"sections": 2}, "name it: blocks="),
        ({"blocks": "layers", "sections": 5}, "expected a number from 1 to 4, the number of blocks, got 5"),
        ({"blocks": "layers", "cuts": [2, 4]}, r"ascending numbers of blocks from 1 to 3.*got \[2, 4\]"),
        ({"blocks": "layers", "cuts": [2, 1]}, "ascending"),
        ({"blocks": "layer"}, "no submodule 'layer'; did you mean layers"),
        ({"blocks": "embed"}, r"has no blocks.*such as 'layers' \(4 blocks\)"),
        ({"blocks": ["layers.0", "layers.0"]}, "named twice"),
        ({"at": ["layers.1"], "how": "watched"}, "how: expected one of 'auto', 'traced', 'recorded', got 'watched'"),
        ({"at": ["layers.2", "layers.1"]}, "cuts out of order"),
    ],
)
def test_cuts_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SplitError, match=words):
        lf.split(Text(4), **options)


def test_how_traced_says_why_it_cannot_be() -> None:
    with pytest.raises(UntraceableError, match=r"takes 2 inputs \(x, y\).*how='recorded'"):
        lf.split(Pooled(), ["low"], how="traced")


def test_parts_that_do_not_run_alone_say_so() -> None:
    teacher, student = text_pair()
    for name in ("stem", "head"):
        with pytest.raises(SplitError, match=f"the {name} of a recorded model does not run alone"):
            student.part(name)(torch.zeros(1))
    with pytest.raises(SplitError, match=r"call run\(\.\.\.\) on the same batch before"):
        student.sections[0](torch.zeros(4, 6, WIDTH))
    with pytest.raises(TypeError, match=r"expected a traced model.*got a recorded one"):
        lf.FrozenTeacher(teacher)
    with pytest.raises(lf.UnavailableError, match="engine 'runner' is not available: the teacher is recorded"):
        text_step(engine="runner")
    with pytest.raises(ValueError, match="side_by_side: the teacher-fed sections of a recorded student wait"):
        text_step(side_by_side=True)
    assert (text_step().engine, text_step().engine_reason) == (
        "eager",
        "the teacher is recorded, so its own forward runs",
    )


def test_inspect_tells_how_both_are_cut_and_what_each_section_costs() -> None:
    teacher, student = text_pair()
    report = lf.inspect(teacher, student, {**text()[0], "labels": text()[1]})
    assert "the teacher is recorded, its own forward runs: its forward takes an attention_mask" in str(report)
    whole = lf.inspect(
        *(lf.split(m.model, blocks="layers", sections=1, how="recorded") for m in (teacher, student)), text()[0]
    )
    assert sum(row.teacher.macs for row in report.rows) == whole.teacher.macs
    sections = [row.teacher.macs for row in report.rows if row.part.startswith("section")]
    assert sections[0] == sections[1] == sections[2] > 0
    assert report.rows[0].teacher.parameters == WORDS * WIDTH + 1
    assert report.teacher.parameters == 2 * report.student.parameters - WORDS * WIDTH - 1 - 9 * CLASSES


def test_freezing_and_copying_parts() -> None:
    teacher, student = text_pair()
    lf.copy_parts(teacher, student)
    student.freeze("stem", "head")
    assert torch.equal(student.model.embed.weight, teacher.model.embed.weight)
    trained = {name for name, p in student.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in student.model.layers.named_parameters(prefix="layers")}
    assert isinstance(student, RecordedModel)


# -- outputs of any kind ----------------------------------------------------------------------------------------------


class Scores(Net):
    """Returns what no named targets find."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"score": super().forward(x)}


def scores(output: Any, inputs: Any, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return output["score"], labels


@pytest.mark.parametrize("how", ["traced", "recorded"])
def test_targets_of_your_own_are_given_all_that_models_return(how: Any) -> None:
    results = []
    for kind, targets in ((Scores, scores), (Net, "classification")):
        torch.manual_seed(0)
        teacher, student = (lf.split(kind(), AT, how=how) for _ in range(2))
        step = lf.LITStep(
            teacher, student.train(), lf.LITLoss(), torch.optim.SGD(student.parameters(), lr=0.1), targets=targets
        )
        results.append(float(step(*next(image_batches(1))).total))
        if kind is Scores:
            assert step.engine == "eager"
            with pytest.raises(lf.PairError, match="found no logits in the model's output, dict with score"):
                lf.inspect(teacher, student, torch.zeros(2, 3, 8, 8))
            assert lf.inspect(teacher, student, torch.zeros(2, 3, 8, 8), targets=scores).compression == 1.0
    assert results[0] == pytest.approx(results[1], rel=1e-5)
