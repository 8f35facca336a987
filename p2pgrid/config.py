"""config.toml, typed: its sections, and reading it.

Every setting has one home: a field below. A flag beats the environment, the environment beats the file, the file
beats the default given here.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from p2pgrid.errors import UsageError
from p2pgrid.proto.messages import MAX_BATCH_MS, MAX_BATCH_REQUESTS

DEFAULT_NETWORK = "main"

NetworkName = Annotated[str, Meta(pattern=r"\A[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")]
CountryCode = Annotated[str, Meta(pattern=r"\A[A-Z]{2}\Z")]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Base of the sections of config.toml. Keys are written with hyphens."""


class PeriodConfig(Section, frozen=True, kw_only=True):
    """`[[provider.models.schedule]]`: other prices at certain hours. The first entry that holds counts."""

    days: tuple[str, ...] = ("mon-sun",)
    """`mon` to `sun`, or ranges such as `mon-fri`."""
    from_: str = msgspec.field(name="from")
    """HH:MM by the provider's `time-zone`."""
    until: str
    """HH:MM, `24:00` for the day's end. Earlier than `from`: the period goes on over midnight."""
    price_input_eur: str
    price_output_eur: str
    price_cached_input_eur: str | None = None


class ModelConfig(Section, frozen=True, kw_only=True):
    """`[[provider.models]]`: one model on sale."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    price_input_eur: str
    """EUR per million prompt tokens, a decimal in quotes."""
    price_output_eur: str
    price_cached_input_eur: str | None = None
    """EUR per million prompt tokens found in the cache; the input price if left out."""
    engine_url: str | None = None
    """An engine that runs already: http://host:port or unix:/path. Left out: the node runs vLLM itself."""
    model_path: str | None = None
    """What `vllm serve` loads: a folder, or `smollm2` or `tiny` from `p2pgrid engine install`."""
    context_tokens: Annotated[int, Meta(ge=64)] = 2048
    concurrency: Annotated[int, Meta(ge=1, le=100_000)] = 16
    quantization: str = ""
    kv_cache_gib: Annotated[int, Meta(ge=1)] = 1
    """Memory of the KV cache where vLLM runs on the CPU, in GiB."""
    cpu_threads: Annotated[int, Meta(ge=1)] | None = None
    """Threads of vLLM on the CPU; left out, all cores. Give each engine its number where several share a machine."""
    gpu_memory_share: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Share of each GPU's memory that vLLM takes, 0 to 1; left out, vLLM's choice."""
    tensor_parallel: Annotated[int, Meta(ge=1)] = 1
    """GPUs that compute one answer together."""
    tool_call_parser: str | None = None
    """vLLM's parser for tool calls, such as `hermes`; left out, no tool calls."""
    engine_arguments: tuple[str, ...] = ()
    """More arguments for `vllm serve`."""
    most_tokens_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """The fastest that one answer can come on this hardware, as the offer states it; 0: not stated."""
    schedule: tuple[PeriodConfig, ...] = ()


class TermsConfig(Section, frozen=True, kw_only=True):
    """`[provider.terms]`."""

    window_tokens: Annotated[int, Meta(ge=16, le=65_536)] = 256
    credit_limit_eur: str = "10"
    """What a client that has paid nothing yet may owe on a channel."""
    max_credit_limit_eur: str = "250"
    """The most that any client may owe on a channel."""
    credit_growth_percent: Annotated[int, Meta(ge=0, le=1000)] = 50
    """Of what a client has paid in time, so much is added to the limit of its next channel."""
    overdue_grace_days: Annotated[int, Meta(ge=0, le=366)] = 7
    """How long after its day an invoice is not overdue yet: banks take time."""
    lend_when_overdue: bool = False
    """Go on lending to a client with an overdue invoice."""
    believe: Annotated[tuple[str, ...], Meta(max_length=256)] = ()
    """Providers (peer ids) whose word counts on what clients have paid them, for the limits of these clients here."""
    max_open_orders: Annotated[int, Meta(ge=1, le=1024)] = 64
    channel_days: Annotated[int, Meta(ge=1, le=366)] = 90
    dispute_days: Annotated[int, Meta(ge=1, le=366)] = 14
    settlement_days: Annotated[int, Meta(ge=1, le=366)] = 30
    batch_requests: Annotated[int, Meta(ge=1, le=MAX_BATCH_REQUESTS)] = MAX_BATCH_REQUESTS
    """Most short requests of one client that share an order and a receipt; 1: every request has its own."""
    batch_ms: Annotated[int, Meta(ge=0, le=MAX_BATCH_MS)] = MAX_BATCH_MS
    """How long after the first of them another may join."""


