"""What `scripts/bench/dht` is made of: real hosts, and a simulated network over the same rules (docs/dht.md)."""
