"""Interactions, catalogue and split: what the logs say, what the items are, what a model may see of them.

`llmrec.data.dataset.read_data` is the way in; `llmrec.data.split.leave_one_out` is the evaluation protocol.
"""
