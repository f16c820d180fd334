"""Memory pipelines: from a long history and a question to a short memory and an answer."""
