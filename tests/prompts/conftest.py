from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from tokenizers import AddedToken

from llmrec import recipes
from llmrec.data.catalog import Catalog
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.templates import TemplateSet
from llmrec.sid_vocab.table import SIDTable
from llmrec.testing.worlds import tiny_events, tiny_items, tiny_tokenizer

FOLDER = recipes.folder("prompts")
KINDS = ("bpe", "spm", "spm-nobos")
SIZES = (6, 5, 2)


def tiny_table(item_ids: tuple[str, ...]) -> SIDTable:
    codes = np.array([[i % 6, i // 6 % 5, i // 30] for i in range(len(item_ids))])
    return SIDTable(item_ids, codes, SIZES, has_suffix=True)


def extend(tokenizer: Any, table: SIDTable) -> SIDTable:
    names = [table.token(level, code) for level, size in enumerate(SIZES) for code in range(size)]
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in names])
    return table.with_token_ids(np.split(np.array(tokenizer.convert_tokens_to_ids(names)), np.cumsum(SIZES)[:-1]))


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return Catalog(pl.DataFrame(tiny_items(60)), ("title",), ("genres", "year"))


@pytest.fixture(scope="session")
def sequences() -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for user, item, _ in tiny_events():
        found.setdefault(user, []).append(item)
    return list(found.values())


@pytest.fixture(scope="session")
def templates() -> TemplateSet:
    return TemplateSet.load(FOLDER)


@pytest.fixture(scope="session", params=KINDS)
def world(request: pytest.FixtureRequest, catalog: Catalog, templates: TemplateSet) -> Any:
    tokenizer = tiny_tokenizer(request.param)
    table = extend(tokenizer, tiny_table(catalog.item_ids))
    return SimpleNamespace(
        kind=request.param, tokenizer=tokenizer, table=table, renderer=Renderer(tokenizer, table, templates)
    )
