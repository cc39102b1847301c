"""The server: HTTP protocols in front of the scheduler, each a table of its own."""
