"""Preference data: which item a user's history should prefer to which others, and where every pair comes from."""
