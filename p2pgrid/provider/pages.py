"""The operator's pages over HTTP: /offer, /card, /health, /metrics for people, /log/ for everybody's checks.

Nothing here takes orders. /.well-known/p2pgrid.json is there for the operator's web server to pass on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import web

from p2pgrid.errors import LedgerError, LocalError, Refused
from p2pgrid.log.service import MAX_PATH_CHARS, NOT_KEPT, status_of
from p2pgrid.proto import well_known
from p2pgrid.proto.witness import MAX_ADD_CHECKPOINT_BYTES
from p2pgrid.provider.clock import unix_ms
from p2pgrid.provider.node import Provider

BODY_TIMEOUT_S: Final = 10.0
_UNCACHED: Final = {"Cache-Control": NOT_KEPT}
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@asynccontextmanager
async def serve_pages(node: Provider, host: str, port: int) -> AsyncIterator[str]:
    """Serve the pages of a running node (port 0: any free one); gives their base URL. Raises LocalError."""
    app = web.Application(client_max_size=MAX_ADD_CHECKPOINT_BYTES)
    pages = {"/offer": _offer, "/card": _card, well_known.PATH: _well_known, "/health": _health, "/metrics": _metrics}
    for path, page in pages.items():
        app.router.add_get(path, _handler(node, page))
    app.router.add_get("/log/{path:.+}", _log_handler(node))
    # A witness's submission prefix is the root, as its log's is /log.
    app.router.add_post("/add-checkpoint", _witness_handler(node))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise LocalError(
                f"the pages cannot listen on {host}:{port}: {error.strerror or error}.",
                hint="Choose another address with --pages, or leave it out.",
            ) from None
        bound = runner.addresses[0]
        yield f"http://{f'[{bound[0]}]' if ':' in bound[0] else bound[0]}:{bound[1]}"
    finally:
        await asyncio.shield(runner.cleanup())


def health_of(node: Provider) -> dict[str, Any]:
    """What `/health` shows. `status` is `ok`, `degraded` (something is down) or `draining`."""
    models = {
        name: {
            "is_up": model.is_up,
            "running": model.running_in_all,
            "concurrency": model.concurrency,
            "detail": node.engines.health[name].detail if name in node.engines.health else "",
        }
        for name, model in node.engines.models.items()
    }
    network = node.network_health
    well = (
        all(model.is_up for model in node.engines.models.values())
        and not node.is_broken
        and node.offer is not None
        and not node.log.log.frozen
        and (network is None or (network.running and not network.stalled_s))
    )
    offer = node.offer
    return {
        "status": "draining" if node.is_draining else "ok" if well else "degraded",
        "peer_id": node.peer_id,
        "models": models,
        "ledger_writable": not node.is_broken,
        "offer_sequence": offer.message.sequence if offer else None,
        "offer_valid_until_ms": offer.message.valid_until_ms if offer else None,
        "channels": len(node.channels),
        "open_orders": node.open_orders,
        "links": node.links_by_road,
        "workers": {"running": len(node.worker_pids), "restarts": node.worker_restarts},
        "log": _log_health(node),
        "network": None
        if network is None
        else {
            "running": network.running,
            "connected_peers": network.connected_peers,
            "routing_table_size": network.routing_table_size,
            "advertised_keys": network.advertised_keys,
            "restarts": network.restarts,
            "stalled_s": network.stalled_s,
        },
    }


def metrics_of(node: Provider) -> str:
    """What `/metrics` shows, in Prometheus' text format 0.0.4."""
    tally, models = node.tally, node.engines.models.values()
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
        ("log_entries", "gauge", "Leaves of the log that are signed.", [("", _log_health(node)["entries"])]),
        ("log_waiting", "gauge", "Records that are not in the log yet.", [("", _log_health(node)["waiting"])]),
        ("worker_restarts_total", "counter", "Workers that ended unasked.", [("", node.worker_restarts)]),
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


def _offer(node: Provider) -> web.Response:
    offer = node.offer
    if offer is None:
        return web.json_response({"error": "nothing is offered now"}, status=404)
    return web.Response(body=offer.record.to_json_line(), content_type="application/json")


def _card(node: Provider) -> web.Response:
    lines = [card.record.to_json_line() for card in node.cards.chain()]
    if not lines:
        return web.json_response({"error": "there is no card"}, status=404)
    return web.Response(body=b"\n".join(lines) + b"\n", content_type="application/jsonl")


def _well_known(node: Provider) -> web.Response:
    chain = node.cards.chain()
    if not chain:
        return web.json_response({"error": "there is no card"}, status=404)
    return web.json_response(well_known.well_known_of(chain, unix_ms()))


def _health(node: Provider) -> web.Response:
    health = health_of(node)
    return web.json_response(health, status=200 if health["status"] == "ok" else 503)


def _metrics(node: Provider) -> web.Response:
    return web.Response(body=metrics_of(node).encode(), headers={"Content-Type": METRICS_TYPE})


def _log_health(node: Provider) -> dict[str, Any]:
    own = node.log.log
    checkpoint = own.checkpoint
    return {
        "entries": checkpoint.size if checkpoint is not None else 0,
        "root": checkpoint.root.hex() if checkpoint is not None else None,
        "cosignatures": len(checkpoint.note.signatures) - 1 if checkpoint is not None else 0,
        "waiting": own.waiting,
        "frozen": own.frozen,
    }


def _log_handler(node: Provider) -> Any:
    async def handle(request: web.Request) -> web.Response:
        path = request.match_info["path"]
        try:
            resource = await node.log.get(path[: MAX_PATH_CHARS + 1])
        except Refused as refusal:
            return web.Response(text=f"{refusal.message}\n", status=status_of(refusal), headers=_UNCACHED)
        except LedgerError:
            return web.Response(text="the log cannot be read now\n", status=503, headers=_UNCACHED)
        headers = {"Content-Type": resource.content_type, "Cache-Control": resource.cache_control}
        return web.Response(body=resource.body, headers=headers)

    return handle


def _witness_handler(node: Provider) -> Any:
    async def handle(request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                body = await request.read()
            answer = await node.log.add_checkpoint(body)
        except TimeoutError:
            return web.Response(text="the request did not come in time\n", status=408)
        except Refused as refusal:
            return web.Response(text=f"{refusal.message}\n", status=status_of(refusal))
        except LedgerError:
            return web.Response(text="nothing can be put on record now\n", status=503)
        headers = {"Content-Type": answer.content_type, **_UNCACHED}
        return web.Response(body=answer.body, status=answer.status, headers=headers)

    return handle


def _handler(node: Provider, page: Any) -> Any:
    async def handle(_: web.Request) -> web.Response:
        response: web.Response = page(node)
        return response

    return handle
