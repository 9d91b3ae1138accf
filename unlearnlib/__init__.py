"""Helpers behind the notebooks: a small typed module for each idea."""
