"""The chart of accounts and the rules of an operator: from config.toml, or from a file of its own."""

from __future__ import annotations

import functools
import tomllib
from datetime import date
from pathlib import Path
from typing import Final

import msgspec

from p2pgrid.config import AccountsConfig
from p2pgrid.errors import UsageError
from p2pgrid.proto.record import Role
from p2pgrid.settlement.books.accounts import Chart, chart_of, with_own
from p2pgrid.settlement.books.booking import ReverseChargeRate, Rules, rate_unknown
from p2pgrid.settlement.books.parties import Parties
from p2pgrid.settlement.invoices.refused import InvoiceRefused
from p2pgrid.settlement.invoices.vat_rates import standard_rate

MAX_MAPPING_BYTES: Final = 1024 * 1024


def chart_from(config: AccountsConfig, *, chart: str | None = None, mapping: Path | None = None) -> Chart:
    """The chart that `[billing.accounts]` says, or `mapping`, a TOML file with the same settings; `chart` goes over
    either's. Raises UsageError."""
    if mapping is not None:
        config = read_mapping(mapping)
    month, day = config.fiscal_year_begins.split("-")
    return with_own(
        chart_of(chart or config.chart),
        numbers=config.numbers,
        tax_keys=config.tax_keys,
        tax_rates=config.tax_rates,
        account_length=config.account_length,
        input_vat_deducted=config.deduct_input_vat,
        reverse_charge_rate_bp=config.reverse_charge_rate_bp,
        fiscal_year_begins=(int(month), int(day)),
        consultant=config.datev_consultant,
        client=config.datev_client,
        is_final=config.datev_final,
    )


def read_mapping(path: Path) -> AccountsConfig:
    """A file of `[billing.accounts]`' settings, without that heading. Raises UsageError."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MAPPING_BYTES + 1)
        if len(text) > MAX_MAPPING_BYTES:
            raise UsageError(f"{path} is larger than any mapping of accounts.")
        return msgspec.convert(tomllib.loads(text.decode()), AccountsConfig)
    except OSError as error:
        raise UsageError(f"the mapping {path} cannot be read: {error.strerror}.", hint="Check its name.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UsageError(
            f"the mapping {path} is wrong: {error}",
            hint='It holds what may stand under [billing.accounts]: chart = "skr04", a table [numbers]...',
        ) from None


def rules_of(chart: Chart, country: str, parties: Parties) -> Rules:
    """How purchases are booked for a business in this country (ISO 3166; empty: not known)."""

    @functools.cache
    def country_of(provider: bytes) -> str:
        details = parties.of(provider, Role.PROVIDER)
        return details.country if details is not None else ""

    return Rules(
        input_vat_deducted=chart.input_vat_deducted,
        reverse_charge_rate=_fixed(chart.reverse_charge_rate_bp)
        if chart.reverse_charge_rate_bp is not None
        else _rate_in(country),
        country=country,
        country_of=country_of,
    )


def _fixed(rate_bp: int) -> ReverseChargeRate:
    return lambda day: rate_bp


def _rate_in(country: str) -> ReverseChargeRate:
    def rate(day: date) -> int:
        try:
            return standard_rate(country, day).rate_bp
        except InvoiceRefused:
            return rate_unknown(day)

    return rate if country else rate_unknown
