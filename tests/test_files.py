"""What is written beside its place is seen whole or not at all."""

import pytest

from simclr_tf import _atomic


def test_a_file_is_replaced_and_a_directory_appears(tmp_path):
    """Until the end the old file is there; directories above are made; nothing else stays."""
    path = tmp_path / "some" / "file.txt"
    for text in ("old", "new"):
        with _atomic.atomic_path(path) as place:
            place.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    with _atomic.atomic_path(tmp_path / "1") as place:
        place.mkdir()
        (place / "part").touch()
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["1", "file.txt", "part", "some"]


def test_after_an_exception_nothing_is_left(tmp_path):
    """No part, no directory that was made for it; what was there stays."""
    (tmp_path / "there").write_text("old")
    for path in (tmp_path / "a" / "b" / "new", tmp_path / "there"):
        with pytest.raises(KeyboardInterrupt), _atomic.atomic_path(path) as place:
            place.write_text("half")
            raise KeyboardInterrupt
    assert [each.name for each in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "old"


def test_a_directory_that_is_gone_is_not_made_anew(tmp_path):
    """Where that is asked: a run directory that vanished is an error."""
    with (
        pytest.raises(FileNotFoundError),
        _atomic.atomic_path(tmp_path / "run" / "x", parents=False),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_below_a_file_there_is_no_place(tmp_path):
    """In one line that names it."""
    (tmp_path / "there").write_text("old")
    line = r"there.1.2 cannot be written: .*there is a file"
    with (
        pytest.raises(NotADirectoryError, match=line),
        _atomic.atomic_path(tmp_path / "there" / "1" / "2"),
    ):
        pass
