"""Tokenizers side by side on one data set: what their SIDs look like, and how a small model does with them.

`compare.compare_tokenizers` is the way in. Importing this package imports no torch.
"""
