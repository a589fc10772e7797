"""Search: a gallery of your own pictures, and pictures of what was found."""
