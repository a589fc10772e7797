"""What trains when, and the loop that does it and goes on after a kill."""
