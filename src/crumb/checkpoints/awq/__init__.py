"""AutoAWQ directories."""
