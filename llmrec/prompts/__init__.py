"""The one renderer: typed segments become token ids with a loss mask, for training, evaluation and serving alike."""
