"""Data sets: annotation files, records, pictures, transforms and samplers."""
