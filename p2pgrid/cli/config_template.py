"""config.toml as `p2pgrid init` writes it: every setting with its default, commented out, and a line that explains it.

Lines that begin with `#` and no space are settings: take the `#` away to change one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from p2pgrid.config import (
    AccountsConfig,
    BillingConfig,
    BootstrapConfig,
    ClientConfig,
    Config,
    ModelConfig,
    NetworkEntry,
    PeriodConfig,
    ProviderConfig,
    RelayConfig,
    RetentionConfig,
    Section,
    TermsConfig,
)

EXPLAINED: Final[dict[type[Section], dict[str, str]]] = {
    Config: {
        "network": 'The open network to join, by its name in bootstrap_peers.toml. Not set: those below, else "main".',
        "bootstrap-peers": 'A list of introducing peers of your own. Not set; for example: "/etc/p2pgrid/peers.toml"',
    },
    ProviderConfig: {
        "operator": "Your legal name, as it stands in offers.",
        "country": "Where the GPUs stand, ISO 3166-1 alpha-2.",
        "listen": "host:port of the direct road, the faster one. Empty: sell over libp2p alone.",
        "processes": "Processes that serve the direct road, on a machine with cores to spare. 1: the node's own.",
        "libp2p-listen": "Where libp2p listens, for discovery and as a second road. Empty: neither.",
        "announce": 'host:port under which others reach `listen`, if it is another address: ["203.0.113.7:4801"]',
        "libp2p-announce": 'The same for libp2p: ["/ip4/203.0.113.7/tcp/4802"]',
        "pages": 'host:port of your pages, as "127.0.0.1:4880". Empty: they are shown over libp2p alone.',
        "pages-names": 'Host names under which others reach the pages, beside your card\'s domain: ["gpu.example.org"]',
        "relay-through": 'Relays you are reached through. "auto": any, while nobody can dial you; "never"; addresses.',
        "punch": "Where a client came through a relay, try to open a connection of its own with it (hole punching).",
        "relay": "Relay for peers that nobody can dial, within the limits of [relay]: for a public address.",
        "sell-in": 'Where you sell, of the networks that you are in. Empty: in all. For example: ["lab"]',
        "witnesses": "Peers asked to cosign your log, up to 16: /ip4/203.0.113.8/tcp/4801/tls/p2p/12D3KooW...",
        "engine-timeout-s": "How long an engine may take to be ready.",
        "drain-s": "How long running orders may go on when the node is told to stop.",
        "prompt-retention-days": "How long you keep prompts and answers. It is part of the offer: a promise.",
        "offer-minutes": "How long an offer binds; it is renewed at half time.",
        "time-zone": 'The clock of the price schedules, an IANA name: "Europe/Vilnius".',
    },
    TermsConfig: {
        "window-tokens": "Most output tokens ahead of the client's last signature: the most that either side can lose.",
        "credit-limit-eur": "What a client that has paid nothing yet may owe on a channel.",
        "max-credit-limit-eur": "The most that a client's limit grows to as it pays.",
        "credit-growth-percent": "Of what a client has paid in time, so much is added to its limit.",
        "overdue-grace-days": "How many days after its day an invoice counts as overdue.",
        "lend-when-overdue": "Go on lending to a client with an overdue invoice.",
        "believe": "Providers whose word counts on what clients paid them: peer ids. Nobody else's earns credit here.",
        "max-open-orders": "Orders of one client without a countersigned receipt.",
        "channel-days": "How long a channel with a client lives.",
        "dispute-days": "How long either side may dispute a receipt.",
        "settlement-days": "How often is settled.",
        "batch-requests": "Most short requests of a client, asked nearly at once, that share a receipt. 1: none do.",
        "batch-ms": "How long after the first of them another may join, in ms.",
    },
    ModelConfig: {
        "name": "What clients ask for.",
        "price-input-eur": "EUR per million prompt tokens, a decimal in quotes.",
        "price-output-eur": "EUR per million output tokens.",
        "price-cached-input-eur": 'EUR per million cached prompt tokens. Not set, the input price; for example: "0.02"',
        "engine-url": 'An engine that runs already. For example: "http://127.0.0.1:8000" or "unix:/run/vllm.sock"',
        "model-path": 'What vLLM loads: a folder, or "smollm2" or "tiny" from `p2pgrid engine install`.',
        "context-tokens": "Context of the node's own vLLM. An attached engine says its own.",
        "concurrency": "Orders served at once.",
        "quantization": "As it stands in offers.",
        "kv-cache-gib": "Memory of the KV cache where vLLM runs on the CPU, in GiB.",
        "cpu-threads": "Threads of vLLM on the CPU. Not set, all cores; say 2 where several engines share them.",
        "gpu-memory-share": "Share of each GPU's memory. Not set, vLLM's choice; for example: 0.9",
        "tensor-parallel": "GPUs that compute one answer together.",
        "tool-call-parser": 'vLLM\'s parser for tool calls. Not set; for example: "hermes"',
        "engine-arguments": "More arguments for `vllm serve`.",
        "most-tokens-per-s": "The fastest one answer can come on this hardware; auditors check it. 0: not stated.",
    },
    PeriodConfig: {
        "days": "Weekdays, mon to sun, or ranges.",
        "from": "From this time on, by the provider's time-zone.",
        "until": "Up to this time; 24:00 is the day's end. Earlier than `from`: the next morning.",
        "price-input-eur": "EUR per million prompt tokens then.",
        "price-output-eur": "EUR per million output tokens then.",
        "price-cached-input-eur": 'EUR per million cached prompt tokens then. Not set, the input price; say: "0.01"',
    },
    ClientConfig: {
        "listen": "host:port of the gateway's OpenAI API.",
        "processes": "Processes that serve programs, up to 4, on a machine with cores to spare. 1: the gateway's own.",
        "countries": 'Buy only there; empty: anywhere. For example: ["DE", "LT"]',
        "max-cost-eur": 'Most that one request may cost. Not set; for example: "0.05"',
        "first-token-timeout-s": "Nothing is owed for an answer whose first token comes later.",
        "slot-timeout-s": "How long a request waits for a free slot of the best provider before the next is asked.",
        "parent-countries": 'Buy only from operators whose parent has its seat there, by their card: ["DE", "LT"]',
        "verify-domains": "Buy only from operators that have shown that they control the domain on their card.",
        "punch": "Reach a provider behind a relay directly too (hole punching). It learns this machine's address.",
        "receipt-each": "A receipt for every request, also where short ones asked at once could share one.",
        "api-key-file": "A file with the key that programs must show. Not set: listen on loopback alone.",
    },
    BootstrapConfig: {
        "libp2p-listen": "Where an introducing peer listens.",
        "relay": "Relay for peers that nobody can dial, within the limits of [relay].",
    },
    NetworkEntry: {
        "name": "A network's name: 1 to 32 lower-case letters, digits and inner hyphens.",
        "bootstrap": "Who introduces to it: /ip4/203.0.113.7/tcp/4803/p2p/12D3KooW... Empty: bootstrap_peers.toml.",
        "secret-file": 'Closed by a secret, 64 hex digits in a file of mode 0600. For example: "lab.secret"',
        "members": 'Closed by a list of peer ids, or by a file with one a line. For example: "lab.members"',
        "group-key": 'Closed by a group\'s key: who has a membership that it signed. For example: "12D3KooW..."',
        "membership-file": 'With group-key: your own membership. For example: "lab.membership"',
    },
    RelayConfig: {
        "reservations": "Peers that may be reached through this one.",
        "reservations-per-ip": "The same, at one IP address.",
        "reservation-minutes": "How long a reservation lasts; who holds it renews it.",
        "circuits": "Connections relayed at once.",
        "circuits-per-peer": "The same, to one peer that is reached through this one.",
        "circuits-per-ip": "The same, from one caller's IP address.",
        "circuit-minutes": "How long one may last. 0: as long as it likes.",
        "circuit-kib-per-s": "How fast one may be, in KiB a second, both directions together.",
        "kib-per-s": "How fast all together may be.",
        "idle-s": "One that has carried nothing but heartbeats for so long is cut.",
    },
    AccountsConfig: {
        "chart": 'Chart of accounts: "plain", or DATEV\'s "skr03" or "skr04".',
        "numbers": 'Account numbers of your own, by role. For example: { bank = "1810", "revenue-S" = "4400" }',
        "tax-keys": 'DATEV\'s tax keys (BU-Schlüssel), by role. For example: { "expense-S" = "9" }',
        "tax-rates": 'What DATEV computes with these, in basis points. For example: { "expense-S" = 1900 }',
        "account-length": "Digits of your account numbers, 4 to 8; those of clients and providers have one more.",
        "deduct-input-vat": "You may deduct the VAT of what you buy. If not, it is part of the expense.",
        "reverse-charge-rate-bp": "VAT that you owe on purchases from abroad, 2100 is 21 %. Not set: your country's.",
        "fiscal-year-begins": "Month and day, MM-DD.",
        "datev-consultant": "DATEV's Beraternummer: your tax adviser knows it.",
        "datev-client": "DATEV's Mandantennummer: your tax adviser knows it.",
        "datev-final": "Festschreibung: what was read into DATEV can be changed there no more.",
    },
    RetentionConfig: {
        "erase-keys-after-disputes": "Destroy daily the keys to requests whose receipts nobody can dispute any more.",
    },
    BillingConfig: {
        "legal-name": "Your name in law, as it stands on invoices.",
        "street": "Street and house number.",
        "street-more": "A second line of the address, if it has one.",
        "city": "Town.",
        "post-code": "Postal code.",
        "country": 'Where you are established, ISO 3166-1 alpha-2: "LT".',
        "subdivision": "Province or county, where invoices need it (Italy).",
        "vat-id": 'With its country\'s letters: "LT100001738313".',
        "tax-number": "National tax number. A small business without a VAT id needs it.",
        "registration-number": "Your number in the commercial register.",
        "registration-scheme": 'The register, as a code of ISO 6523. Not needed; for example: "0191"',
        "electronic-address": "Where e-invoices reach you. Not set: your VAT id's address on the network that has it.",
        "electronic-scheme": 'What kind of address that is, a code of the EAS list: "EM" is e-mail.',
        "contact-name": "Whom to ask about an invoice. XRechnung needs all three.",
        "contact-phone": "The telephone number there.",
        "contact-email": "The e-mail address there.",
        "business": "You act as a business. Who sells always does.",
        "small-business": "You are exempt from VAT as a small business.",
        "iban": "The account that you are paid into, and that you pay from.",
        "bic": "Its bank. Not needed within SEPA.",
        "account-holder": "Its holder, if that is another name than legal-name.",
        "buyer-reference": "What you want to read on the invoices you get: an order's number, a Leitweg-ID.",
        "profile": 'What invoices you take: "en16931", "xrechnung" or "peppol".',
        "self-billing": "The client writes the invoices, if both sides have agreed on that and both say so here.",
        "invoice-prefix": "Your invoices are PREFIX-2027-000001. Each node of a company needs another one.",
        "payment-days": "Days from a statement to the day by which it is to be paid.",
    },
}
"""Every setting, in the words of the file. A test holds them against the sections' fields."""

