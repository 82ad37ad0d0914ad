"""Training stages: one file a stage (`cpt`, `sft`), one trainer, one loss."""
