"""Options of a training without photographs."""
