"""Outcome tables, encoders, and what policies are shown of both."""
