"""One file for each protocol: its routes, its fields, its errors, and what it writes.

In: nothing. Out: PROTOCOLS, all tables. A new protocol is its file and a row here.
"""

from __future__ import annotations

from crumb.server.protocol import ProtocolTable
from crumb.server.protocols import health, openai, openai_chat, openai_models

PROTOCOLS = (
    ProtocolTable("operation", health.ROUTES, openai.problem, openai.late_problem),
    ProtocolTable(
        "openai",
        (*openai_models.ROUTES, *openai_chat.ROUTES),
        openai.problem,
        openai.late_problem,
    ),
)
"""Every protocol that the server speaks."""
