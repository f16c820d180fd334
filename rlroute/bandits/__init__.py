"""Online learners on a stream of queries: bandits, the stream, its events, and regret."""
