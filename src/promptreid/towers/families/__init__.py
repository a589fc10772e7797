"""How each family of towers is recognised, described and resized."""
