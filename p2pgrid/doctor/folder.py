"""What lies in the data folder: whose it is, its configuration, its keys."""

from __future__ import annotations

import stat
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from p2pgrid.config import Config, parse_host_port
from p2pgrid.data_folder import DataFolder, load_key
from p2pgrid.doctor.check import Check, fault, of_error, ok, skipped, warning
from p2pgrid.errors import P2pgridError, UsageError
from p2pgrid.proto.keys import SecretKey


class Role(StrEnum):
    """What a data folder is for."""

    PROVIDER = "provider"
    CLIENT = "client"
    BOOTSTRAP = "bootstrap"


def role_of(data: DataFolder, running: str | None = None) -> Role:
    """`running`: the role of the node that runs on the folder. Else config.toml and what lies there tell.

    `init` makes a provider's folder, `gateway` a client's, `bootstrap` one with nothing but a key.
    """
    if running is not None and running in set(Role):
        return Role(running)
    tables: dict[str, Any] = {}
    with suppress(OSError, ValueError, RecursionError):  # a fault in the file is told of by `check_config`
        tables = tomllib.loads(data.config_file.read_text(encoding="utf-8"))
    provider = tables.get("provider")
    if isinstance(provider, dict) and provider.get("models"):
        return Role.PROVIDER
    if data.offers_file.exists() or data.quarantine_file.exists():
        return Role.CLIENT
    for role in Role:
        if role.value in tables:
            return role
    if data.ledger_file.exists() or data.card_file.exists() or data.config_file.exists():
        return Role.PROVIDER
    return Role.BOOTSTRAP if data.key_file.exists() else Role.CLIENT


def check_config(data: DataFolder, role: Role, sold: Sequence[str] = ()) -> tuple[Config | None, list[Check]]:
    """config.toml, as the node would read it; None if it could not. `sold`: the models that the running node sells."""
    name = "config"
    try:
        config = data.load_config()
    except P2pgridError as error:
        return None, [of_error(name, error, "Mend the file.")]
    where = str(data.config_file) if data.config_file.exists() else "no config.toml: all settings are the defaults"
    try:
        match role:
            case Role.PROVIDER:
                found = _check_provider(config, data, sold)
            case Role.CLIENT:
                found = _check_client(config, data)
            case Role.BOOTSTRAP:
                found = _check_bootstrap(config, data)
    except P2pgridError as error:
        return config, [of_error(name, error, f"Mend {data.config_file}.")]
    return config, found or [ok(name, where)]


def _check_provider(config: Config, data: DataFolder, sold: Sequence[str]) -> list[Check]:
    from p2pgrid.net.addresses import parse_announce_address, parse_listen_address
    from p2pgrid.provider.addresses import offered_addresses
    from p2pgrid.provider.offers import tariff_of, terms_of
    from p2pgrid.provider.schedule import schedule_of, time_zone

    provider = config.provider
    for address in filter(None, (provider.listen, provider.pages)):
        parse_host_port(address)
    offered_addresses((), provider.announce)
    for listen in provider.libp2p_listen:
        parse_listen_address(listen)
    for announce in provider.libp2p_announce:
        parse_announce_address(announce)
    for model in provider.models:
        tariff_of(model)
        schedule_of(model)
    terms_of(provider.terms)
    time_zone(provider.time_zone)
    found = []
    if not provider.models and sold:
        found.append(
            warning(
                "config",
                f"no model is configured; the node that runs was told by its command to sell {', '.join(sold)}.",
                f"Write it under [[provider.models]] in {data.config_file}, so that it is sold after a restart too.",
            )
        )
    elif not provider.models:
        found.append(
            fault(
                "config",
                "no model is configured, so there is nothing to sell.",
                f"Add one under [[provider.models]] in {data.config_file}, or give --model to `p2pgrid serve`.",
            )
        )
    if not provider.listen and not provider.libp2p_listen:
        found.append(
            fault(
                "config",
                "neither the direct road nor libp2p listens, so nobody could buy.",
                f"Set listen or libp2p-listen in {data.config_file}.",
            )
        )
    if not provider.operator:
        found.append(
            warning(
                "config",
                "offers name no operator: clients do not know from whom they buy.",
                f"Set operator, your legal name, in {data.config_file}.",
            )
        )
    return found


def _check_client(config: Config, data: DataFolder) -> list[Check]:
    from p2pgrid.client.client import wishes_of

    client = config.client
    wishes_of(client)
    host, _ = parse_host_port(client.listen)
    if client.api_key_file is None:
        if host not in ("127.0.0.1", "::1", "localhost"):
            return [
                fault(
                    "config",
                    f"the gateway would listen on {client.listen} for anybody who can connect, without an API key.",
                    f"Set api-key-file in {data.config_file}, or listen on 127.0.0.1.",
                )
            ]
        return []
    path = Path(client.api_key_file).expanduser()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return [
            fault(
                "config",
                f"the API key {path} cannot be read: {error.strerror}.",
                f"Make one: (umask 077; openssl rand -hex 24 > {path})",
            )
        ]
    if stat.S_IMODE(mode) & 0o077:
        return [fault("config", f"the API key {path} can be read by others.", f"chmod 600 {path}")]
    return []


def _check_bootstrap(config: Config, data: DataFolder) -> list[Check]:
    from p2pgrid.net.addresses import parse_listen_address

    for listen in config.bootstrap.libp2p_listen:
        parse_listen_address(listen)
    return []


def check_keys(data: DataFolder, role: Role) -> tuple[SecretKey | None, list[Check]]:
    """The node's key, None if there is none to be used, and what is wrong with it and with those beside it."""
    name, found = "keys", list[Check]()
    key = None
    if not data.key_file.exists():
        if role is Role.PROVIDER:
            fix = f"p2pgrid --data {data.path} init"
            return None, [fault(name, f"there is no key at {data.key_file}.", fix)]
        command = "gateway" if role is Role.CLIENT else "bootstrap"
        return None, [skipped(name, f"there is no key yet; `p2pgrid {command}` makes one at its first start.")]
    try:
        key = data.load_key()
    except UsageError as error:
        found.append(of_error(name, error, f"Restore {data.key_file} from a backup."))
    for path in data.retired_key_files:
        try:
            load_key(path)
        except UsageError as error:
            found.append(of_error(name, error, f"Restore {path} from a backup."))
    if data.operator_key_file.exists():
        try:
            load_key(data.operator_key_file)
        except UsageError as error:
            found.append(of_error(name, error, f"chmod 600 {data.operator_key_file}"))
    if (mode := stat.S_IMODE(data.path.stat().st_mode)) & 0o022:
        found.append(
            warning(
                name, f"others can write to the data folder {data.path} (mode {mode:04o}).", f"chmod 700 {data.path}"
            )
        )
    if key is not None and not found:
        found.append(ok(name, f"{key.public_key.peer_id}, readable by its owner alone."))
    return key, found
