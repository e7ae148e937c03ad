"""Splitting: the parts do what the model does, on its own tensors; what cannot be cut is refused by name."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from example_networks import EncoderStack, ViT, vision_resnet18, vision_resnet50
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lit_fast import models
from lit_fast.errors import SplitError
from lit_fast.sections.copying import copy_parts
from lit_fast.sections.cutting import split
from lit_fast.sections.model import SplitModel

IMAGES = (2, 3, 16, 16)
LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def images(*shape: int) -> Tensor:
    return torch.randn(shape or IMAGES)


CASES = {
    "resnet20": lambda: (split(models.resnet20()), images()),
    "resnext20": lambda: (split(models.resnext20(cardinality=2)), images(2, 3, 8, 8)),
    "vision_resnet18": lambda: (split(vision_resnet18(), LAYERS), images(2, 3, 64, 64)),
    "vision_resnet50": lambda: (split(vision_resnet50(), LAYERS), images(2, 3, 64, 64)),
    "blocks": lambda: (split(vision_resnet18(), ["layer1.0", "layer2.1", "layer4"]), images(2, 3, 64, 64)),
    "stem by name": lambda: (split(vision_resnet18(), ["layer2.0", "layer3"], stem="maxpool"), images(2, 3, 64, 64)),
    "vit": lambda: (split(ViT(), ["layers.1", "layers.3"], stem="embed"), images()),
    "encoder": lambda: (
        split(EncoderStack(), ["encoder.layers.1", "encoder.layers.2"], stem="embed"),
        torch.randint(50, (2, 7)),
    ),
}


@pytest.fixture(params=CASES)
def case(request) -> tuple[SplitModel, Tensor]:
    return CASES[request.param]()


def both_ways(model: SplitModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """The model's own forward and the composed pass, from the same random state."""
    state = torch.get_rng_state()
    own = model(x)
    torch.set_rng_state(state)
    return own, model.run(x)[1]


@pytest.mark.parametrize("training", [False, True])
def test_composed_pass_equals_the_models_forward_bit_for_bit(case, training):
    model, x = case
    model.train(training)
    own, composed = both_ways(model, x)
    assert torch.equal(own, composed)


def test_composed_pass_gives_the_same_gradients_to_the_same_parameters(case):
    model, x = case
    own, composed = both_ways(model.train(), x)
    expected = torch.autograd.grad(own.square().sum(), list(model.parameters()))
    composed.square().sum().backward()
    for (name, parameter), gradient in zip(model.model.named_parameters(), expected):
        assert torch.equal(parameter.grad, gradient), name


def test_run_returns_the_output_of_every_cut(case):
    model, x = case
    seen = {}
    for name in model.at:
        model.model.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
    model.eval()
    model(x)
    expected = dict(seen)
    irs, _ = model.run(x)
    assert len(irs) == model.num_sections == len(model.at)
    for name, ir in zip(model.at, irs):
        assert torch.equal(ir, expected[name])


def test_parts_divide_the_parameters_and_the_model_registers_each_once(case):
    model, _ = case
    of_parts = [id(p) for part in model.parts for p in part.parameters()]
    assert sorted(of_parts) == sorted(id(p) for p in model.parameters())
    assert list(model.state_dict()) == [f"model.{key}" for key in model.model.state_dict()]
    joined = {key: value for part in model.parts for key, value in part.state_dict().items()}
    assert joined.keys() == model.model.state_dict().keys()


def test_splitting_leaves_the_model_as_it_was():
    model = ViT().train()
    model.layers[2].eval()
    before = copy.deepcopy(model)
    split(model, ["layers.1", "layers.3"], stem="embed")
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values()))
    for module, old in zip(model.modules(), before.modules()):
        assert module.__dict__.keys() == old.__dict__.keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_ordered_choice_of_cuts_composes_to_the_model(data):
    depth = data.draw(st.integers(2, 6))
    cuts = data.draw(st.lists(st.integers(0, depth - 1), min_size=1, unique=True).map(sorted))
    model = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(depth)))
    parts = split(model, [str(i) for i in cuts])
    x = torch.randn(2, 3)
    irs, out = parts.run(x)
    assert torch.equal(out, model(x))
    for cut, ir in zip(cuts, irs):
        assert torch.equal(ir, model[: cut + 1](x))


