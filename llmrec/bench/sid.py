"""Benchmark ``sid``: RQ-KMeans at a million items beside ``faiss.ResidualQuantizer``.

Vectors of 384 numbers in 2,000 clusters of uneven size, with a spectrum that falls as that of text embeddings does;
3 x 256 codes. Both sides are fitted to the same sample of 256 vectors per code with the same iterations and
``max_beam_size=1``, and encode the same vectors. The peer is faiss as it is installed. The matrix library in its
wheels may not know a newer CPU and then runs an old one's code; ``OPENBLAS_CORETYPE=SkylakeX`` (or ``Haswell``) in the
environment gives it the right one, three to four times faster: `docs/decisions/0011-encoding-a-million-items.md` has
both. For the beam the peer is faiss's faster mode, ``use_beam_LUT`` (a
quarter of the time of its default; for one beam both take the same). Times are wall time with the threads that the
environment allows (``OMP_NUM_THREADS``).

Peak memory is that of a process which fits and encodes all vectors, less what it had before it made them; beyond 3.5
times the input it is stopped, and that bound is reported.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from llmrec.bench.runner import Case
from llmrec.sid_vocab.beam_encode import encode_beam
from llmrec.sid_vocab.rq_kmeans import ResidualCodebooks, RQKMeans, RQKMeansConfig

DIM = 384
NUM_LEVELS = 3
CODEBOOK_SIZE = 256
SAMPLE = 256 * CODEBOOK_SIZE
"""Vectors that k-means sees: faiss's default of 256 per code."""
NUM_BEAMS = 5
SMALL = 10_000
_CLUSTERS = 2000
_ROWS = 50_000  # vectors made or compared at a time: 77 MB
_MOST_MEMORY = 3.5  # times the input: beyond it the memory case has failed anyway
_FAISS_BLOCK = 1 << 28  # bytes of faiss's distance blocks; its default of 5 GB does not fit beside a million vectors


