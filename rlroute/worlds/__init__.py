"""Task worlds: what happens when an executor takes the next step of an agent's task."""
