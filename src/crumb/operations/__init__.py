"""What a model computes: one file and one row per kind of operation."""
