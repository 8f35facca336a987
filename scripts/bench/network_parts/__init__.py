"""`scripts/bench/network`: finding and reaching a provider, beside js-libp2p."""
