"""The command: exit codes, what people and programs read, and files that are no bundles."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "proto"))
