"""Checkpoints: written beside training, inside epochs too, the newest few kept, damage survived."""

import threading

import pytest
import torch
import train_helpers as helpers
from train_helpers import STEPS_PER_EPOCH, Cut, SpyContext, assert_same, result, spec_of

from autolr_ray.train import LocalContext, run
from autolr_ray.train.checkpoints import Background, CheckpointFolder, load_state, on_host, save_state


def folder_with(tmp_path, steps, keep=2):
    folder = CheckpointFolder(tmp_path / "run", keep=keep)
    for step in steps:
        folder.save({"step": step, "weights": torch.full((3,), float(step))}, step)
    return folder


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_few_are_kept(keep, tmp_path):
    folder = folder_with(tmp_path, [3, 7, 20, 100], keep=keep)
    names = [path.name for path in folder.paths()]
    assert names == [f"checkpoint-{step:09d}.pt" for step in (100, 20, 7, 3)[:keep]]
    assert folder.newest()["step"] == 100
    folder.clear()
    assert folder.paths() == []
    assert folder.newest() is None


def test_steps_are_ordered_as_numbers(tmp_path):
    folder = folder_with(tmp_path, [999_999_999, 1_000_000_000])
    assert folder.newest()["step"] == 1_000_000_000


DAMAGE = {
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "not a checkpoint": lambda content: b"hello",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_passed_over(damage, tmp_path):
    folder = folder_with(tmp_path, [1, 2])
    newest = folder.paths()[0]
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    with pytest.warns(UserWarning, match=f"checkpoint: {newest} is damaged and is passed over"):
        assert folder.newest()["step"] == 1


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_nothing_but_damaged_files_is_an_error(tmp_path):
    folder = folder_with(tmp_path, [1, 2])
    for path in folder.paths():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint: none of the 2 files in .* can be read; delete them"):
        folder.newest()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"checkpoint: .* cannot be written .* the newest whole one is none"):
        folder_with(tmp_path, [1])


def test_a_copy_on_the_host_is_a_copy():
    weights = torch.ones(2)
    state = {"a": [weights, (1, weights)], "b": {"c": None}, "d": "text"}
    copied = on_host(state)
    weights.fill_(9.0)
    assert_same(copied.nested(), {"a": [torch.ones(2), (1, torch.ones(2))], "b": {"c": None}, "d": "text"})


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_written_is_what_is_read(whole, tmp_path):
    """In blocks or tensor by tensor; what is read has a memory for each tensor."""
    state = {"step": 3, "model": {"a": torch.ones(2), "b": torch.arange(3)}, "more": [torch.zeros(2, 2), 1.5]}
    save_state(state if whole else on_host(state), tmp_path / "state.pt")
    read = load_state(tmp_path / "state.pt")
    assert_same(read, state)
    sizes = [t.untyped_storage().nbytes() for t in (*read["model"].values(), read["more"][0])]
    assert sizes == [8, 24, 16]


def test_an_error_in_the_background_is_raised_once():
    background = Background()

    def fail():
        raise OSError("no room")

    background.start(fail)
    background.settle()
    with pytest.raises(OSError, match="no room"):
        background.start(lambda: None)
    background.wait()


# --- in a run ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return helpers.train(spec_of(epochs=4), tmp_path_factory.mktemp("whole"))


class Killed(LocalContext):
    """A process that ends in a chosen optimizer step, whatever is being written."""

    def __init__(self, folder, last_step):
        super().__init__(folder / "run", folder / "records", device=torch.device("cpu"))
        self.left = last_step

    def poll(self):
        super().poll()
        self.left -= 1
        if not self.left:
            raise Cut