def test_section_1_starts_at_the_input_of_the_first_cut_or_after_the_named_stem():
    parts = split(vision_resnet18(), ["layer2"])
    assert [name for name, _ in parts.stem.named_children()] == ["conv1", "bn1", "relu", "maxpool", "layer1"]
    parts = split(vision_resnet18(), ["layer2"], stem="maxpool")
    assert [name for name, _ in parts.sections[0].named_children()] == ["layer1", "layer2"]


def test_stem_may_be_empty():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    parts = split(model, ["0", "1"])
    x = torch.randn(5, 2)
    assert parts.stem(x) is x
    assert torch.equal(parts.head(x), x)


# -- modes ---------------------------------------------------------------------------------------------------------


def test_functional_dropout_in_the_traced_forward_follows_the_mode_however_it_is_set():
    model = ViT()
    parts = split(model, ["layers.1", "layers.3"], stem="embed")
    x = images()

    def varies() -> bool:
        return not torch.equal(parts.stem(x), parts.stem(x))

    assert varies()
    parts.eval()
    assert not varies()
    parts.train()
    assert varies()
    model.eval()  # on the inner model
    assert not varies()
    model.train()
    parts.freeze("stem")
    assert not varies()
    parts.train()
    assert not varies()
    parts.unfreeze("stem")
    assert varies()


def test_a_split_model_takes_over_the_mode_of_the_model():
    assert not split(models.resnet20().eval()).training


# -- the parts follow the model -------------------------------------------------------------------------------------


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def vit() -> SplitModel:
    return split(ViT(), ["layers.1", "layers.3"], stem="embed").eval()


def assert_consistent(model: SplitModel, x: Tensor) -> None:
    assert torch.equal(model(x), model.run(x)[1])


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_own_their_parameters(duplicate):
    model, x = vit(), images()
    model.freeze("head")
    before = model.run(x)[1]
    twin = duplicate(model)
    assert_consistent(twin, x)
    assert torch.equal(twin.run(x)[1], before)
    assert twin.frozen == {"head"}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert_consistent(twin, x)
    assert not torch.equal(twin.run(x)[1], before)
    assert torch.equal(model.run(x)[1], before)
    assert not {id(p) for part in twin.parts for p in part.parameters()} & {id(p) for p in model.parameters()}


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_part_can_be_copied_alone(duplicate):
    model, x = vit(), images()
    twin = duplicate(model.stem)
    assert torch.equal(twin(x), model.stem(x))
    assert twin.owner is not model.model


def test_a_copy_keeps_one_model_between_split_model_and_part():
    model = vit()
    twin = copy.deepcopy({"model": model, "part": model.head})
    assert twin["part"].owner is twin["model"].model


def test_directly_owned_parameters_follow_load_state_dict_dtype_and_layout():
    model, x = vit(), images()
    other = ViT(dim=32).eval()
    model.model.load_state_dict(other.state_dict())
    assert torch.equal(model.run(x)[1], other(x))
    model.model.load_state_dict(ViT().state_dict(), assign=True)
    assert_consistent(model, x)
    model.double()
    assert model.stem(x.double()).dtype == torch.float64
    assert_consistent(model, x.double())
    model.float().to(memory_format=torch.channels_last)
    assert_consistent(model, x)
    model.model.cls_token = nn.Parameter(torch.zeros(1, 1, 32))
    assert_consistent(model, x)
    model.to("meta")
    assert model.run(x.to("meta"))[1].device.type == "meta"


def test_a_replaced_submodule_is_used():
    model, x = split(models.resnet20()).eval(), images()
    model.model.linear = nn.Linear(64, 7)
    assert model.run(x)[1].shape == (2, 7)
    assert dict(model.head.named_parameters())["linear.weight"] is model.model.linear.weight