class ProviderConfig(Section, frozen=True, kw_only=True):
    """`[provider]`: an operator's node."""

    operator: Annotated[str, Meta(max_length=128)] = ""
    country: CountryCode = "LT"
    listen: str = "0.0.0.0:4801"
    """host:port of the direct road; empty: sell over libp2p alone."""
    processes: Annotated[int, Meta(ge=1, le=64)] = 1
    """Worker processes that serve the direct road's links, beside the node's main process; 1: that serves them."""
    libp2p_listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4802",)
    announce: tuple[str, ...] = ()
    """host:port under which others reach the direct road; left out, the address listened on."""
    libp2p_announce: tuple[str, ...] = ()
    """Multiaddrs under which others reach libp2p; left out, the addresses listened on."""
    pages: str = ""
    """host:port of the operator's pages (/offer, /health, /metrics, /log/, /receipts...); empty: over libp2p alone."""
    pages_names: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    """Host names under which others reach the pages, beside the card's domain: by them a client can say who it is."""
    relay_through: tuple[str, ...] = ("auto",)
    """Relays through which others reach this node: their multiaddrs; `auto`: any, while nobody outside can dial it;
    `never`."""
    punch: bool = True
    """Open connections of their own with clients that came through a relay."""
    relay: bool = False
    """Relay for others, within the limits of `[relay]`."""
    sell_in: tuple[NetworkName, ...] = ()
    """Networks in which this node sells, of those that it is in; empty: in all of them."""
    witnesses: Annotated[tuple[str, ...], Meta(max_length=16)] = ()
    """Multiaddrs of peers that are asked to cosign the log's checkpoints, with /tls on the direct road."""
    engine_timeout_s: Annotated[int, Meta(ge=1)] = 1800
    """How long an engine may take to be ready."""
    drain_s: Annotated[int, Meta(ge=0, le=3600)] = 30
    """How long running orders may go on when the node is told to stop."""
    prompt_retention_days: Annotated[int, Meta(ge=0, le=3650)] = 0
    offer_minutes: Annotated[int, Meta(ge=1, le=10_080)] = 60
    """How long an offer is in force; it is renewed at half time."""
    time_zone: str = "UTC"
    """IANA name: the clock of the price schedules."""
    models: tuple[ModelConfig, ...] = ()
    terms: TermsConfig = TermsConfig()


class ClientConfig(Section, frozen=True, kw_only=True):
    """`[client]`: a buyer's gateway."""

    listen: str = "127.0.0.1:8480"
    processes: Annotated[int, Meta(ge=1, le=4)] = 1
    """Worker processes that serve programs, beside the gateway's main process; 1: that serves them.

    Each has a channel of its own with every provider, which grants four."""
    countries: tuple[CountryCode, ...] = ()
    """Buy only there; empty: anywhere."""
    parent_countries: tuple[CountryCode, ...] = ()
    """Buy only from operators whose card names the seat of their ultimate parent there; empty: from any."""
    verify_domains: bool = False
    """Buy only from operators whose card names a domain, and whose domain names the provider."""
    max_cost_eur: str | None = None
    """Most that one request may cost."""
    first_token_timeout_s: Annotated[int, Meta(ge=1, le=3600)] = 120
    slot_timeout_s: Annotated[int, Meta(ge=1, le=3600)] = 20
    """How long a request waits for a free slot of the best provider before the next one is asked."""
    punch: bool = True
    """Open a connection of its own to a provider that was reached through a relay, which then learns the address."""
    receipt_each: bool = False
    """A receipt for every request, also where a provider's terms let short ones share one."""
    api_key_file: str | None = None
    """A file with the key that programs must show; without one the gateway listens on loopback alone."""


