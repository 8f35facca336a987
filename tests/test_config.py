"""config.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pgrid.config import Config, load_config
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import UsageError


def test_no_file_is_the_defaults(tmp_path: Path) -> None:
    config = DataFolder(tmp_path / "node").load_config()
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
