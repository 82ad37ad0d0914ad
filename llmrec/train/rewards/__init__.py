"""Rewards for reinforcement learning: one file each, TRL's signature, judged on items and not on strings."""
