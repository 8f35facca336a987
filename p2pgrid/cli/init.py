"""`p2pgrid init`: an operator's set-up."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from p2pgrid.cli.config_template import render_config
from p2pgrid.cli.context import CliContext
from p2pgrid.config import Config
from p2pgrid.data_folder import DataFolder, create_key
from p2pgrid.errors import LocalError, UsageError


@click.command()
@click.option("--operator", metavar="NAME", help="Your legal name, as it stands in offers.")
@click.option("--country", metavar="CC", help="Where the GPUs stand, ISO 3166-1 alpha-2.")
@click.option("--network", metavar="NAME", help="The network to join.")
@click.option("--model", metavar="NAME", help="A model to sell; needs prices, and a path or a URL.")
@click.option("--model-path", metavar="PATH", help="What vLLM loads: a folder, or smollm2 or tiny once installed.")
@click.option("--engine-url", metavar="URL", help="An engine that runs already: http://host:port or unix:/path.")
@click.option("--price-input", metavar="EUR", help="EUR per million prompt tokens, like 0.20.")
@click.option("--price-cached-input", metavar="EUR", help="EUR per million cached prompt tokens.")
@click.option("--price-output", metavar="EUR", help="EUR per million output tokens.")
@click.option("--print-config", is_flag=True, help="Print the config.toml, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
def init(
    context: CliContext,
    operator: str | None,
    country: str | None,
    network: str | None,
    model: str | None,
    model_path: str | None,
    engine_url: str | None,
    price_input: str | None,
    price_cached_input: str | None,
    price_output: str | None,
    print_config: bool,
    as_json: bool,
) -> None:
    """Set up an operator's node: a key, a commented config.toml.

    A key or a config.toml that is there already stays as it is.
    """
    chosen_model = _given(
        {
            "name": model,
            "price-input-eur": price_input,
            "price-output-eur": price_output,
            "price-cached-input-eur": price_cached_input,
            "engine-url": engine_url,
            "model-path": model_path,
        }
    )
    provider = _given({"operator": operator, "country": country})
    top = _given({"network": network})
    _check_model(chosen_model)
    text = render_config(top, provider, chosen_model or None)
    config = _checked(text)
    if print_config:
        click.echo(text, nl=False)
        return
    data = context.data
    data.make()
    made_key, made_config = _make_key(data), _write_config(data, text)
    if not made_config:
        config = data.load_config()
    ignored = not made_config and bool(chosen_model or provider or top)
    _report(data, config, made_key, made_config, ignored, as_json)


def _given(values: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in values.items() if value is not None}


def _check_model(model: dict[str, str]) -> None:
    if not model:
        return
    for key, flag in (
        ("name", "--model"),
        ("price-input-eur", "--price-input"),
        ("price-output-eur", "--price-output"),
    ):
        if key not in model:
            raise UsageError(f"{flag} is missing.", hint="A model needs --model, --price-input and --price-output.")
    if ("engine-url" in model) == ("model-path" in model):
        raise UsageError("a model has either a path or an engine's URL.", hint="Give --model-path or --engine-url.")


def _checked(text: str) -> Config:
    """Refuse what `serve` would refuse later: a country that is no code, a price that is no price."""
    from p2pgrid.config import parse_config
    from p2pgrid.provider.offers import tariff_of
    from p2pgrid.provider.schedule import schedule_of, time_zone

    config = parse_config(text, "the configuration")
    for model in config.provider.models:
        tariff_of(model)
        schedule_of(model)
    time_zone(config.provider.time_zone)
    return config


def _make_key(data: DataFolder) -> bool:
    if data.key_file.exists():
        return False
    create_key(data.key_file)
    return True


def _write_config(data: DataFolder, text: str) -> bool:
    """Write config.toml, whole or not at all; False if there is one."""
    if data.config_file.exists():
        return False
    draft = data.config_file.with_suffix(".toml.new")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(data.config_file)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise LocalError(
            f"{data.config_file} cannot be written: {error.strerror}.", hint="Mend that, then run `p2pgrid init` again."
        ) from None
    return True


def _report(data: DataFolder, config: Config, made_key: bool, made_config: bool, ignored: bool, as_json: bool) -> None:
    peer_id = data.load_key().public_key.peer_id
    steps = _next_steps(data, config)
    if as_json:
        shown: dict[str, Any] = {
            "data": str(data.path),
            "peer_id": peer_id,
            "key": str(data.key_file),
            "key_created": made_key,
            "config": str(data.config_file),
            "config_created": made_config,
            "models": [model.name for model in config.provider.models],
            "next": steps,
        }
        click.echo(json.dumps(shown))
        return
    click.echo(f"Peer id  {peer_id}")
    click.echo(f"Key      {data.key_file} ({'new, mode 0600: back it up' if made_key else 'was there, kept'})")
    click.echo(f"Config   {data.config_file} ({'new' if made_config else 'was there, kept'})")
    if ignored:
        click.echo("         The flags given were not written to it: edit it, or give them to `p2pgrid serve`.")
    click.echo("Next")
    for step in steps:
        click.echo(f"  - {step}")


def _next_steps(data: DataFolder, config: Config) -> list[str]:
    provider = config.provider
    steps = []
    if not provider.operator or not provider.models:
        missing = [
            *([] if provider.operator else ["operator"]),
            *([] if provider.models else ["a model and its prices"]),
        ]
        steps.append(f"Edit {data.config_file}: {', '.join(missing)}.")
    if any(model.engine_url is None for model in provider.models) or not provider.models:
        steps.append("Install an engine: p2pgrid engine install")
    steps.append(f"Sell: p2pgrid --data {data.path} serve")
    return steps
