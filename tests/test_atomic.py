"""Atomic writes: a file or directory is there as a whole or not at all."""

import errno
import os

import pytest

from simclr_tf import _atomic, errors


def test_a_file_is_replaced_and_a_directory_appears(tmp_path):
    """The old file stays until the end; parent directories are made; nothing else is left."""
    path = tmp_path / "some" / "file.txt"
    for text in ("old", "new"):
        with _atomic.atomic_path(path) as scratch:
            scratch.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    with _atomic.atomic_path(tmp_path / "1") as scratch:
        scratch.mkdir()
        (scratch / "part").touch()
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["1", "file.txt", "part", "some"]


def test_after_an_exception_nothing_is_left(tmp_path):
    """Neither a part of the file nor a directory made for it; an existing file is unchanged."""
    (tmp_path / "there").write_text("old")
    for path in (tmp_path / "a" / "b" / "new", tmp_path / "there"):
        with pytest.raises(KeyboardInterrupt), _atomic.atomic_path(path) as scratch:
            scratch.write_text("half")
            raise KeyboardInterrupt
    assert [each.name for each in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "old"


def test_a_missing_parent_directory_is_an_error_without_parents(tmp_path):
    """With parents=False: a run directory that was removed is not made again."""
    with (
        pytest.raises(FileNotFoundError),
        _atomic.atomic_path(tmp_path / "run" / "x", parents=False),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_path_below_a_file_cannot_be_written(tmp_path):
    """The message is one line that names the file, as a StorageError too."""
    (tmp_path / "there").write_text("old")
    line = r"there.1.2 cannot be written: .*there is a file"
    with (
        pytest.raises(NotADirectoryError, match=line),
        _atomic.atomic_path(tmp_path / "there" / "1" / "2"),
    ):
        pass
    with (
        pytest.raises(errors.StorageError, match=f"^{tmp_path}.{line}"),
        errors.storage_errors(tmp_path / "there" / "1" / "2"),
        _atomic.atomic_path(tmp_path / "there" / "1" / "2"),
    ):
        pass


def test_an_output_error_names_path_reason_and_remedy(tmp_path):
    """In one line; it is an OSError with the number of the cause, and an error of the package."""
    with pytest.raises(OSError, match=r"/h.npz cannot be written: No space left.*Free") as raised:
        with errors.storage_errors(tmp_path / "h.npz"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert isinstance(raised.value, errors.Error) and raised.value.errno == errno.ENOSPC
    assert "\n" not in str(raised.value)
