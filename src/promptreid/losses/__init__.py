"""What training minimises: pure functions, and modules that keep their settings."""
