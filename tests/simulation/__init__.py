"""A client, a provider, their ledgers and a network, driven through seeded histories: `python -m tests.simulation`."""
