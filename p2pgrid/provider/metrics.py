"""What /metrics shows, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from p2pgrid.provider.health import log_health

if TYPE_CHECKING:
    from p2pgrid.provider.node import Provider

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def metrics_of(node: Provider) -> str:
    """What `/metrics` shows, in Prometheus' text format 0.0.4."""
    tally, models, network = node.tally, node.engines.models.values(), node.network_health
    families: list[tuple[str, str, str, list[tuple[str, int]]]] = [
        (
            "orders_settled_total",
            "counter",
            "Receipts that both have signed, by status.",
            [(_label("status", status), count) for status, count in sorted(tally.receipts.items())],
        ),
        (
            "refusals_total",
            "counter",
            "Requests refused, by code.",
            [(_label("code", code), count) for code, count in sorted(tally.refusals.items())],
        ),
        ("receipts_proposed_total", "counter", "Receipts that the provider signed.", [("", tally.proposals)]),
        ("disputes_total", "counter", "Receipts that a client refused.", [("", tally.disputes)]),
        ("client_faults_total", "counter", "Streams on which a client broke the rules.", [("", tally.faults)]),
        ("ledger_failures_total", "counter", "Records that did not become durable.", [("", tally.ledger_failures)]),
        ("engine_failures_total", "counter", "Orders that the engine failed.", [("", tally.engine_failures)]),
        (
            "tokens_total",
            "counter",
            "Tokens on receipts that both have signed.",
            [
                (_label("kind", "prompt"), tally.prompt_tokens),
                (_label("kind", "cached"), tally.cached_tokens),
                (_label("kind", "output"), tally.output_tokens),
            ],
        ),
        ("earned_pico_eur_total", "counter", "Sum of the receipts that both have signed.", [("", tally.earned_pico)]),
        ("log_entries", "gauge", "Leaves of the log that are signed.", [("", log_health(node)["entries"])]),
        ("log_waiting", "gauge", "Records that are not in the log yet.", [("", log_health(node)["waiting"])]),
        ("worker_restarts_total", "counter", "Workers that ended unasked.", [("", node.worker_restarts)]),
        (
            "libp2p_restarts_total",
            "counter",
            "Times that the libp2p host crashed, or hung, and was started anew.",
            [("", network.restarts)] if network is not None else [],
        ),
        ("open_orders", "gauge", "Orders accepted and not settled.", [("", node.open_orders)]),
        (
            "engine_up",
            "gauge",
            "1 while the model is offered.",
            [(_label("model", model.name), int(model.is_up)) for model in models],
        ),
        (
            "engine_running",
            "gauge",
            "Orders the engine works on.",
            [(_label("model", model.name), model.running_in_all) for model in models],
        ),
    ]
    lines = []
    for name, kind, text, samples in families:
        lines += [f"# HELP p2pgrid_{name} {text}", f"# TYPE p2pgrid_{name} {kind}"]
        lines += [f"p2pgrid_{name}{labels} {value}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{{name}="{escaped}"}}'
