"""What the machine gives: memory, devices, files, terminals, compiled libraries."""
