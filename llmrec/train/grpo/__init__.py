"""GRPO on TRL's GRPOTrainer, with rollouts from the constrained search."""
