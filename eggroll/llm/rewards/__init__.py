"""Rewards: answers scored in processes that can be ended."""
