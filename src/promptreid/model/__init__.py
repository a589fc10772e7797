"""The prompted model: it encodes, saves, loads and publishes."""
