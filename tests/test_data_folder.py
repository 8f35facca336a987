"""The data folder and its key file."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.data_folder import DataFolder, create_key, load_key
from p2pgrid.errors import LocalError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "node")


def test_a_key_is_made_once_for_its_owner_alone(folder: DataFolder) -> None:
    key = folder.load_or_create_key()
    assert folder.load_or_create_key().public_key == key.public_key == folder.load_key().public_key
    assert folder.key_file.stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(UsageError, match="never overwritten"):
        create_key(folder.key_file)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o620, 0o601])
def test_a_key_that_others_can_read_is_refused(folder: DataFolder, mode: int) -> None:
    folder.load_or_create_key()
    folder.key_file.chmod(mode)
    with pytest.raises(UsageError, match=f"mode {mode:04o}") as error:
        folder.load_key()
    assert "chmod 600" in error.value.hint


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"00" * 31, b"00" * 33, b"\xff\xfe", bytes(32)])
def test_what_is_no_key(folder: DataFolder, content: bytes) -> None:
    folder.make()
    folder.key_file.write_bytes(content)
    folder.key_file.chmod(0o600)
    with pytest.raises(UsageError) as error:
        load_key(folder.key_file)
    assert content.hex()[:8] not in str(error.value) or not content


def test_a_missing_key_says_what_to_do(folder: DataFolder) -> None:
    with pytest.raises(UsageError) as error:
        folder.load_key()
    assert "p2pgrid init" in error.value.hint


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError):
        DataFolder(tmp_path / "file" / "node").make()
    with pytest.raises(LocalError):
        create_key(tmp_path / "nowhere" / "key")