class NetworkEntry(Section, frozen=True, kw_only=True):
    """`[[networks]]`: one network that this node is in. At most one setting closes it; else it is open."""

    name: NetworkName
    bootstrap: tuple[str, ...] = ()
    """Multiaddrs of peers that introduce to it; left out, an open network's are those of bootstrap_peers.toml."""
    secret_file: str | None = None
    """Closed by a secret, which is in this file: 64 hex digits, mode 0600."""
    members: tuple[str, ...] | str | None = None
    """Closed by a list: peer ids, or a file with one a line, which is read again when it changes."""
    group_key: str | None = None
    """Closed by a group's key, written like a peer id: who shows a membership that it signed is in."""
    membership_file: str | None = None
    """With `group-key`: this node's own membership, read again when it changes."""


class BootstrapConfig(Section, frozen=True, kw_only=True):
    """`[bootstrap]`: an introducing peer."""

    libp2p_listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4803",)
    relay: bool = True
    """Relay for others, within the limits of `[relay]`."""


class RelayConfig(Section, frozen=True, kw_only=True):
    """`[relay]`: what this peer relays for others, at most."""

    reservations: Annotated[int, Meta(ge=1, le=100_000)] = 128
    """Peers that may be reached through here."""
    reservations_per_ip: Annotated[int, Meta(ge=1, le=100_000)] = 8
    reservation_minutes: Annotated[int, Meta(ge=2, le=1440)] = 60
    circuits: Annotated[int, Meta(ge=1, le=100_000)] = 256
    circuits_per_peer: Annotated[int, Meta(ge=1, le=100_000)] = 32
    """To one peer that is reached through here."""
    circuits_per_ip: Annotated[int, Meta(ge=1, le=100_000)] = 32
    """From one caller's address."""
    circuit_minutes: Annotated[int, Meta(ge=0, le=525_600)] = 1440
    """How long one circuit may last; 0: as long as it likes."""
    circuit_kib_per_s: Annotated[int, Meta(ge=64, le=10_000_000)] = 2048
    kib_per_s: Annotated[int, Meta(ge=64, le=10_000_000)] = 16_384
    """Of all circuits together."""
    idle_s: Annotated[int, Meta(ge=10, le=86_400)] = 300
    """A circuit that has carried nothing but heartbeats for so long is cut."""


class AccountsConfig(Section, frozen=True, kw_only=True):
    """`[billing.accounts]`: where sales and purchases are booked (docs/settlement/books.md)."""

    chart: str = "plain"
    """`plain`, `skr03` or `skr04`."""
    numbers: dict[str, str] = {}
    """Account numbers by role that go over the chart's."""
    tax_keys: dict[str, str] = {}
    """DATEV's BU-Schlüssel by role."""
    tax_rates: dict[str, Annotated[int, Meta(ge=0, le=10_000)]] = {}
    """What DATEV computes on the account with that key, in basis points, by role."""
    account_length: Annotated[int, Meta(ge=4, le=8)] = 4
    deduct_input_vat: bool = True
    reverse_charge_rate_bp: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    fiscal_year_begins: Annotated[str, Meta(pattern=r"\A(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])\Z")] = "01-01"
    """MM-DD."""
    datev_consultant: Annotated[int, Meta(ge=1001, le=9_999_999)] = 1001
    datev_client: Annotated[int, Meta(ge=1, le=99_999)] = 1
    datev_final: bool = False


