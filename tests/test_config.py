"""config.toml and the key file."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.config import Config, DataFolder, create_key, load_config, load_key
from p2pgrid.errors import LocalError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "node")


def test_no_file_is_the_defaults(folder: DataFolder) -> None:
    config = folder.load_config()
    assert config == Config()
    assert (config.network, config.client.listen, config.provider.listen) == (None, "127.0.0.1:8480", "0.0.0.0:4801")


def test_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        """
        network = "demo"
        [provider]
        operator = "Vilnius GPU"
        country = "LT"
        [[provider.models]]
        name = "tiny"
        price-input-eur = "0.20"
        price-output-eur = "0.60"
        engine-url = "unix:/run/vllm.sock"
        engine-arguments = ["--enforce-eager"]
        [provider.terms]
        window-tokens = 64
        [client]
        countries = ["LT", "DE"]
        max-cost-eur = "0.01"
        """
    )
    config = load_config(path)
    assert config.provider.models[0].engine_arguments == ("--enforce-eager",)
    assert config.provider.terms.window_tokens == 64
    assert config.client.countries == ("LT", "DE")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("network = ", "TOML"),
        ("networks = 'x'", "networks"),
        ("[provider]\nlistn = 'x'", "listn"),
        ("[provider]\ncountry = 'Lithuania'", "country"),
        ('[provider]\ncountry = "LT\\n"', "country"),
        ('network = "demo\\n"', "network"),
        ("network = 'Demo'", "network"),
        ("[provider.terms]\nwindow_tokens = 64", "window_tokens"),
        ("[provider.terms]\nwindow-tokens = 1", "window-tokens"),
        ("[provider.terms]\nwindow-tokens = '64'", "window-tokens"),
        ("[[provider.models]]\nname = 'x'", "price-input-eur"),
        ("[[provider.models]]\nname = 'x'\nprice-input-eur = 0.2\nprice-output-eur = '1'", "price-input-eur"),
        ("[client]\nfirst-token-timeout-s = 0", "first-token-timeout-s"),
    ],
)
def test_bad_files_name_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(path)
    assert named in str(error.value) and str(path) in str(error.value)
    assert error.value.hint


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_config(tmp_path)
    path = tmp_path / "latin"
    path.write_bytes(b"network = '\xff'")
    with pytest.raises(UsageError):
        load_config(path)


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
