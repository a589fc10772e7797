"""Prompted encoders: one tower each, or both as a `PromptedCLIP`."""
