"""A page in the browser: search a gallery by a sentence or a picture, with and without prompts."""