def test_parts_compile_to_one_graph():
    model, x = vit(), images()
    for part in model.parts:
        expected = part(x)
        got = torch.compile(part, backend="eager", fullgraph=True)(x)
        assert torch.equal(got, expected)
        x = expected


# -- what the traced forward may contain ------------------------------------------------------------------------------


class Body(nn.Module):
    """Two layers, with ``middle`` of the test's choosing between them."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("table", torch.randn(9, 4))
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.middle(self, self.first(x))))


def in_place_statement(model: Body, x: Tensor) -> Tensor:
    kept = x
    x += 1.0
    x[:, 0] = 7.0
    x.mul_(2.0)
    return kept


def slice_of_a_buffer(model: Body, x: Tensor) -> Tensor:
    return x + model.table[: x.shape[0]]


def made_tensors(model: Body, x: Tensor) -> Tensor:
    return x + torch.arange(4) + torch.zeros(x.shape[0], 4) + torch.rand(4)


def weight_used_by_function(model: Body, x: Tensor) -> Tensor:
    return F.linear(x, model.first.weight)


@pytest.mark.parametrize("middle", [in_place_statement, slice_of_a_buffer, made_tensors, weight_used_by_function])
@pytest.mark.parametrize("cuts", [{"at": ["second"], "stem": "first"}, {"at": ["first"]}, {"at": ["third"]}])
def test_statements_between_modules_are_repeated_as_they_are(middle, cuts):
    model = split(Body(middle), **cuts)
    own, composed = both_ways(model, torch.randn(3, 4))
    assert torch.equal(own, composed)


def test_random_numbers_are_drawn_at_each_call_not_while_tracing():
    model = split(Body(made_tensors), ["second"])
    x = torch.randn(3, 4)
    assert not torch.equal(model.stem(x), model.stem(x))


def test_attributes_set_by_a_traced_forward_hold_no_tracer_objects():
    def remembers(model: Body, x: Tensor) -> Tensor:
        model.last = x
        return x

    model = split(Body(remembers), ["second"])
    assert "last" not in model.model.__dict__
    model(torch.randn(3, 4))
    assert isinstance(model.model.last, Tensor)


def test_other_arguments_of_forward_keep_their_defaults():
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, scale: Tensor | None = None, *, twice: bool = False) -> Tensor:
            x = self.first(x)
            if scale is not None:
                x = x * scale
            return self.second(x) * (2 if twice else 1)

    model, x = split(Optional(), ["first"]), torch.randn(2, 4)
    assert torch.equal(model.run(x)[1], model(x))


# -- refusals ---------------------------------------------------------------------------------------------------------


def refuses(model: nn.Module, at, *words: str, stem: str | None = None) -> None:
    with pytest.raises(SplitError) as caught:
        split(model, at, stem=stem, how="traced")
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_an_unknown_name_is_refused_with_close_matches():
    refuses(models.resnet20(), ["layer1", "layr2"], "ResNet has no submodule 'layr2'", "layer2")
    refuses(models.resnet20(), ["layer1"], "no submodule 'stam'", stem="stam")


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ([], "the list of cuts is empty"),
        ("layer1", "the string 'layer1'"),
        (["layer1", 2], "expected names of submodules (strings), got 2"),
        (["layer1", "layer1"], "'layer1' is named twice"),
        (["layer2", "layer1"], "cuts out of order: 'layer1' runs before 'layer2'"),
        (["layer1.2", "layer1"], "'layer1.2' and 'layer1' have the same output"),
        (["layer1.0.conv1", "layer2"], "more than one tensor crosses a cut"),
    ],
)
def test_impossible_cuts_are_refused(at, words):
    refuses(models.resnet20(), at, words)


def test_a_model_without_default_cuts_says_how_to_name_them():
    refuses(vision_resnet18(), None, "pass at=[...]", "layer1, layer2")


def test_a_container_that_forward_does_not_call_is_refused():
    refuses(ViT(), ["layers"], "cut 'layers'", "never calls", "nn.ModuleList", stem="embed")


def test_a_cut_that_is_never_called_is_refused():
    model = models.resnet20()
    model.extra = nn.Linear(2, 2)
    refuses(model, ["layer1", "extra"], "cut 'extra': forward never calls this module")


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.act, self.out = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)
        self.alias = self.block

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(self.block(self.act(self.block(x)))))


def test_a_module_called_twice_is_refused():
    refuses(Twice(), ["block"], "cut 'block'", "2 times")
    refuses(Twice(), ["block", "alias"], "same module under two names")


class Skip(nn.Module):
    """A tensor jumps over both cuts, and a size over the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        kept = self.a(x)
        y = self.b(kept)
        y = y.reshape(rows, 4)
        return self.c(y) + kept


