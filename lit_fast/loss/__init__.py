"""The losses: modules, functions, and the implementations behind them."""
