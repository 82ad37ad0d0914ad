"""From item vectors to Semantic IDs: embeddings, quantiser, collisions, `SIDTable`, vocabulary, health report."""