def test_every_tensor_that_crosses_a_cut_besides_the_ir_is_named():
    refuses(
        Skip(),
        ["b", "c"],
        "more than one tensor crosses a cut",
        "between section1 and section2 ('b')",
        "the output of 'a' at test_sections.py:",
        "used later by",
        "between section2 and head ('c')",
        "the model's input, used later by 'getattr_1' (getattr at test_sections.py:",
    )


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(x) + self.b(x))


def test_cuts_on_parallel_branches_are_refused():
    refuses(Branches(), ["a", "b"], "'a' and 'b' are on parallel branches")


class Pair(nn.Module):
    """Its cut gives a tuple, seen because a further cut lies inside."""

    def __init__(self) -> None:
        super().__init__()
        self.block = PairBlock()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.block(x)[0])


class PairBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.after(self.inner(x))
        return x, x


def test_a_cut_that_gives_a_tuple_is_refused():
    refuses(Pair(), ["block.inner", "block"], "cut 'block': it gives tuple")


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() > 0:
            x = -x
        return self.b(x)


class Holds(nn.Module):
    """Hides a module that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hard, self.last = nn.Linear(4, 4), Decides(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hard(self.first(x)))


def test_an_untraceable_forward_is_refused_with_its_line_cause_and_mend():
    refuses(
        Holds(),
        ["first", "hard.a"],
        "the forward of 'hard' (Decides) cannot be traced at test_sections.py:",
        "`if x.sum() > 0:`",
        "decides on a tensor's value",
        "(hard.a)",
        "submodule of its own",
        "cut at 'hard' itself",
    )


def test_a_module_without_a_cut_inside_may_do_anything():
    model, x = split(Holds(), ["first", "hard"]), torch.randn(3, 4)
    assert torch.equal(model.run(x)[1], model(x))


@pytest.mark.parametrize(
    ("middle", "words"),
    [
        (lambda m, x: x + m.table[:, :4].detach().clone().sum() if x.shape[0] > 2 else x, "decides on"),
        (lambda m, x: x + Body.constant, "register it as a buffer"),
        (lambda m, x: m.no_grad(x), "switches gradients or autocast"),
        (lambda m, x: x + float(x.mean()), "cannot be traced"),
    ],
)
def test_what_a_graph_would_get_wrong_is_refused(middle, words):
    def no_grad(x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    Body.constant = torch.ones(4)
    model = Body(middle)
    model.no_grad = no_grad
    refuses(model, ["second"], "the forward of (Body) cannot be traced", words)


def test_an_encoder_with_a_mask_is_refused_with_the_mend():
    class Masked(EncoderStack):
        def forward(self, tokens: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(7)
            return self.fc(self.encoder(self.embed(tokens), mask=mask).mean(1))

    refuses(
        Masked(), ["encoder.layers.1"], "nn.TransformerEncoder is called with a mask", "nn.ModuleList", stem="embed"
    )


def test_models_of_more_than_one_input_are_refused():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + y

    refuses(Two(), ["a"], "takes 2 inputs (x, y)")


def test_wrapped_models_are_refused_with_the_mend():
    refuses(split(models.resnet20()), None, "split already")
    refuses(torch.compile(models.resnet20(), backend="eager"), None, "split the model first")
    refuses(nn.DataParallel(models.resnet20()), ["module.layer1"], "split(model.module)")
    refuses(nn.Linear, ["a"], "expected an nn.Module, got type")


def test_an_unknown_part_is_refused():
    with pytest.raises(SplitError, match="no part 'section4'; this model's parts are stem, section1"):
        split(models.resnet20()).part("section4")


# -- freezing and copying ---------------------------------------------------------------------------------------------


def test_frozen_parts_neither_learn_nor_change_their_statistics():
    model, x = split(models.resnet20()), images()
    model.freeze("stem", "section2")
    assert model.frozen == {"stem", "section2"}
    before = copy.deepcopy(model.state_dict())
    model.train()
    model.run(x)[1].sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    changed = {key.split(".")[1] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"layer1", "layer3", "linear"}
    model.unfreeze("stem", "section2")
    assert model.frozen == frozenset()
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_unfreezing_does_not_switch_on_what_was_off_before():
    model = split(models.resnet20())
    model.model.conv1.weight.requires_grad_(False)
    model.freeze("stem")
    model.unfreeze("stem")
    assert not model.model.conv1.weight.requires_grad
    assert model.model.bn1.weight.requires_grad


def test_freezing_keeps_a_stateless_module_shared_with_a_trained_part_in_its_mode():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.drop = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.b(self.drop(self.a(x))))

    model = split(Shared(), ["b"])
    model.freeze("stem")
    assert model.model.drop.training
    assert not model.model.a.training


def test_a_parameter_shared_between_frozen_and_trained_parts_is_named():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
            self.c.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)))

    model = split(Tied(), ["b"])
    with pytest.raises(SplitError, match=r"a\.weight is shared between stem \(frozen\) and head \(trained\)"):
        model.freeze("stem")
    assert model.frozen == frozenset()
    assert all(p.requires_grad for p in model.parameters())
    model.freeze("stem", "head")
    with pytest.raises(SplitError, match="shared"):
        model.unfreeze("head")


def test_copied_parts_equal_the_teachers_with_their_buffers():
    teacher, student = split(models.resnet32()), split(models.resnet20())
    teacher.run(images())  # running statistics of its own
    tail = copy.deepcopy(student.sections[0].state_dict())
    copy_parts(teacher, student)
    for part in ("stem", "head"):
        ours, theirs = student.part(part).state_dict(), teacher.part(part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert not torch.equal(student.model.bn1.running_mean, torch.zeros(16))
    assert all(torch.equal(value, tail[key]) for key, value in student.sections[0].state_dict().items())
    assert student.model.conv1.weight is not teacher.model.conv1.weight


def test_copying_parts_that_differ_changes_nothing_and_names_the_tensors():
    teacher, student = split(models.resnet32(num_classes=7)), split(models.resnet20())
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(SplitError) as caught:
        copy_parts(teacher, student, ["stem", "section1", "head"])
    message = str(caught.value)
    assert "head: linear.weight is (7, 64) in the teacher, (10, 64) in the student" in message
    assert "section1: only the teacher has layer1.3." in message
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_class_token_is_copied_with_the_stem():
    teacher, student = (split(ViT(depth), ["layers.1"], stem="embed") for depth in (3, 2))
    copy_parts(teacher, student, ["stem", "section1"])
    assert torch.equal(student.model.cls_token, teacher.model.cls_token)
    assert torch.equal(student.model.positions, teacher.model.positions)


def test_part_names_count_sections_from_1():
    model = split(models.resnet20())
    assert model.part_names == ("stem", "section1", "section2", "section3", "head")
    assert [model.part(name) for name in model.part_names] == [model.stem, *model.sections, model.head]
    assert all(a is not b for a, b in itertools.combinations(model.parts, 2))


@pytest.mark.parametrize("how", ["auto", "traced"])
def test_checkpoints_that_tracing_does_away_with_are_told_of(how):
    class Checkpointed(nn.Sequential):
        grad_checkpointing = True

    def net(inner):
        return nn.Sequential(nn.Linear(2, 2), inner(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))

    with pytest.warns(UserWarning, match="1 has gradient checkpointing on, which tracing does away with"):
        split(net(Checkpointed), at=["0", "1"], how=how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split(net(nn.Sequential), at=["0", "1"], how=how)
        split(net(Checkpointed), at=["0", "1"], how="recorded")
