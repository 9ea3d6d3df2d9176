"""Batch transforms: against the plain computation, image by image."""

import pickle

import pytest
import torch

from autolr_ray.tasks.images import CropAndFlip, Normalise, PCALighting


def seeded(seed):
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    """64 images of noise, no pixel black, so that padding can be told from content."""
    return torch.randint(1, 256, (64, 3, 10, 12), dtype=torch.uint8, generator=seeded(0))


def test_normalise(batch):
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    out = Normalise(mean, std)(batch)
    assert out.dtype == torch.float32
    for channel in range(3):
        expected = (batch[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(out[:, channel].double(), expected, rtol=1e-5, atol=1e-6)


def test_normalise_first_used_in_inference_mode_can_be_trained_with():
    normalise = Normalise((0.123,), (0.456,))
    with torch.inference_mode():
        normalise(torch.zeros(1, 1, 2, 2))
    inputs = torch.ones(1, 1, 2, 2, requires_grad=True)
    normalise(inputs).sum().backward()
    torch.testing.assert_close(inputs.grad, torch.full((1, 1, 2, 2), 1 / 255 / 0.456))


def test_crop_and_flip_keeps_shape_and_dtype_and_follows_the_generator(batch):
    augment = CropAndFlip()
    before = batch.clone()
    out = augment(batch, seeded(1))
    assert out.shape == batch.shape
    assert out.dtype == batch.dtype
    assert torch.equal(batch, before)
    torch.manual_seed(99)
    assert torch.equal(out, augment(batch, seeded(1)))
    assert not torch.equal(out, augment(batch, seeded(2)))
    assert not torch.equal(out, batch)


def test_crop_and_flip_goes_on_with_the_generator(batch):
    generator = seeded(1)
    first = CropAndFlip()(batch, generator)
    state = generator.get_state()
    second = CropAndFlip()(batch, generator)
    generator.set_state(state)
    assert not torch.equal(first, second)
    assert torch.equal(second, CropAndFlip()(batch, generator))


def test_crop_and_flip_gives_windows_of_the_padded_image(batch):
    """Each output is one of the 2 x 3 x 3 windows of its own image, and all of them occur."""
    batch = batch.repeat(4, 1, 1, 1)
    out = CropAndFlip(padding=1)(batch, seeded(3))
    height, width = batch.shape[2:]
    found = set()
    for image, result in zip(batch, out, strict=True):
        padded = torch.zeros(3, height + 2, width + 2, dtype=torch.uint8)
        padded[:, 1:-1, 1:-1] = image
        windows = {
            (dy, dx, flip): window.flip(2) if flip else window
            for dy in range(3)
            for dx in range(3)
            for flip in (False, True)
            for window in [padded[:, dy : dy + height, dx : dx + width]]
        }
        matches = [key for key, window in windows.items() if torch.equal(window, result)]
        assert len(matches) == 1
        found.update(matches)
    assert len(found) == 18


def test_lighting_shifts_each_image_by_one_colour(batch):
    out = PCALighting(std=0.1)(batch, seeded(4))
    assert out.dtype == torch.float32
    shift = out - batch
    assert shift.std(dim=(2, 3)).max() < 1e-3
    assert shift.mean(dim=(2, 3)).unique(dim=0).shape == (64, 3)
    assert torch.equal(out, PCALighting(std=0.1)(batch, seeded(4)))
    torch.testing.assert_close(PCALighting(std=0.0)(batch, seeded(4)), batch.float())


def test_lighting_has_the_covariance_of_the_principal_colours():
    shift = PCALighting(std=1.0)(torch.zeros(50_000, 3, 1, 1), seeded(5))[:, :, 0, 0].double() / 255
    values, vectors = torch.linalg.eigh(torch.cov(shift.T))
    torch.testing.assert_close(
        values.flip(0).sqrt(), torch.tensor([0.2175, 0.0188, 0.0045]).double(), rtol=0.02, atol=0
    )
    # The strongest is grey: all three channels together.
    assert (vectors[:, 2].abs() - 3**-0.5).abs().max() < 0.02


@pytest.mark.parametrize("value", [Normalise((0.1,), (0.2,)), CropAndFlip(), PCALighting()])
def test_can_be_sent_to_workers(value):
    assert pickle.loads(pickle.dumps(value)) == value
