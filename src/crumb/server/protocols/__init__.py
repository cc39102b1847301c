"""One file for each protocol: its routes, its fields, its errors, and what it writes.

In: nothing. Out: PROTOCOLS, all tables. A new protocol is its file and a row here.
"""

from __future__ import annotations

from crumb.server.protocol import ProtocolTable
from crumb.server.protocols import (
    anthropic,
    health,
    ollama,
    ollama_models,
    openai,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_models,
    openai_responses,
    tokenizing,
)

PROTOCOLS = (
    ProtocolTable("operation", health.ROUTES, openai.problem, openai.late_problem),
    ProtocolTable(
        "openai",
        (
            *openai_models.ROUTES,
            *openai_chat.ROUTES,
            *openai_completions.ROUTES,
            *openai_embeddings.ROUTES,
            *openai_responses.ROUTES,
            *tokenizing.ROUTES,
        ),
        openai.problem,
        openai.late_problem,
    ),
    ProtocolTable(
        "anthropic",
        anthropic.ROUTES,
        anthropic.problem,
        anthropic.late_problem,
        "request-id",
    ),
    ProtocolTable(
        "ollama",
        (*ollama_models.ROUTES, *ollama.ROUTES),
        ollama.problem,
        ollama.late_problem,
    ),
)
"""Every protocol that the server speaks."""
