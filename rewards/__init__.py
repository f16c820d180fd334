"""Reward terms and their stack, imported as `rlroute.rewards`."""

if __name__ != "rlroute.rewards":
    raise ImportError("import rlroute.rewards, not rewards: two copies of its classes would exist")
