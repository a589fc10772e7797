"""A page in the browser: search a gallery by a sentence or an image, with and without prompts."""
