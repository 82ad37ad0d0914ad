"""Think data: true thoughts about train events, made offline (`llmrec.train.think.build`)."""
