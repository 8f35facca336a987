"""The data folder: where each file of a node lies, and the files with its keys and other secrets.

A key is made for its owner alone, never overwritten, and read only while nobody else can.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from p2pgrid.config import Config, load_config
from p2pgrid.errors import LocalError, UsageError
from p2pgrid.proto.keys import SEED_BYTES, PublicKey, SecretKey


@dataclass(frozen=True, slots=True)
class DataFolder:
    """Where a node keeps its key, configuration, ledger and logs."""

    path: Path

    @classmethod
    def default(cls) -> DataFolder:
        """By the platform's convention."""
        return cls(Path(platformdirs.user_data_dir("p2pgrid", appauthor=False)))

    @property
    def key_file(self) -> Path:
        """The node's Ed25519 seed, 32 bytes in hex, mode 0600."""
        return self.path / "key"

    @property
    def retired_key_files(self) -> list[Path]:
        """Keys that `p2pgrid card rotate` has replaced; they still end what was begun under them."""
        return sorted(self.path.glob("key.12D3KooW*"))

    @property
    def operator_key_file(self) -> Path:
        """The operator's own key, which signs cards. It may live on another machine."""
        return self.path / "operator-key"

    @property
    def card_file(self) -> Path:
        """The operator's chain of cards, a record a line. No secret: it is served to whoever asks."""
        return self.path / "card.jsonl"

    @property
    def cards_folder(self) -> Path:
        """Other operators' chains of cards, as clients were shown them: a file for each operator's key."""
        return self.path / "cards"

    @property
    def config_file(self) -> Path:
        """config.toml."""
        return self.path / "config.toml"

    @property
    def ledger_file(self) -> Path:
        """The ledger's SQLite file."""
        return self.path / "ledger.sqlite"

    @property
    def offers_file(self) -> Path:
        """Offers heard of: a cache that may be deleted."""
        return self.path / "offers.json"

    @property
    def roads_file(self) -> Path:
        """Which road led to whom: a cache that may be deleted."""
        return self.path / "roads.json"

    def log_file(self, peer_id: str) -> Path:
        """The SQLite file of the transparency log that this key signs: each of a node's keys has a log of its own."""
        return self.path / f"log.{peer_id}.sqlite"

    def log_checkpoint_file(self, peer_id: str) -> Path:
        """The log's last signed checkpoint, beside it: what a log that was set back is told by."""
        return self.path / f"log.{peer_id}.checkpoint"

    @property
    def log_files(self) -> list[Path]:
        """The logs of this node's keys, those that were replaced too."""
        return sorted(self.path.glob("log.12D3KooW*.sqlite"))

    @property
    def witness_file(self) -> Path:
        """The checkpoints of others' logs that were seen last, as SQLite."""
        return self.path / "witness.sqlite"

    @property
    def forks(self) -> Path:
        """Proofs that a log forked."""
        return self.path / "forks"

    @property
    def networks_folder(self) -> Path:
        """What `p2pgrid network` keeps: closed networks, their secrets, lists and memberships."""
        return self.path / "networks"

    @property
    def quarantine_file(self) -> Path:
        """Providers that are not bought from."""
        return self.path / "quarantine.json"

    @property
    def logs(self) -> Path:
        """Log files."""
        return self.path / "logs"

    def make(self) -> None:
        """Create the folder, for its owner alone. Raises LocalError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise LocalError(
                f"the data folder {self.path} cannot be made: {error.strerror}.", hint="Choose another with --data."
            ) from None

    def load_config(self) -> Config:
        """Read config.toml; defaults if there is none. Raises UsageError that names the line or the field."""
        return load_config(self.config_file)

    def load_key(self) -> SecretKey:
        """Read the node's key. Raises UsageError if it is missing, readable by others, or no key."""
        return load_key(self.key_file)

    def load_retired_keys(self) -> list[SecretKey]:
        """The keys this node had before. Raises UsageError."""
        return [load_key(path) for path in self.retired_key_files]

    def logs_of_own_keys(self) -> list[tuple[Path, Path, SecretKey]]:
        """Log, checkpoint file and key, for the node's key and those it had before. Raises UsageError."""
        return [
            (self.log_file(key.public_key.peer_id), self.log_checkpoint_file(key.public_key.peer_id), key)
            for key in (self.load_key(), *self.load_retired_keys())
        ]

    def own_public_keys(self) -> list[PublicKey]:
        """The node's key and those it had before. Raises UsageError."""
        return [key.public_key for key in (self.load_key(), *self.load_retired_keys())]

    def load_or_create_key(self) -> SecretKey:
        """Read the node's key, or make one."""
        if not self.key_file.exists():
            self.make()
            create_key(self.key_file)
        return load_key(self.key_file)


def create_key(path: Path) -> None:
    """Make a new key file with mode 0600. Raises UsageError if one is there already: keys are never overwritten."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} holds a key already.", hint="Keys are never overwritten; move it away.") from None
    except OSError as error:
        raise LocalError(f"{path} cannot be written: {error.strerror}.", hint="Choose another --data.") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(os.urandom(SEED_BYTES).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())


def load_key(path: Path) -> SecretKey:
    """Read a key file. Raises UsageError: missing, open to others, or no key."""
    return SecretKey(read_secret_file(path, "key", another="move it away and run `p2pgrid init`"))


def read_secret_file(path: Path, what: str, *, another: str) -> bytes:
    """The 32 bytes in a file of 64 hex digits that nobody else can read.

    `what` names it in messages, `another` says what to do if others had access. Raises UsageError.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        hint = "`p2pgrid init` makes one." if what == "key" else "`p2pgrid network join` writes one."
        raise UsageError(f"there is no {what} at {path}.", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the {what} at {path} cannot be read: {error}.", hint="Check the file's owner.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise UsageError(
            f"the {what} at {path} can be read by others (mode {stat.S_IMODE(mode):04o}; 0600 was expected).",
            hint=f"If nobody else had access: chmod 600 {path}. Otherwise {another}.",
        )
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != SEED_BYTES:
        raise UsageError(f"{path} is no {what}: 64 hex digits were expected.", hint="Restore it from a backup.")
    return secret
