"""Files beside a model's weights, and files that appear whole or not at all."""
