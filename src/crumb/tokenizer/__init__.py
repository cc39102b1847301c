"""Text to tokens to text, and chat templates."""
