"""Files that are there whole or not at all."""

import os

import pytest

from fedma_flwr.server.whole_files import written_whole


@pytest.fixture
def handles(monkeypatch):
    """The handles that are open, by path; what was synced and renamed, in order."""
    is_open, done = {}, []
    real = {name: getattr(os, name) for name in ("open", "close", "fsync", "replace")}

    def note_open(path, flags, *args, **options):
        handle = real["open"](path, flags, *args, **options)
        is_open[handle] = str(path)
        return handle

    def note_close(handle):
        is_open.pop(handle, None)
        real["close"](handle)

    def note_sync(handle):
        done.append(("sync", os.path.basename(is_open[handle])))
        real["fsync"](handle)

    def note_replace(source, target):
        done.append(("rename", os.path.basename(target)))
        real["replace"](source, target)

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "close", note_close)
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    return is_open, done


def test_every_handle_is_closed_and_the_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path, handles
):
    is_open, done = handles
    final = tmp_path / "new" / "result.json"
    with written_whole(final) as partial:
        partial.write_text("all of it")
    assert final.read_text() == "all of it"
    assert [path.name for path in final.parent.iterdir()] == ["result.json"]
    assert done == [("sync", "result.partial"), ("rename", "result.json"), ("sync", "new")]
    assert is_open == {}


def test_handles_are_closed_even_if_the_disk_is_full(tmp_path, handles, monkeypatch):
    is_open, _ = handles

    def fail(handle):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    (tmp_path / "result.json").write_text("the old one")
    with (
        pytest.raises(OSError, match="no space left"),
        written_whole(tmp_path / "result.json") as partial,
    ):
        partial.write_text("the new one")
    assert (tmp_path / "result.json").read_text() == "the old one"
    assert is_open == {}


def test_what_fails_while_it_is_written_leaves_the_old_file(tmp_path):
    final = tmp_path / "result.json"
    final.write_text("the old one")

    def fail(partial):
        partial.write_text("half of")
        raise KeyError

    with pytest.raises(KeyError), written_whole(final) as partial:
        fail(partial)
    assert final.read_text() == "the old one"
    with written_whole(final) as partial:  # the rest of the first attempt is no obstacle
        partial.write_text("the new one")
    assert final.read_text() == "the new one"


def test_folders_are_not_opened_where_that_cannot_be_done(tmp_path, handles, monkeypatch):
    """Windows has no handles of folders; the file itself is synced there too."""
    is_open, done = handles
    final = tmp_path / "result.json"
    with written_whole(final) as partial:
        partial.write_text("all of it")
        monkeypatch.setattr(os, "name", "nt")
    monkeypatch.undo()
    assert done == [("sync", "result.partial"), ("rename", "result.json")]
    assert is_open == {}
