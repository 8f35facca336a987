"""The top-level command. Subcommands are imported only when they are called, so that `--help` is quick."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Final

import click

from p2pgrid import __version__
from p2pgrid.cli.context import CliContext
from p2pgrid.data_folder import DataFolder
from p2pgrid.errors import P2pgridError

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "init": ("p2pgrid.cli.init:init", "Set up an operator's node: a key, a commented config.toml."),
    "engine": ("p2pgrid.cli.engine:engine", "Install vLLM in an environment of its own, and see what is there."),
    "serve": ("p2pgrid.cli.serve:serve", "Sell: run the provider's node."),
    "gateway": ("p2pgrid.cli.gateway:gateway", "Buy: run the client's OpenAI endpoint."),
    "bootstrap": ("p2pgrid.cli.bootstrap:bootstrap", "Introduce: run a peer that others join through."),
    "doctor": ("p2pgrid.cli.doctor:doctor", "Look for faults in this node, and say what mends them."),
    "offers": ("p2pgrid.cli.offers:offers", "Show what is on sale."),
    "network": (
        "p2pgrid.cli.network_commands:network",
        "Make, join and leave closed networks.",
    ),
    "card": ("p2pgrid.cli.card:card", "Say who stands behind your nodes' keys, and check others."),
    "receipts": (
        "p2pgrid.cli.receipts:receipts",
        "List, export and dispute receipts, and agree on them.",
    ),
    "pay": ("p2pgrid.cli.pay:pay", "Write the bank's file that pays all invoices which are due."),
    "bank": ("p2pgrid.cli.bank_commands:bank", "Book what the bank's files say: payments, returns, refunds."),
    "books": ("p2pgrid.cli.books:books", "Book what was sold and bought: exports, a yearly archive, retention."),
    "set-off": ("p2pgrid.cli.set_off:set_off", "Set off what you and another operator owe one another."),
    "billing": ("p2pgrid.cli.billing:billing", "Say who you are on invoices, and check what peers say of themselves."),
    "invoices": ("p2pgrid.cli.invoices:invoices", "List, issue, cancel and read invoices."),
    "settle": ("p2pgrid.cli.settle_command:settle", "Make statements with the other side, and sign them."),
    "credit": ("p2pgrid.cli.credit_commands:credit", "See who is lent what, and act on clients that do not pay."),
    "log": ("p2pgrid.cli.log:log", "Prove records in transparency logs, and check the logs of others."),
    "audit": ("p2pgrid.cli.audit:audit", "Verify exported receipts, and say who is at fault."),
    "trace": ("p2pgrid.cli.trace:trace", "Follow money from a transfer to its receipts, and back."),
    "demo": ("p2pgrid.cli.demo:demo", "Run a whole grid on this machine, and audit it."),
}
"""Subcommands: where each is, and its line in `--help`. A test holds the lines and the commands' own help together."""

SECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "Set up": ("init", "engine", "network", "card", "doctor", "demo"),
    "Sell and buy": ("serve", "gateway", "bootstrap", "offers", "receipts", "credit"),
    "Settle": ("billing", "settle", "invoices", "pay", "bank", "set-off", "books"),
    "Prove and audit": ("log", "audit", "trace"),
}
"""The commands as `--help` and the README group them: each in one, in the order in which they are used."""


class LazyGroup(click.Group):
    """A group whose subcommands are imported when they are looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for names in SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), COMMANDS[name][1]) for name in names])


@click.group(cls=LazyGroup, context_settings={"auto_envvar_prefix": "P2PGRID", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="p2pgrid")
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="P2PGRID_DATA",
    help="Data folder: key, config.toml, ledger, logs. [default: the platform's user data folder]",
)
@click.pass_context
def cli(ctx: click.Context, data: Path | None) -> None:
    """Sell and buy inference between peers, with receipts that both sides sign.

    Settings: a flag beats the environment (P2PGRID_<COMMAND>_<OPTION>), the environment beats config.toml in the data
    folder, and that beats the default.

    Exit codes: 0 done; 1 findings or failure; 2 wrong usage or unusable input; 3 this machine (disk, port, engine);
    4 the other side.
    """
    ctx.obj = CliContext(data=DataFolder(data.expanduser().absolute()) if data else DataFolder.default())


def main() -> None:
    """Entry point: errors become one line and an exit code; a traceback is for bugs alone."""
    try:
        code = cli.main(standalone_mode=False)  # what a command gave to ctx.exit; click returns it, raises nothing
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is wrong, and nobody is left to tell.
        sys.stderr.close()
        sys.exit(141)
    except P2pgridError as error:
        show_error(error)
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def show_error(error: P2pgridError) -> None:
    """One error on standard error: text for people, or one JSON object where `--json` was asked for."""
    if "--json" in sys.argv:
        shown = {"error": {"type": type(error).__name__, "message": error.message, "hint": error.hint}}
        print(json.dumps(shown), file=sys.stderr)
        return
    click.echo(f"{click.style('error:', fg='red', bold=True)} {_harmless(error.message)}", err=True)
    if error.hint:
        click.echo(f"       {_harmless(error.hint)}", err=True)


def _harmless(text: str) -> str:
    """Fit for a terminal: an error may quote what a peer chose."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


if __name__ == "__main__":
    main()