_EXAMPLE_MODEL: Final = {
    "name": "smollm2-135m-instruct",
    "price-input-eur": "0.10",
    "price-output-eur": "0.40",
    "model-path": "smollm2",
}


_EXAMPLE_PERIOD: Final = {
    "days": ("mon-fri",),
    "from": "22:00",
    "until": "06:00",
    "price-input-eur": "0.05",
    "price-output-eur": "0.20",
}


def render_config(
    top: Mapping[str, Any] | None = None,
    provider: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
) -> str:
    """The file. Settings in `top`, `provider` and `model` (keys as in the file) are set; all others stay defaults.

    Without `model`, a model stands there as a comment.
    """
    lines = [
        "# Settings of a p2pgrid node. A flag beats the environment (P2PGRID_SERVE_LISTEN=...), that beats this file,",
        "# and this file beats the defaults, which are the values below: take the # away to change one.",
        "",
        *_settings(Config, top or {}),
        "# ---- An operator's node: p2pgrid serve",
        "[provider]",
        *_settings(ProviderConfig, provider or {}),
        "# What every channel with a client starts from.",
        "[provider.terms]",
        *_settings(TermsConfig, {}),
        "# One block for every model on sale.",
    ]
    if model is None:
        lines += ["#[[provider.models]]", *_settings(ModelConfig, {}, _EXAMPLE_MODEL)]
    else:
        lines += ["[[provider.models]]", *_settings(ModelConfig, model)]
    lines += [
        "# Other prices at certain hours: one block for each, below its model. The first that holds counts.",
        "#[[provider.models.schedule]]",
        *_settings(PeriodConfig, {}, _EXAMPLE_PERIOD),
        "# ---- A client's gateway: p2pgrid gateway",
        "[client]",
        *_settings(ClientConfig, {}),
        "# ---- An introducing peer: p2pgrid bootstrap",
        "[bootstrap]",
        *_settings(BootstrapConfig, {}),
        "# ---- What a node or an introducing peer relays for others, if it does",
        "[relay]",
        *_settings(RelayConfig, {}),
        "# ---- Who stands on invoices, and where money goes: `p2pgrid billing check` looks it over",
        "[billing]",
        *_settings(BillingConfig, {}),
        "# ---- Where sales and purchases are booked: `p2pgrid books`",
        "[billing.accounts]",
        *_settings(AccountsConfig, {}),
        "# ---- What the node destroys by itself",
        "[retention]",
        *_settings(RetentionConfig, {}),
        "# ---- Further networks, open or closed: a block for each. `p2pgrid network` makes and joins closed ones.",
        "#[[networks]]",
        *_settings(NetworkEntry, {}, {"name": "lab"}),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _settings(
    section: type[Section], chosen: Mapping[str, Any], examples: Mapping[str, Any] | None = None
) -> list[str]:
    lines = []
    for field in msgspec.structs.fields(section):
        key = field.encode_name
        if isinstance(field.default, msgspec.Struct) or key in ("models", "schedule", "networks"):
            continue  # a table of its own
        lines.append(f"# {EXPLAINED[section][key]}")
        if key in chosen:
            lines.append(f"{key} = {_toml(chosen[key])}")
        elif examples and key in examples:
            lines.append(f"#{key} = {_toml(examples[key])}")
        elif field.default not in (None, msgspec.NODEFAULT):
            lines.append(f"#{key} = {_toml(field.default)}")
        lines.append("")
    return lines


def _toml(value: str | int | float | tuple[str, ...]) -> str:
    """A value in TOML. JSON's strings, numbers and arrays of strings are TOML's too."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
