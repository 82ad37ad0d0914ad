"""Search over Semantic IDs: what it returns exists, is not excluded, and is the model's own ranking.

`trie.SIDTrie` holds the legal paths, `searcher.Searcher` searches them with a Hugging Face causal LM. This package
imports numpy only; the modules that run a model (`session`, `scores`, `searcher` …) import torch.
"""

from llmrec.decode.result import NORMALISATIONS, Normalise, SearchResult
from llmrec.decode.trie import SIDTrie
from llmrec.decode.trie_filter import Exclusion, RowFilter

__all__ = ["NORMALISATIONS", "Exclusion", "Normalise", "RowFilter", "SIDTrie", "SearchResult"]
