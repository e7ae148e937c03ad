"""Built-in models: sizes of the published networks, names of their tensors, and loading of checkpoints."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lit_fast as lf
from lit_fast import models
from lit_fast.models import VDCNN, CheckpointError, ResNet, ResNeXt, load_checkpoint
from lit_fast.pair.counting import count_layers, count_macs, count_parameters
from lit_fast.runs.weights import normalization_of

DATA = Path(os.environ.get("LIT_FAST_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
DEPTHS = (20, 32, 44, 56, 110)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def published(depth: int) -> Path:
    path = DATA / "pretrained" / f"cifar10-resnet{depth}.th"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set LIT_FAST_TEST_DATA to the folder that holds pretrained/")
    return path


# -- sizes --------------------------------------------------------------------------------------------------------


# He et al. 2016, table 6 (0.27 M, 0.46, 0.66, 0.85, 1.7) to the last digit; MMACs at 32x32.
@pytest.mark.parametrize(
    ("depth", "parameters", "mmacs"),
    [(20, 269_722, 40.6), (32, 464_154, 68.9), (44, 658_586, 97.2), (56, 853_018, 125.5), (110, 1_727_962, 252.9)],
)
def test_resnets_have_the_published_sizes(depth, parameters, mmacs):
    model = models.create(f"resnet{depth}")
    assert count_parameters(model) == parameters
    assert round(count_macs(model, torch.zeros(1, 3, 32, 32)) / 1e6, 1) == mmacs
    assert count_layers(model) == depth


def resnext_parameters(n: int, cardinality: int, classes: int = 10) -> int:
    """Counted by hand from Xie et al.'s bottleneck: convolutions, BatchNorms (2 per channel), linear."""
    total, width = 3 * 9 * 64 + 2 * 64, 64
    for planes in (64, 128, 256):
        group = planes * 4 // 64
        inner, out = group * cardinality, planes * 4
        for block in range(n):
            total += width * inner + 2 * inner  # 1x1
            total += inner * group * 9 + 2 * inner  # 3x3 in groups
            total += inner * out + 2 * out  # 1x1
            total += width * out + 2 * out if block == 0 else 0  # projection
            width = out
    return total + width * classes + classes


@pytest.mark.parametrize("cardinality", [32, 16])
@pytest.mark.parametrize(("depth", "n"), list(zip(DEPTHS, (3, 5, 7, 9, 18))))
def test_resnexts_have_the_sizes_of_the_bottleneck_counted_by_hand(depth, n, cardinality):
    with torch.device("meta"):
        model = models.create(f"resnext{depth}", cardinality=cardinality)
    assert count_parameters(model) == resnext_parameters(n, cardinality)
    assert [len(layer) for layer in (model.layer1, model.layer2, model.layer3)] == [n, n, n]
    assert count_layers(model) == 9 * n + 2


@pytest.mark.parametrize("cardinality", [32, 16])
def test_resnext_irs_have_the_same_width_at_any_cardinality(cardinality):
    model, x = models.resnext20(cardinality=cardinality), torch.randn(1, 3, 8, 8)
    shapes = []
    for name in model.sections:
        model.get_submodule(name).register_forward_hook(lambda m, a, out: shapes.append(tuple(out.shape)))
    model.eval()(x)
    assert shapes == [(1, 256, 8, 8), (1, 512, 4, 4), (1, 1024, 2, 2)]
    assert model.layer2[0].conv2.groups == cardinality
    assert model.layer2[0].conv2.weight.shape[1] == 8  # D = 128 * 4 / 64 channels per group


