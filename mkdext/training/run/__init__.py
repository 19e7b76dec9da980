"""A training's folder, and what a user sees of it."""
