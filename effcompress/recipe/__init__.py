"""Recipes: YAML in, frozen dataclasses with bound plugins out. Dicts stop here."""
