"""Statistics and weights to codes and scales: pure arrays, no file, no model."""
