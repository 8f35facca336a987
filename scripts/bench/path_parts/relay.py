"""A plain relay on aiohttp: a request in, the same request to the engine, its bytes out. Prints {"port": N}."""

from __future__ import annotations

import asyncio
import json
import sys

import aiohttp
import uvloop
from aiohttp import web


async def main(engine_port: int) -> None:
    """Serve until killed."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

        async def relay(request: web.Request) -> web.StreamResponse:
            url = f"http://127.0.0.1:{engine_port}{request.path}"
            headers = {"Content-Type": request.content_type}
            async with session.post(url, data=await request.read(), headers=headers) as answer:
                kind = {"Content-Type": answer.headers.get("Content-Type", "")}
                if answer.content_length is not None:
                    return web.Response(body=await answer.read(), status=answer.status, headers=kind)
                response = web.StreamResponse(status=answer.status, headers=kind)
                await response.prepare(request)
                async for data in answer.content.iter_any():
                    await response.write(data)
                await response.write_eof()
                return response

        app = web.Application()
        app.router.add_post("/{path:.*}", relay)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
