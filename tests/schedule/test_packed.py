"""Nested states in a few blocks of memory: copies, bit for bit, in the memory order that they had."""

import itertools

import pytest
import torch
from schedule_helpers import assert_same, saved_and_loaded

from autolr_ray.schedule import packed
from autolr_ray.schedule.packed import Packed, pack


class Labelled(torch.Tensor):
    """A subclass, as those that quantise an optimizer's state are."""


def nested():
    torch.manual_seed(0)
    return {
        "model": {
            "weight": torch.nn.Parameter(torch.randn(4, 3)),
            "kernel": torch.randn(2, 3, 5, 5).to(memory_format=torch.channels_last),
            "volume": torch.randn(2, 3, 4, 5, 5).to(memory_format=torch.channels_last_3d),
            "half": torch.randn(7).to(torch.bfloat16),
            "counter": torch.tensor(3),
            "empty": torch.zeros(0, 4),
        },
        "optimizer": [{"step": torch.tensor(2.0), "moment": torch.randn(3), "name": "a", "none": None}, {}],
        "history": [torch.randn(2), None, [torch.randn(1)]],
        "group": {"betas": (0.9, 0.999), "turned": torch.randn(3, 4).T, "gaps": torch.randn(6)[::2]},
        "labelled": torch.randn(2).as_subclass(Labelled),
        "places": {("conv", 1): torch.randn(2)},
        "pair": (1, [torch.randn(2)], {"a": torch.randn(1)}),
    }


def tensors(value):
    """By their order."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [tensor for item in items for tensor in tensors(item)]


@pytest.mark.parametrize("on_host", [True, False])
def test_what_was_packed_comes_back(on_host):
    original = nested()
    assert_same(pack(original, on_host=on_host).nested(), original)


def test_a_sparse_tensor_is_copied_too():
    sparse = torch.eye(3).to_sparse()
    copied = pack({"a": [sparse]}, on_host=True).nested()["a"][0]
    sparse.values().zero_()
    assert copied.is_sparse
    assert torch.equal(copied.to_dense(), torch.eye(3))


def test_tensors_of_a_type_share_a_block_and_keep_their_strides():
    original = nested()
    found = pack(original, on_host=True)
    assert sorted(str(block.dtype) for block in found.blocks) == [
        "torch.bfloat16", "torch.float32", "torch.int64"
    ]  # fmt: skip
    copied = found.nested()
    for name, tensor in original["model"].items():
        assert copied["model"][name].stride() == tensor.stride()
        block = next(block for block in found.blocks if block.dtype == tensor.dtype)
        assert copied["model"][name].untyped_storage().data_ptr() == block.untyped_storage().data_ptr()
        assert not copied["model"][name].requires_grad


def test_it_is_a_copy():
    """Of all: nothing that is done to the original reaches it, whatever kept the tensors."""
    original = nested()
    found = pack(original, on_host=True)
    with torch.no_grad():
        for tensor in tensors(original):
            tensor.zero_()
    original["optimizer"].clear()
    original["model"].clear()
    assert_same(found.nested(), nested())


def test_what_comes_of_it_has_containers_of_its_own():
    found = pack(nested(), on_host=True)
    first = found.nested()
    first["model"].clear()
    first["history"].clear()
    first["optimizer"][0].clear()
    assert_same(found.nested(), nested())


def test_a_state_is_written_and_read():
    plain = nested() | {"labelled": None}  # what is read with ``weights_only``
    found = pack(plain, on_host=True)
    again = Packed.of(saved_and_loaded(found.state_dict()))
    assert_same(again.nested(), plain)
    assert again.nbytes == found.nbytes


def test_blocks_that_are_parts_of_larger_memory():
    """As those are that a checkpoint's reader cut out of its own."""
    found = pack(nested(), on_host=True)
    blocks = [torch.cat([block[:1], block])[1:] for block in found.blocks]
    assert_same(Packed(blocks, found.places, found.rest).nested(), nested())


def test_a_file_has_an_entry_for_each_block_not_for_each_tensor(tmp_path):
    """What made checkpoints of small models slow."""
    many = {f"layer{i}": torch.full((3,), float(i)) for i in range(500)}
    found = pack(many, on_host=True)
    assert len(tensors(found.state_dict())) == 1
    torch.save(found.state_dict(), tmp_path / "packed.pt")
    torch.save(many, tmp_path / "each.pt")
    assert (tmp_path / "packed.pt").stat().st_size < 0.25 * (tmp_path / "each.pt").stat().st_size


def test_memory_is_counted():
    assert pack({"a": torch.zeros(10), "b": torch.zeros(4, 4)[::2]}, on_host=True).nbytes == 4 * (10 + 8)
    assert pack({}, on_host=True).nbytes == 0


@pytest.mark.parametrize("most", [1, 4, 5, 6, 100])
def test_pieces_are_neighbours_within_the_bound(most):
    flat = [torch.arange(n) for n in (2, 3, 1, 9, 4)]
    pieces = list(packed._pieces(flat, most))
    assert [t for piece in pieces for t in piece] == flat
    assert all(len(piece) == 1 or sum(map(len, piece)) <= most for piece in pieces)
    joined = [sum(map(len, a)) + len(b[0]) for a, b in itertools.pairwise(pieces)]
    assert all(size > most for size in joined)


@pytest.mark.gpu
@pytest.mark.parametrize("gathered", [2**26, 16])
@pytest.mark.parametrize("on_host", [True, False])
def test_from_a_gpu(on_host, gathered, monkeypatch):
    """In pieces on the way to the host, to pinned memory; or where it is."""
    monkeypatch.setattr(packed, "_GATHERED", gathered)
    original = nested()
    on_gpu = {
        "model": {name: tensor.cuda() for name, tensor in original["model"].items()},
        "optimizer": [original["optimizer"][0] | {"moment": original["optimizer"][0]["moment"].cuda()}, {}],
        "gaps": original["group"]["gaps"].cuda()[::1],
    }
    found = pack(on_gpu, on_host=on_host)
    torch.cuda.synchronize()
    copied = found.nested()
    for name, tensor in on_gpu["model"].items():
        assert copied["model"][name].is_cuda is not on_host
        assert copied["model"][name].is_pinned() is on_host or not tensor.numel()
        assert copied["model"][name].stride() == tensor.stride()
        assert torch.equal(copied["model"][name].cpu(), original["model"][name])
    assert torch.equal(copied["optimizer"][0]["moment"].cpu(), original["optimizer"][0]["moment"])
    assert copied["optimizer"][0]["step"].device.type == "cpu"
