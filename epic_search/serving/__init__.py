"""Indexes over HTTP: search, embeddings and demonstrations for other people's clients, and the same as MCP tools."""