class BillingConfig(Section, frozen=True, kw_only=True):
    """`[billing]`: who stands on invoices, as seller and as buyer, and where money goes (docs/settlement/issuing.md).

    `p2pgrid billing check` says what is wrong with it, and what is missing for what."""

    legal_name: Annotated[str, Meta(max_length=140)] = ""
    street: Annotated[str, Meta(max_length=140)] = ""
    street_more: Annotated[str, Meta(max_length=140)] = ""
    city: Annotated[str, Meta(max_length=140)] = ""
    post_code: Annotated[str, Meta(max_length=20)] = ""
    country: Annotated[str, Meta(pattern=r"\A([A-Z]{2})?\Z")] = ""
    subdivision: Annotated[str, Meta(max_length=140)] = ""
    vat_id: Annotated[str, Meta(max_length=35)] = ""
    tax_number: Annotated[str, Meta(max_length=35)] = ""
    registration_number: Annotated[str, Meta(max_length=35)] = ""
    registration_scheme: Annotated[str, Meta(max_length=4)] = ""
    electronic_address: Annotated[str, Meta(max_length=128)] = ""
    electronic_scheme: Annotated[str, Meta(max_length=4)] = ""
    contact_name: Annotated[str, Meta(max_length=140)] = ""
    contact_phone: Annotated[str, Meta(max_length=35)] = ""
    contact_email: Annotated[str, Meta(max_length=100)] = ""
    business: bool = True
    small_business: bool = False
    iban: Annotated[str, Meta(max_length=60)] = ""
    bic: Annotated[str, Meta(max_length=20)] = ""
    account_holder: Annotated[str, Meta(max_length=140)] = ""
    buyer_reference: Annotated[str, Meta(max_length=140)] = ""
    profile: Literal["en16931", "xrechnung", "peppol"] = "en16931"
    self_billing: bool = False
    """As client: write the invoices; as provider: let clients do so. It is so where both sides say it."""
    invoice_prefix: Annotated[str, Meta(pattern=r"\A[A-Z0-9][A-Z0-9-]{0,23}\Z")] = "INV"
    """Numbers are PREFIX-2027-000001. No two nodes of one company may share it."""
    payment_days: Annotated[int, Meta(ge=0, le=366)] = 14
    """From the day of a statement to the day by which it is to be paid."""
    accounts: AccountsConfig = AccountsConfig()


class RetentionConfig(Section, frozen=True, kw_only=True):
    """`[retention]`: what a node destroys by itself."""

    erase_keys_after_disputes: bool = True
    """Once a day: the keys that could show requests and answers whose receipts nobody can dispute any more."""


class Config(Section, frozen=True, kw_only=True):
    """config.toml as a whole."""

    network: NetworkName | None = None
    """Left out: those under `networks`, or `main` where there are none."""
    bootstrap_peers: str | None = None
    """A bootstrap_peers.toml of your own."""
    provider: ProviderConfig = ProviderConfig()
    client: ClientConfig = ClientConfig()
    bootstrap: BootstrapConfig = BootstrapConfig()
    relay: RelayConfig = RelayConfig()
    billing: BillingConfig = BillingConfig()
    retention: RetentionConfig = RetentionConfig()
    networks: tuple[NetworkEntry, ...] = ()


def parse_host_port(text: str) -> tuple[str, int]:
    """`host:port` or `[IPv6 address]:port` as (host, port); port 0 is any free one. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    is_number = port.isascii() and port.isdecimal() and int(port) <= 65_535
    if not colon or not host or not is_number or (":" in host and not bracketed):
        raise UsageError(f"{text!r} is no address.", hint="Write host:port, like 0.0.0.0:4801 or [::]:4801.")
    return host[1:-1] if bracketed else host, int(port)


def load_config(path: Path) -> Config:
    """Read a config.toml; defaults if the file does not exist. Raises UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", hint="Mend or remove it.") from None
    return parse_config(text, str(path))


def parse_config(text: str, source: str) -> Config:
    """Read the text of a config.toml; `source` names it in messages. Raises UsageError."""
    try:
        return msgspec.convert(tomllib.loads(text), Config, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"{source}: {error}.", hint="`p2pgrid init --print-config` shows every setting.") from None
    except ValueError as error:  # TOMLDecodeError, and what int() says of thousands of digits
        raise UsageError(f"{source} is no TOML: {error}.", hint="Mend that line.") from None
    except RecursionError:
        raise UsageError(f"{source} is nested too deep to be read.", hint="A setting needs no nesting.") from None
