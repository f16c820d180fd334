"""Collections: ask candidates, grade their answers, write an outcome table."""
