"""Evaluation: leave-one-out over the full catalogue, models beside baselines, one table and one report.

`evaluate.evaluate` is the way in; a `ranker.Ranker` is anything that can be judged. Importing this package imports
neither torch nor matplotlib.
"""
