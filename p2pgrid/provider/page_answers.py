"""Answers of the pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from p2pgrid.http.message import JSON, Response


def answer_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON document."""
    return Response(status=status, body=json.dumps(content).encode(), content_type=JSON, headers=headers or {})


def failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Why there is nothing to show."""
    return answer_json({"error": message}, status, headers)
