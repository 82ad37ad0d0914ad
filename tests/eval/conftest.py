import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmrec import recipes
from llmrec.data.config import DataConfig
from llmrec.data.dataset import Dataset, read_data
from llmrec.decode.searcher import Searcher
from llmrec.decode.trie import SIDTrie
from llmrec.eval.config import EvalConfig
from llmrec.eval.generate import Generator
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.templates import TemplateSet
from llmrec.sid_vocab.extend import extend_vocabulary
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.worlds import tiny_items, tiny_model, tiny_tokenizer, write_tiny_folder

WIDE: dict[str, Any] = {"num_beams": 80, "baselines": {}}  # wider than the catalogue: beam search is exact
CATALOGUE = 66  # the last six items have no event, so they are outside the evaluation catalogue


@dataclass(frozen=True)
class World:
    dataset: Dataset
    model: Any
    renderer: Renderer
    searcher: Searcher

    @property
    def generator(self) -> Generator:
        return Generator(self.searcher, self.renderer, window=6)

    def item_scores(self, user: int, window: int = 6) -> np.ndarray:
        """Brute force: log-probability of every item's SID after the test prompt, -inf for items without one."""
        split, table = self.dataset.split, self.renderer.table
        history = [split.items[item] for item in split.history(user, "test")]
        prompt = torch.from_numpy(self.renderer.sequence(history, window=window).input_ids)
        sids = torch.from_numpy(table.sid_token_ids())
        rows = torch.cat([prompt.expand(len(sids), -1), sids], dim=1)
        with torch.no_grad():
            logits = self.model(rows).logits.float().log_softmax(-1)[:, len(prompt) - 1 : -1]
        scores = logits.gather(2, sids[:, :, None])[:, :, 0].sum(1).numpy()
        row_of = {item_id: row for row, item_id in enumerate(table.item_ids)}
        return np.array([scores[row_of[i]] if i in row_of else -np.inf for i in split.items])


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = write_tiny_folder(tmp_path_factory.mktemp("world") / "tiny")
    lines = "".join(json.dumps(item) + "\n" for item in tiny_items(CATALOGUE))
    (folder / "items.jsonl").write_text(lines, encoding="utf-8")
    return read_data(DataConfig(path=str(folder)))


@pytest.fixture(scope="session")
def make_world(dataset: Dataset) -> Callable[..., World]:
    def make(*, shared: bool = False, without: tuple[str, ...] = (), retired: tuple[str, ...] = ()) -> World:
        """A random model; with `shared`, SIDs of two levels that two or three items have in common."""
        tokenizer = tiny_tokenizer()
        model = tiny_model(tokenizer)
        ids = tuple(item_id for item_id in dataset.catalog.item_ids if item_id not in without)
        numbers = np.array([int(item_id) - 1 for item_id in ids])
        codes = np.stack([numbers % 6, numbers // 6 % 5, numbers // 30], axis=1)
        status = np.isin(ids, retired).astype(np.uint8)
        table = (
            SIDTable(ids, codes[:, :2], (6, 5), status=status)
            if shared
            else SIDTable(ids, codes, (6, 5, 3), has_suffix=True, status=status)
        )
        extended = extend_vocabulary(model, tokenizer, table, init="random").table
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4)  # scores far enough apart to be ranked alike by any order of summation
        renderer = Renderer(tokenizer, extended, TemplateSet.load(recipes.folder("prompts")))
        trie = SIDTrie.build(extended.codes, extended.codebook_sizes)
        return World(dataset, model, renderer, Searcher(model, trie, extended.token_ids or ()))

    return make


@pytest.fixture(scope="session")
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture(scope="session")
def result(dataset: Dataset, world: World) -> Any:
    from llmrec.eval.evaluate import evaluate

    config = EvalConfig(num_beams=80, baselines={"popularity": {}, "itemknn": {}})
    return evaluate(dataset, {"tiny <b>model</b>": world.generator}, config, seeds=[3], selection="nothing")


@pytest.fixture(scope="session")
def saved(result: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    result.save(folder)
    return folder
