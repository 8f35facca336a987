"""A seeded world for both session machines, both ledgers and what lies between them (docs/simulation.md)."""
