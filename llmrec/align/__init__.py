"""``llmrec align``: a finished checkpoint learns on from preferences or rewards, or as the control from more SFT."""
