"""The kinds of prompts: each owns its tokens and the hooks that carry them."""
