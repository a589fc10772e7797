"""The only room that touches open_clip's insides: finds towers, injects prompts, loads models."""
