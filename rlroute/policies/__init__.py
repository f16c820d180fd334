"""Policies that choose a candidate: trained ones and baselines."""
