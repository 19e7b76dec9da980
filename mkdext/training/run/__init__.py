"""The folder of a run: what is kept in it, and how a training goes on from it."""
