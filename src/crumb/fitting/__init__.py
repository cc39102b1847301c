"""What work will cost before it starts: memory, time and bytes."""
