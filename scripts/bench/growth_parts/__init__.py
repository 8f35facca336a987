"""Whether a node that has grown, or has run for long, costs more (docs/performance.md, Growth)."""
