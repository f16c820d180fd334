"""Samplers: what continues token ids with a language model, behind one interface."""