@pytest.mark.parametrize("size", [8, 20, 32])
@pytest.mark.parametrize("make", [models.resnet20, models.resnet32])
def test_any_image_size_divisible_by_4_and_any_number_of_classes_and_channels(make, size):
    model = make(num_classes=7, in_channels=1)
    assert model(torch.randn(2, 1, size, size)).shape == (2, 7)
    assert model.layer3(model.layer2(model.layer1(torch.randn(1, 16, size, size)))).shape[2:] == (size // 4, size // 4)


def test_keys_follow_the_published_form():
    keys = set(models.resnet20().state_dict())
    bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "linear.weight", "linear.bias", *(f"bn1.{k}" for k in bn)}
    for layer in (1, 2, 3):
        for j in range(3):
            for i in (1, 2):
                expected.add(f"layer{layer}.{j}.conv{i}.weight")
                expected.update(f"layer{layer}.{j}.bn{i}.{k}" for k in bn)
    assert keys == expected


def test_option_a_takes_every_second_pixel_and_pads_channels_with_zeros_on_both_sides():
    shortcut = models.resnet20().layer2[0].shortcut
    x = torch.randn(2, 16, 6, 6)
    out = shortcut(x)
    assert out.shape == (2, 32, 3, 3)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def reference_resnet(model: ResNet, x: Tensor) -> Tensor:
    """ResNet in functional form, from the weights alone."""
    w = model.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(w[f"{name}.{key}"] for key in names))

    x = F.relu(norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1"))
    for layer in (1, 2, 3):
        for j in range(3):
            stride, name = (2 if layer > 1 and j == 0 else 1), f"layer{layer}.{j}"
            out = F.relu(norm(F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
            out = norm(F.conv2d(out, w[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            if stride == 2:
                pad = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
                x = torch.cat((pad, x[:, :, ::2, ::2], pad), 1)
            x = F.relu(out + x)
    return F.linear(x.mean((2, 3)), w["linear.weight"], w["linear.bias"])


def test_resnet_equals_its_definition():
    model = models.resnet20().double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    model(x)  # running statistics of its own
    torch.testing.assert_close(model.eval()(x), reference_resnet(model, x))


@pytest.mark.parametrize("make", [models.resnet20, lambda: models.resnext20(cardinality=2)], ids=["resnet", "resnext"])
def test_no_section_writes_into_its_input(make):
    model, x = make(), torch.randn(2, 3, 8, 8)
    for name in model.sections:
        section = model.get_submodule(name)
        section.register_forward_pre_hook(lambda m, args: setattr(m, "version", args[0]._version))
        section.register_forward_hook(lambda m, args, out: versions.append(args[0]._version == m.version))
    versions: list[bool] = []
    model(x)
    assert versions == [True] * 3


def test_he_initialisation():
    model = models.resnet20()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15), name


# -- the registry ---------------------------------------------------------------------------------------------------


def test_every_name_can_be_created():
    assert len(models.names()) == 13
    with torch.device("meta"):
        for name in models.names():
            model = models.create(name, num_classes=3)
            family, sections, last = {"resnet": (ResNet, 3, "linear"), "resnext": (ResNeXt, 3, "linear")}.get(
                name.rstrip("0123456789"), (VDCNN, 4, "fc3")
            )
            assert isinstance(model, family)
            assert models.Network(name).kind == ("texts" if family is VDCNN else "images")
            assert model.sections == tuple(f"layer{i + 1}" for i in range(sections))
            assert model.get_submodule(last).out_features == 3


@pytest.mark.parametrize(
    ("label", "network", "kind"),
    [
        ("resnet20", ("resnet20", None), "images"),
        ("resnext20-c16", ("resnext20", 16), "images"),
        ("vdcnn9", ("vdcnn9", None), "texts"),
        ("stargan2", ("stargan2", None), "generator"),
        ("my-cnn", ("my-cnn", None), None),
        ("my-c", ("my-c", None), None),
    ],
)
def test_a_label_names_the_network_and_is_printed_again(label, network, kind):
    assert models.Network.parse(label) == network
    assert str(models.Network(*network)) == label
    assert models.Network(*network).kind == kind


def test_a_network_is_built_for_what_it_is_fed():
    with torch.device("meta"):
        generator = models.Network("stargan2").build(5, (8, 16, 16), width=4)
        assert generator(torch.zeros(2, 8, 16, 16)).shape == (2, 3, 16, 16)
        grey = models.Network.parse("resnext20-c16").build(7, (1, 8, 8))
        assert grey(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
        assert models.Network("vdcnn9").build(4, (64,))(torch.zeros(2, 64, dtype=torch.int64)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet21", {}, r"unknown model 'resnet21'; did you mean .*Known models: resnet20, resnet32"),
        ("resnet20", {"cardinality": 16}, "cardinality=16 given for resnet20: only the resnext models"),
        ("resnet20", {"num_classes": 0}, "num_classes: expected an integer above 0, got 0"),
        ("resnext20", {"cardinality": -1}, "cardinality: expected an integer above 0, got -1"),
        ("resnet20", {"in_channels": 1.5}, "in_channels: expected an integer above 0, got 1.5"),
    ],
)
def test_what_cannot_be_created_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)


@pytest.mark.parametrize("make", [ResNet, ResNeXt])
def test_a_depth_that_is_not_6n_plus_2_is_refused(make):
    with pytest.raises(ValueError, match=r"depth is 6n \+ 2 .* got 21"):
        make(21)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if not key.endswith("num_batches_tracked"))


FORMS = {
    "bare": lambda weights: weights,
    "module.": lambda weights: {f"module.{key}": value for key, value in weights.items()},
    "wrapped": lambda weights: {"epoch": 3, "best_prec1": 91.7, "state_dict": weights},
    "wrapped module.": lambda weights: {"state_dict": {f"module.{key}": value for key, value in weights.items()}},
    "model": lambda weights: {"model": weights, "optimizer": {"state": {}}},
    "compiled": lambda weights: {f"_orig_mod.{key}": value for key, value in weights.items()},
    "compiled in module.": lambda weights: {f"module._orig_mod.{key}": value for key, value in weights.items()},
    "module. in compiled": lambda weights: {f"_orig_mod.module.{key}": value for key, value in weights.items()},
    "with numbers of NumPy": lambda weights: {
        "state_dict": weights,
        "best_acc": np.float64(91.7),
        "epoch": np.int64(3),
        "confusion": np.eye(3),
        "done": np.bool_(True),
    },
    "Lightning": lambda weights: {"state_dict": {f"model.{key}": value for key, value in weights.items()}},
    "LITModel": lambda weights: {f"student.model.{key}": value for key, value in weights.items()},
    "of a LITModel in Lightning": lambda weights: {f"net.student.model.{k}": v for k, v in weights.items()},
    "a submodule compiled": lambda weights: {
        key.replace("layer1.", "layer1._orig_mod."): value for key, value in weights.items()
    },
    "averaged": lambda weights: {
        "n_averaged": torch.tensor(3),
        **{f"module.{key}": value for key, value in weights.items()},
    },
    "averaged by timm": lambda weights: {"epoch": 3, "state_dict_ema": weights},
    "deep within": lambda weights: {"checkpoint": {"model": weights}, "epoch": 3},
    "under a name of one's own": lambda weights: {"resnet": weights, "epoch": 3},
    "weights before averaged ones": lambda weights: {
        "ema": {key: torch.zeros_like(value) for key, value in weights.items()},
        "model": weights,
    },
    "without counters": lambda weights: {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_load_in_every_common_form(form, tmp_path):
    saved, model = models.resnet20(), models.resnet20()
    saved(torch.randn(2, 3, 8, 8))
    torch.save(FORMS[form](saved.state_dict()), tmp_path / "weights.th")
    load_checkpoint(model, tmp_path / "weights.th")
    assert_same_weights(model, saved)


WRAPPED = {
    "split": lf.split,
    "LITModel": lambda model: lf.LITModel(lf.split(models.resnet20()), lf.split(model), lf.LITLoss()),
    "compiled": torch.compile,
    "DataParallel": nn.DataParallel,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_a_wrapped_model_saves_loads_into_the_bare_one_and_back(name, tmp_path):
    saved, bare, back = (models.resnet20() for _ in range(3))
    torch.save(WRAPPED[name](saved).state_dict(), tmp_path / "wrapped.pt")
    load_checkpoint(bare, tmp_path / "wrapped.pt")
    assert_same_weights(bare, saved)
    torch.save(bare.state_dict(), tmp_path / "bare.pt")
    load_checkpoint(WRAPPED[name](back), tmp_path / "bare.pt")
    assert_same_weights(back, saved)


def test_a_prefix_that_is_the_models_own_is_kept(tmp_path):
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    saved, model = Holder(), Holder()
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    load_checkpoint(model, tmp_path / "weights.pt")
    assert_same_weights(model, saved)


def test_safetensors_load(tmp_path):
    from safetensors.torch import save_file

    saved, model = models.resnet20(), models.resnet20()
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    load_checkpoint(model, str(tmp_path / "weights.safetensors"))
    assert_same_weights(model, saved)


def test_arrays_of_numpy_load(tmp_path):
    saved, model = models.resnet20(), models.resnet20()
    np.savez(tmp_path / "weights.npz", **{key: value.numpy() for key, value in saved.state_dict().items()})
    load_checkpoint(model, tmp_path / "weights.npz")
    assert_same_weights(model, saved)
    np.savez(tmp_path / "weights.npz", a=np.array([None]))
    refuses(tmp_path / "weights.npz", "not a whole .npz file of numbers")


def test_the_beginning_of_a_file_tells_its_kind_not_its_name(tmp_path):
    from safetensors.torch import save_file

    saved = models.resnet20()
    torch.save(saved.state_dict(), tmp_path / "torch.safetensors")
    torch.save(saved.state_dict(), tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    save_file(saved.state_dict(), tmp_path / "safetensors.pt")
    for name in ("torch.safetensors", "old.safetensors", "safetensors.pt"):
        model = models.resnet20()
        load_checkpoint(model, tmp_path / name)
        assert_same_weights(model, saved)


def test_a_checkpoint_keeps_the_models_dtype_and_parameters(tmp_path):
    saved, model = models.resnet20(), models.resnet20().double()
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    before = [id(p) for p in model.parameters()]
    load_checkpoint(model, tmp_path / "weights.pt")
    assert [id(p) for p in model.parameters()] == before
    assert model.conv1.weight.dtype == torch.float64
    assert torch.equal(model.conv1.weight.float(), saved.conv1.weight)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*nothing\.th does not exist"):
        load_checkpoint(models.resnet20(), tmp_path / "nothing.th")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load_checkpoint(models.resnet20(), tmp_path)


def refuses(path: Path, *words: str, model: nn.Module | None = None) -> None:
    model = model or models.resnet20()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_depth_lists_missing_and_unexpected_keys(tmp_path):
    path = tmp_path / "w.th"
    torch.save(models.resnet32().state_dict(), path)
    refuses(path, "does not fit ResNet", "unexpected (72)", "layer1.3.conv1.weight", "another architecture or depth")
    torch.save(models.resnet20().state_dict(), path)
    refuses(path, "missing (60)", "layer1.3.conv1.weight", model=models.resnet32())


def test_other_shapes_name_the_number_of_classes_or_channels(tmp_path):
    path = tmp_path / "w.th"
    torch.save(models.resnet20(num_classes=100, in_channels=1).state_dict(), path)
    refuses(path, "linear.weight: the model has (10, 64), the file (100, 64); build the model with num_classes=100")
    refuses(path, "conv1.weight: the model has (16, 3, 3, 3), the file (16, 1, 3, 3)", "in_channels=1")


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    path = tmp_path / "w.th"
    torch.save(models.resnet20().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    refuses(path, "cannot be read as a file of weights")
    path.write_bytes(b"")
    refuses(path, "cannot be read as a file of weights")
    torch.save({"epoch": 3}, path)
    refuses(path, "expected a state_dict of tensors", "keys ['epoch']")
    torch.save([1, 2], path)
    refuses(path, "got list")
    whole = tmp_path / "w.safetensors"
    whole.write_bytes(b"not a header")
    refuses(whole, "not a whole safetensors file")


def test_a_file_that_was_not_fetched_is_told_as_such(tmp_path):
    path = tmp_path / "w.pt"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    refuses(path, "a pointer of Git LFS")
    path.write_text("<!DOCTYPE html>")
    refuses(path, "a web page")


def test_what_stands_beside_the_weights_is_named_and_not_called_another_architecture(tmp_path):
    path, weights = tmp_path / "w.pt", models.resnet20().state_dict()
    optimizer = torch.optim.SGD(models.resnet20().parameters(), lr=0.1).state_dict()
    wrapped = {f"model.{key}": value for key, value in weights.items()}
    several = {"generator": weights, "discriminator": weights}
    loop: dict[str, object] = {}
    loop["state_dict"] = loop
    for content, *words in (
        ({**weights, "epoch": 3}, "tensors and beside them 'epoch' (int); leave out"),
        ({**weights, "optimizer": optimizer}, "'optimizer' (dict)"),
        ({**weights, "best": np.float64(1)}, "'best' (a value of NumPy)"),
        ({**weights, 0: torch.ones(1)}, "0 (a tensor whose key is no text)"),
        ({"state_dict": {key: value.numpy() for key, value in weights.items()}}, "arrays of NumPy", ".npz"),
        (several, "several: 'generator', 'discriminator'"),
        (loop, "got keys ['state_dict']"),
        ({**wrapped, "criterion.weight": torch.ones(3)}, "unexpected (1): criterion.weight", "more than this model's"),
        ({**weights, "lr": torch.tensor(0.1)}, "unexpected (1): lr", "more than this model's"),
    ):
        torch.save(content, path)
        refuses(path, *words)
        with pytest.raises(CheckpointError, match=r"^(?!.*architecture)"):
            load_checkpoint(models.resnet20(), path)


def test_weights_that_are_not_floating_point_are_refused(tmp_path):
    weights = models.resnet20().state_dict()
    torch.save({**weights, "linear.bias": weights["linear.bias"].to(torch.int8)}, tmp_path / "w.pt")
    refuses(tmp_path / "w.pt", "not floating-point (1): linear.bias (torch.int8)")


@pytest.mark.parametrize(
    ("held", "name"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (F.relu, "torch.nn.functional.relu"),
    ],
)
def test_an_object_that_is_not_loaded_is_named(held, name, tmp_path):
    torch.save({"state_dict": models.resnet20().state_dict(), "held": held}, tmp_path / "w.pt")
    refuses(tmp_path / "w.pt", f"it holds a Python object, {name}). Objects are not loaded")
    with pytest.raises(CheckpointError, match=r"^[^\x1b]*$"):
        load_checkpoint(models.resnet20(), tmp_path / "w.pt")


class Danger:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["LIT_FAST_TEST_TRAP"]),)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    monkeypatch.setenv("LIT_FAST_TEST_TRAP", str(trap))
    torch.save({"state_dict": models.resnet20().state_dict(), "args": Danger()}, tmp_path / "w.th")
    refuses(tmp_path / "w.th", "could run code")
    assert not trap.exists()


@pytest.mark.parametrize("depth", [20, 56])
def test_published_checkpoints_load_as_they_are(depth):
    path = published(depth)
    model = models.create(f"resnet{depth}")
    load_checkpoint(model, path)
    stored = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert all(torch.equal(model.state_dict()[key.removeprefix("module.")], value) for key, value in stored.items())


def test_the_normalisation_of_a_published_file_is_known_also_where_its_accuracy_is_a_number_of_numpy(tmp_path):
    torch.save({"state_dict": models.resnet20().state_dict(), "best_prec1": np.float64(91.7)}, tmp_path / "w.th")
    assert normalization_of(tmp_path / "w.th") == (lf.data.IMAGENET_MEAN, lf.data.IMAGENET_STD)
