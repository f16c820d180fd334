"""Rollouts: plans of episodes, and the two drivers that run them."""
