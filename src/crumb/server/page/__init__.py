"""The chat page at `/`: static files, markdown rendered on the server, the card of a model."""

from crumb.server.page.endpoints import is_file, routes

__all__ = ["is_file", "routes"]