@pytest.mark.parametrize("every", [1, 7, 10, 25, 1000])
def test_cut_off_inside_epochs(every, whole, tmp_path):
    """Lives of 17 steps each: none reaches the end of its epoch's save unless the one before was saved."""
    spec = spec_of(epochs=4, checkpoint_every=every)
    assert spec.cell == spec_of(epochs=4).cell
    record, lives, length = None, 0, 17 if every < 17 else 30
    while record is None:
        lives += 1
        assert lives < 30
        try:
            record = run(spec, Killed(tmp_path, length))
        except Cut:
            continue
    assert result(record) == result(whole[0])
    assert record.restarts == lives - 1 >= 3


def test_training_goes_on_while_a_checkpoint_is_written(monkeypatch, tmp_path):
    """With a disk that takes for ever, steps of the next epoch are done before the first is safe."""
    go, steps_before = threading.Event(), []
    save = CheckpointFolder.save

    def slow(self, state, step):
        assert go.wait(60)
        save(self, state, step)

    monkeypatch.setattr(CheckpointFolder, "save", slow)
    published = []

    class Counting(LocalContext):
        def poll(self):
            super().poll()
            steps_before.append(len(published))
            if len(steps_before) == STEPS_PER_EPOCH + 20:
                go.set()

    context = Counting(
        tmp_path / "run", tmp_path / "records", device=torch.device("cpu"), on_report=published.append
    )
    record = run(spec_of(epochs=3), context)
    assert steps_before[STEPS_PER_EPOCH + 15] == 0
    assert [row.epoch for row in published] == [1, 2, 3]
    assert published == record.epoch_rows


def test_a_state_that_is_being_written_does_not_change(monkeypatch, tmp_path, whole):
    """What is saved after epoch 2 is what the run was then, however late it reaches the disk."""
    go, save = threading.Event(), CheckpointFolder.save

    def slow(self, state, step):
        if step == 2 * STEPS_PER_EPOCH:
            assert go.wait(60)
        save(self, state, step)

    monkeypatch.setattr(CheckpointFolder, "save", slow)

    class Late(Killed):
        def close(self):
            go.set()
            super().close()

    with pytest.raises(Cut):
        run(spec_of(epochs=4), Late(tmp_path, 2 * STEPS_PER_EPOCH + 20))
    assert CheckpointFolder(tmp_path / "run").newest()["step"] == 2 * STEPS_PER_EPOCH
    monkeypatch.undo()
    assert result(run(spec_of(epochs=4), SpyContext(tmp_path))) == result(whole[0])


@pytest.mark.filterwarnings("ignore:checkpoint")
@pytest.mark.parametrize("damage", ["cut off", "zeros"])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(damage, whole, tmp_path):
    with pytest.raises(Cut):
        run(spec_of(epochs=4), Killed(tmp_path, 3 * STEPS_PER_EPOCH + 5))
    newest = CheckpointFolder(tmp_path / "run").paths()[0]
    assert newest.name == "checkpoint-000000075.pt"
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    context = SpyContext(tmp_path)
    assert context.restore()["step"] == 50
    assert result(run(spec_of(epochs=4), context)) == result(whole[0])


def test_a_checkpoint_with_a_dictionary_for_each_epoch_is_taken_up(whole, tmp_path):
    """As rows were saved before they were columns."""
    with pytest.raises(Cut):
        run(spec_of(epochs=4), Killed(tmp_path, 3 * STEPS_PER_EPOCH + 5))
    folder = CheckpointFolder(tmp_path / "run")
    state = folder.newest()
    columns = {field: values.tolist() for field, values in state["rows"].items()}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    save_state(state | {"rows": rows}, folder.paths()[0])
    record = run(spec_of(epochs=4), SpyContext(tmp_path))
    assert result(record) == result(whole[0])
    assert [row.model_dump() for row in record.epoch_rows[:3]] == rows


def test_a_finished_run_leaves_its_record_alone(whole, tmp_path):
    helpers.train(spec_of(epochs=4, checkpoint_every=10), tmp_path)
    assert list((tmp_path / "run").iterdir()) == []
    assert len(list((tmp_path / "records").iterdir())) == 1
