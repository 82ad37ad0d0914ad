"""Benchmarks against peers: cases and peers in code, targets in `targets.yaml`, one runner.

A benchmark is a module here with ``cases(quick: bool) -> list[Case]`` and one line in `BENCHES`; its targets are
reviewed in `targets.yaml`, where every case must have one.
"""

BENCHES: dict[str, str] = {
    "decode": "llmrec.bench.decode",
    "head": "llmrec.bench.head",
    "rl": "llmrec.bench.rl",
    "serve": "llmrec.bench.serve",
    "sid": "llmrec.bench.sid",
    "start": "llmrec.bench.start",
    "trie": "llmrec.bench.trie",
}
