"""Files of weights: reading, recognising, writing, metadata."""
