"""Exported routers: the folder, its model card, and what it says of its training."""
