"""Search: a gallery of your own images, the index below it, and its files."""
