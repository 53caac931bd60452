"""Retrieval: documents in pieces, kept in LanceDB, found by meaning and by words, put before a question."""
