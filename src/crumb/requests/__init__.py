"""What a user asks for: one record per verb."""
