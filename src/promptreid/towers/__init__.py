"""Everything that knows open_clip's, timm's and transformers' insides."""