def cases(quick: bool) -> list[Case]:
    """A million vectors, or 100,000 with `quick`, which also takes 3 iterations for 25 and a quarter of the sample."""
    bench = SIDBench(100_000, 3, SAMPLE // 4) if quick else SIDBench(1_000_000, 25)
    small = "--quick leaves it out: beside 100,000 vectors the sample and the libraries weigh too much" if quick else ""
    return [  # what is counted and not timed is measured once: a round to warm up would give the same
        Case("fit", "s", lambda: bench.fit_ours()[1], lambda: bench.fit_theirs()[1], warm_up=False),  # half a minute
        Case("error", "mean square", cache(bench.error_ours), cache(bench.error_theirs)),
        Case("encode", "us an item", bench.encode_ours, lambda: bench.encode_theirs(1)),
        Case("encode, beam 5", "us an item", bench.beam_ours, lambda: bench.encode_theirs(NUM_BEAMS), warm_up=False),
        Case("error, beam 5", "mean square", cache(bench.beam_error_ours), cache(bench.beam_error_theirs)),
        Case("linear, encode", "us an item", bench.encode_ours, bench.encode_small),
        Case("linear, fit and encode", "us an item", bench.whole, bench.whole_small, warm_up=False),
        Case("peak memory", "MB", cache(bench.peak_megabytes), bench.input_megabytes, small),
    ]


class SIDBench:
    """The two sides on `num_items` vectors; vectors and codebooks are made when first needed, and kept."""

    def __init__(self, num_items: int, iterations: int, sample: int = SAMPLE) -> None:
        self.num_items, self.iterations, self.sample = num_items, iterations, sample
        self._fitted: dict[str, Any] = {}

    @property
    def vectors(self) -> np.ndarray:
        """(num_items, DIM) float32."""
        return item_vectors(self.num_items)

    def fit_ours(self) -> tuple[ResidualCodebooks, float]:
        """Our codebooks, and the seconds they took."""
        sample = sample_of(self.vectors, self.sample)
        start = time.perf_counter()
        made = self._quantizer().fit(sample)
        seconds = time.perf_counter() - start
        self._fitted["ours"] = made
        return made, seconds

    def fit_theirs(self) -> tuple[Any, float]:
        """faiss's quantiser, and the seconds it took."""
        made = residual_quantizer(self.iterations)
        sample = sample_of(self.vectors, self.sample)
        start = time.perf_counter()
        made.train(sample)
        seconds = time.perf_counter() - start
        self._fitted["theirs"] = made
        return made, seconds

    def ours(self) -> ResidualCodebooks:
        """Our codebooks."""
        made: ResidualCodebooks = self._fitted.get("ours") or self.fit_ours()[0]
        return made

    def theirs(self) -> Any:
        """faiss's quantiser."""
        return self._fitted.get("theirs") or self.fit_theirs()[0]

    def their_codebooks(self) -> ResidualCodebooks:
        """faiss's centroids as ours are kept."""
        import faiss

        books = faiss.vector_to_array(self.theirs().codebooks).reshape(NUM_LEVELS, CODEBOOK_SIZE, DIM)
        return ResidualCodebooks(tuple(books))

    def encode_ours(self) -> float:
        """Microseconds an item of our greedy encoding."""
        return _microseconds(self.ours().encode, self.vectors)

    def encode_small(self) -> float:
        """The same for the first 10,000 vectors, ten times over."""
        few = self.vectors[:SMALL]
        return float(np.mean([_microseconds(self.ours().encode, few) for _ in range(10)]))

    def encode_theirs(self, num_beams: int) -> float:
        """Microseconds an item of faiss's encoding."""
        return _microseconds(self._faiss_encoder(num_beams), self.vectors)

    def beam_ours(self) -> float:
        """Microseconds an item of our beam."""
        books = self.ours().codebooks
        return _microseconds(lambda vectors: encode_beam(vectors, books, NUM_BEAMS), self.vectors)

    def error_ours(self) -> float:
        """Mean square of what our greedy codes leave."""
        made = self.ours()
        return mean_square(self.vectors, lambda vectors: made.reconstruct(made.encode(vectors)))

    def beam_error_ours(self) -> float:
        """Mean square of what the codes of our beam leave."""
        made = self.ours()
        return mean_square(
            self.vectors, lambda vectors: made.reconstruct(encode_beam(vectors, made.codebooks, NUM_BEAMS))
        )

    def error_theirs(self, num_beams: int = 1) -> float:
        """Mean square of what faiss's codes leave."""
        made, encode = self.theirs(), self._faiss_encoder(num_beams)
        return mean_square(self.vectors, lambda vectors: made.decode(encode(vectors)))

    def beam_error_theirs(self) -> float:
        """The same for faiss's beam."""
        return self.error_theirs(NUM_BEAMS)

    def whole(self) -> float:
        """Microseconds an item to fit and encode all vectors."""
        return self._whole(self.vectors)

    def whole_small(self) -> float:
        """Microseconds an item to fit and encode the first 10,000."""
        return self._whole(self.vectors[:SMALL])

    def peak_megabytes(self) -> float:
        """Peak memory of fitting and encoding all vectors, the vectors included."""
        code = f"from llmrec.bench.sid import peak_bytes; print(peak_bytes({self.num_items}, {self.iterations}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode != 0:  # out of memory, as an exception or a crash inside a library
            return _MOST_MEMORY * self.input_megabytes()
        return float(done.stdout) / 1e6

    def input_megabytes(self) -> float:
        """Size of all vectors."""
        return self.num_items * DIM * 4 / 1e6

    def _quantizer(self) -> RQKMeans:
        return RQKMeans(RQKMeansConfig(num_levels=NUM_LEVELS, codebook_size=CODEBOOK_SIZE, iterations=self.iterations))

    def _faiss_encoder(self, num_beams: int) -> Callable[[np.ndarray], np.ndarray]:
        made = self.theirs()
        made.max_beam_size = num_beams
        made.use_beam_LUT = int(num_beams > 1)
        if num_beams > 1:
            made.compute_codebook_tables()

        def encode(vectors: np.ndarray) -> np.ndarray:
            codes: np.ndarray = made.compute_codes(vectors)
            return codes

        return encode

    def _whole(self, vectors: np.ndarray) -> float:
        start = time.perf_counter()
        self._quantizer().fit(vectors).encode(vectors)
        return 1e6 * (time.perf_counter() - start) / len(vectors)


def residual_quantizer(iterations: int) -> Any:
    """``faiss.ResidualQuantizer`` as the benchmark trains it."""
    import faiss

    made = faiss.ResidualQuantizer(DIM, NUM_LEVELS, int(np.log2(CODEBOOK_SIZE)))
    made.train_type = faiss.ResidualQuantizer.Train_default  # plain k-means a level, as ours
    made.max_beam_size = 1
    made.cp.niter = iterations
    made.cp.max_points_per_centroid = SAMPLE // CODEBOOK_SIZE
    made.max_mem_distances = _FAISS_BLOCK
    return made


@cache
def item_vectors(num_items: int) -> np.ndarray:
    """(num_items, DIM) float32 unit vectors, the same ones at every call."""
    rng = np.random.default_rng(0)
    scale = (1 / np.sqrt(1 + np.arange(DIM) / 8)).astype(np.float32)  # half of the variance in a tenth of the columns
    centres = rng.standard_normal((_CLUSTERS, DIM), dtype=np.float32) * scale
    shares = 1 / np.arange(1, _CLUSTERS + 1) ** 0.5
    cluster = rng.choice(_CLUSTERS, num_items, p=shares / shares.sum())
    vectors = np.empty((num_items, DIM), np.float32)
    for start in range(0, num_items, _ROWS):
        rows = vectors[start : start + _ROWS]
        rng.standard_normal(out=rows, dtype=np.float32)
        rows *= 0.7 * scale
        rows += centres[cluster[start : start + _ROWS]]
        rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
    return vectors


def sample_of(vectors: np.ndarray, size: int) -> np.ndarray:
    """(size, DIM) rows for k-means, the same ones at every call; all vectors where there are fewer."""
    if len(vectors) <= size:
        return vectors
    chosen: np.ndarray = vectors[np.random.default_rng(1).choice(len(vectors), size, replace=False)]
    return chosen


def mean_square(vectors: np.ndarray, rebuild: Callable[[np.ndarray], np.ndarray]) -> float:
    """Mean of the squared differences between vectors and what `rebuild` makes of them."""
    total = 0.0
    for start in range(0, len(vectors), _ROWS):
        rows = vectors[start : start + _ROWS]
        total += float(np.square(rows - rebuild(rows), dtype=np.float64).sum())
    return total / vectors.size


def peak_bytes(num_items: int, iterations: int) -> int:
    """Peak memory of fitting and encoding in this process, vectors included; for a process of its own.

    Raises:
        MemoryError: it would be more than 3.5 times the vectors.
    """
    import resource

    import faiss
    import psutil

    faiss.omp_get_max_threads()  # loads what it loads before the count begins
    process = psutil.Process()
    before = process.memory_info()
    most = before.vms + int(_MOST_MEMORY * num_items * DIM * 4)
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    vectors = item_vectors(num_items)
    SIDBench(num_items, iterations)._quantizer().fit(vectors).encode(vectors)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before.rss)


def _microseconds(encode: Callable[[np.ndarray], object], vectors: np.ndarray) -> float:
    start = time.perf_counter()
    encode(vectors)
    return 1e6 * (time.perf_counter() - start) / len(vectors)
