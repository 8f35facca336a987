"""The seller: offers, channels, orders, the engine behind them, and the node that holds them together."""
