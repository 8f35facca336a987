"""The benchmark of the whole data path beside its peers (`scripts/bench/path`, docs/performance.md)."""
