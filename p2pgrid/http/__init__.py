"""An HTTP/1.1 server on asyncio Protocols: requests, answers, streams of bytes. It does not know what they mean."""
