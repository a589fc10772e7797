"""Stages, recipes, and the trainer that runs them and resumes after a kill."""
