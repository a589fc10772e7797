"""The losses of training: pure functions, and modules that keep their settings."""
