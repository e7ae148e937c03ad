"""StarGAN's networks: what they compute, how they are cut, what they cost."""

from __future__ import annotations

import pytest
import torch

import lit_fast as lf
from lit_fast import models
from lit_fast.loss.backends import native
from lit_fast.models.stargan import Discriminator, Generator, with_domain
from lit_fast.pair.counting import count_layers, count_macs, count_parameters
from lit_fast.teacher.frozen import FrozenTeacher


def inputs(size: int = 16, domains: int = 5, rows: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(rows, 3, size, size, generator=generator) * 2 - 1
    return with_domain(images, torch.randint(0, 2, (rows, domains), generator=generator).float())


def test_the_generators_have_the_published_sizes():
    teacher, student = models.stargan6(), models.stargan2()
    assert (count_layers(teacher), count_layers(student)) == (18, 10)  # LIT paper, appendix A.3
    assert count_parameters(teacher) == 8_430_528
    assert count_parameters(student) == 3_707_840


def test_the_student_needs_1_9_times_fewer_macs_at_full_size():
    example = torch.zeros(1, 8, 128, 128)
    teacher, student = (count_macs(net, example) for net in (models.stargan6(), models.stargan2()))
    assert teacher / student == pytest.approx(1.94, abs=0.005)


def test_the_discriminator_has_the_published_size_and_outputs():
    discriminator = Discriminator(128)
    assert count_parameters(discriminator) == 44_762_048
    with torch.no_grad():
        critic, attributes = discriminator(torch.zeros(2, 3, 128, 128))
    assert (critic.shape, attributes.shape) == ((2, 1, 2, 2), (2, 5))


@pytest.mark.parametrize(("size", "layers", "patches"), [(16, None, 1), (32, None, 1), (64, None, 1), (96, 5, 3)])
def test_a_discriminator_fits_other_sizes(size, layers, patches):
    critic, attributes = Discriminator(size, 3, width=2, layers=layers)(torch.zeros(1, 3, size, size))
    assert (critic.shape, attributes.shape) == ((1, 1, patches, patches), (1, 3))


def test_the_domain_is_one_plane_per_attribute():
    images, domain = torch.rand(2, 3, 4, 4), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    joined = with_domain(images, domain)
    torch.testing.assert_close(joined[:, :3], images, rtol=0, atol=0)
    assert joined[:, 3:].amin((2, 3)).equal(domain)
    assert joined[:, 3:].amax((2, 3)).equal(domain)


def test_evaluation_gives_what_training_gives():
    net, x = Generator(2, 5, width=4), inputs()
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), net.train()(x), rtol=0, atol=0)


def test_the_output_depends_on_the_domain_and_lies_in_the_images_range():
    net = Generator(2, 5, width=4)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        outputs = [net(with_domain(images, domain[None])) for domain in torch.eye(5)]
    assert all(out.abs().max() <= 1 for out in outputs)
    assert not torch.allclose(outputs[0], outputs[1])


@pytest.mark.skipif(not native.available()[0], reason="no compiled extension")
@pytest.mark.parametrize("blocks", [2, 6])
def test_the_runner_lowers_every_part(blocks):
    torch.manual_seed(0)
    model, x = lf.split(Generator(blocks, 5, width=8).eval()), inputs(32)
    irs, images = model.run(x)
    teacher = FrozenTeacher(model)
    own_irs, own_images = teacher.run(x)
    assert all(plan.lowered for plan in teacher.parts), teacher.describe()
    for ours, right in ((own_irs[0], irs[0]), (own_images, images)):
        assert (ours - right).abs().max() <= 1e-5 * right.abs().max()


def test_the_pair_is_one_section_with_stem_and_head_copied():
    teacher, student = lf.split(models.stargan6(width=4)), lf.split(models.stargan2(width=4))
    teacher.eval().requires_grad_(False)
    lf.copy_parts(teacher, student)
    student.freeze("stem", "head")
    lf.inspect(teacher, student, inputs())
    trained = {name for name, parameter in student.model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in student.model.named_parameters() if name.startswith("bottleneck.")}


@pytest.mark.parametrize("shape", [(1, 8, 18, 16), (1, 8, 16, 18), (1, 3, 16, 16), (8, 16, 16)])
def test_the_generator_refuses_what_it_cannot_halve_or_has_no_domain(shape):
    with pytest.raises(ValueError, match=r"expected \[B, 8, H, W\].*divisible by 4"):
        Generator(2, 5, width=4)(torch.zeros(shape))


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"image_size must be divisible by 64 .* got 100"):
        Discriminator(100)
    with pytest.raises(ValueError, match="blocks: expected an integer above 0, got 0"):
        Generator(0)
    with pytest.raises(
        ValueError,
        match=r"unknown generator 'stargan4'; did you mean stargan6 or stargan2[?]",
    ):
        models.create_generator("stargan4")
    with pytest.raises(ValueError, match=r"expected images .* got \(1, 3, 4, 4\) and \(2, 5\)"):
        with_domain(torch.zeros(1, 3, 4, 4), torch.zeros(2, 5))
