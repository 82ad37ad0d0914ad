"""Give a language model the tokens of a SID table: new entries in the tokenizer, new rows in the model.

SID tokens are added tokens that are neither special (decoding with ``skip_special_tokens=True`` keeps them, so rewards
and chat answers see them) nor normalised. They take the ids that the tokenizer gives out next; where the model has
spare rows behind its tokenizer's last id (Qwen3 pads its matrix by 267), those ids fall inside the spare rows and the
matrix grows only by what is missing, or on request not at all. Rows of the base vocabulary are not touched: same bits,
same logits.

Bases may be in half precision: new rows are made in float32 and rounded once. Of a base in 4 bits (bitsandbytes) the
linear layers are packed, embedding and head are not, so that their rows can be added as to any other.

How the new rows start is told in `llmrec.sid_vocab.rows`; transformers' own way (a normal distribution with the mean
and covariance of the old rows) knows nothing of the codes and is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llmrec.errors import InputError, MismatchError
from llmrec.sid_vocab.rows import Init, initial_rows
from llmrec.sid_vocab.text_codec import TextCodec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmrec.sid_vocab.table import SIDTable


@dataclass(frozen=True)
class Extension:
    """What `extend_vocabulary` did."""

    table: SIDTable
    """The given table, now with token ids."""
    tokenizer: PreTrainedTokenizerBase
    """The given tokenizer, extended in place."""
    first_row: int
    """Lowest id of a SID token; the ids are one block of `num_new_rows`."""
    num_new_rows: int
    """Number of SID tokens: rows written in the input embeddings and, untied, in the output head."""
    num_spare_rows_used: int
    """How many of them lie in rows that the base model had to spare."""
    num_pad_rows: int
    """Rows behind the last SID token that were added to reach a multiple of `pad_to_multiple`."""
    tied: bool
    """Input embeddings and output head are one matrix."""
    typical_norm: float
    """Median norm of the base rows of the input embeddings."""
    items_without_text: int
    """Items of the table that ``title_mean`` or ``centroid`` had no text for; 0 for other kinds of init."""
    unused_codes: int
    """SID tokens that no item carries."""


def sid_tokens(table: SIDTable) -> list[str]:
    """The spellings of all SID tokens, level after level: ``<a_0> <a_1> ... <b_0> ...``."""
    return [table.token(level, code) for level, size in enumerate(table.codebook_sizes) for code in range(size)]


def extend_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    table: SIDTable,
    *,
    init: Init = "title_mean",
    item_texts: Mapping[str, str] | None = None,
    seed: int = 0,
    pad_to_multiple: int | None = None,
    grow: bool = True,
) -> Extension:
    """Add the SID tokens of `table` to `tokenizer` and rows for them to `model`, both in place.

    Args:
        model: any causal LM of transformers with an embedding and an output head, tied or untied.
        tokenizer: the base tokenizer of the model.
        table: SIDs without token ids.
        init: how the rows start, see `llmrec.sid_vocab.rows`.
        item_texts: title (or other short text) by item id; ``title_mean`` and ``centroid`` need it.
        seed: of the noise in new rows. The random state of torch is left as it was.
        pad_to_multiple: round the number of rows up to a multiple (64 suits tensor cores); padding rows hold the mean
            of the base rows.
        grow: False keeps the size of the model's matrices: the SID tokens must fit into its spare rows.

    Raises:
        InputError: the table has token ids already, ``title_mean`` or ``centroid`` has no texts, ``centroid`` no
            codebooks, the model no output head or one that is packed, or it would have to grow and must not.
        MismatchError: the tokenizer has one of the tokens already, or the model fewer rows than the tokenizer ids.
    """
    tokens = sid_tokens(table)
    old_rows: int = model.get_input_embeddings().weight.shape[0]
    num_base = max(tokenizer.get_vocab().values()) + 1
    _check_tokens(table, tokenizer, tokens)
    _check_model(model, num_base, old_rows)
    new_rows = max(old_rows, num_base + len(tokens))
    if pad_to_multiple is not None:
        new_rows = -(-new_rows // pad_to_multiple) * pad_to_multiple
    if not grow and new_rows > old_rows:
        raise _no_room(table, old_rows - num_base, new_rows - old_rows)
    if init == "centroid":
        _check_codebooks(table)
    title_ids = _title_ids(tokenizer, table, tokens, item_texts, init) if init in ("title_mean", "centroid") else []

    extended = extend_tokenizer(tokenizer, table)
    token_ids = list(range(num_base, num_base + len(tokens)))
    _resize(model, old_rows, new_rows)

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    tied = head.data_ptr() == embedding.data_ptr()
    first_pad = max(old_rows, num_base + len(tokens))
    norms = []
    for matrix in [embedding] if tied else [embedding, head]:
        start = initial_rows(matrix[:num_base], table, title_ids, init=init, seed=seed)
        matrix.data[token_ids] = start.rows.to(matrix)
        matrix.data[first_pad:] = start.mean_row.to(matrix)
        norms.append(start.typical_norm)

    used = sum(len(np.unique(table.codes[:, level])) for level in range(table.num_levels))
    return Extension(
        table=extended,
        tokenizer=tokenizer,
        first_row=num_base,
        num_new_rows=len(tokens),
        num_spare_rows_used=min(max(old_rows - num_base, 0), len(tokens)),
        num_pad_rows=new_rows - first_pad,
        tied=tied,
        typical_norm=norms[0],
        items_without_text=sum(not ids for ids in title_ids),
        unused_codes=len(tokens) - used,
    )


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, table: SIDTable) -> SIDTable:
    """Add the SID tokens of `table` to `tokenizer` in place; returns the table with their ids, a block after the base.

    Enough for whatever needs ids and no model, such as a preview; `extend_vocabulary` calls it too.

    Raises:
        InputError: the table has token ids already.
        MismatchError: the tokenizer has one of the tokens already, or its vocabulary has gaps.
    """
    tokens = sid_tokens(table)
    _check_tokens(table, tokenizer, tokens)
    token_ids = _add_tokens(tokenizer, tokens, max(tokenizer.get_vocab().values()) + 1)
    return table.with_token_ids(np.split(np.array(token_ids), np.cumsum(table.codebook_sizes)[:-1]))


def _check_tokens(table: SIDTable, tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    if table.token_ids is not None:
        raise InputError(
            "The SID table has token ids already: it belongs to a tokenizer that was extended before.",
            hint="load that tokenizer and model, or build the table anew to extend another base",
        )
    vocabulary = tokenizer.get_vocab()
    present = [token for token in tokens if token in vocabulary]
    if present:
        raise MismatchError(
            f"The tokenizer already has {len(present)} of the {len(tokens)} SID tokens, {present[0]} among them.",
            hint="start from the base model's own tokenizer, not from one extended for another SID table",
        )


def _check_model(model: PreTrainedModel, num_base: int, old_rows: int) -> None:
    if model.get_output_embeddings() is None:
        raise InputError("The model has no output head.", hint="load it with AutoModelForCausalLM")
    for name, module in (("input embedding", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
        if not module.weight.is_floating_point():
            raise InputError(
                f"The model's {name} is quantised (packed as {module.weight.dtype}), so no rows can be added to it.",
                hint="quantise all but embedding and head: BitsAndBytesConfig(llm_int8_skip_modules=['lm_head'])",
            )
    if num_base > old_rows:
        raise MismatchError(
            f"The tokenizer has ids up to {num_base - 1}, the model only {old_rows} rows.",
            hint="load model and tokenizer from the same checkpoint",
        )


def _no_room(table: SIDTable, spare: int, missing: int) -> InputError:
    sizes = " + ".join(map(str, table.codebook_sizes))
    return InputError(
        f"The {table.num_tokens} SID tokens ({sizes}) do not fit into the {spare} spare rows of the model: its "
        f"matrices would grow by {missing} rows.",
        hint=f"choose codebooks with at most {spare} codes in all levels together, or let the model grow"
        if spare
        else "this base has no spare rows: let it grow",
    )


def _check_codebooks(table: SIDTable) -> None:
    if len({book.shape[1] for book in table.codebooks}) != 1:
        raise InputError(
            "init='centroid' needs codebooks, and this table has none: its SIDs were given, not fitted."
            if not table.codebooks
            else "init='centroid' needs codebooks of one space; those of this table differ in width.",
            hint="use init='title_mean'",
        )


def _title_ids(
    tokenizer: PreTrainedTokenizerBase,
    table: SIDTable,
    tokens: list[str],
    item_texts: Mapping[str, str] | None,
    init: Init,
) -> list[list[int]]:
    if item_texts is None:
        raise InputError(
            f"init={init!r} needs the items' texts.", hint="pass item_texts={item id: title}, or use init='mean'"
        )
    title_ids = TextCodec(tokenizer, tokens).encode_batch([item_texts.get(item, "") for item in table.item_ids])
    if not any(title_ids):
        raise InputError(
            f"item_texts has no text for any of the {table.num_items} items of the SID table.",
            hint="key it by the table's item ids, or use init='mean'",
        )
    return title_ids


def _add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str], first: int) -> list[int]:
    from tokenizers import AddedToken

    tokenizer.add_tokens(
        [
            AddedToken(token, special=False, normalized=False, lstrip=False, rstrip=False, single_word=False)
            for token in tokens
        ]
    )
    token_ids: list[int] = tokenizer.convert_tokens_to_ids(tokens)
    if token_ids != list(range(first, first + len(tokens))):
        # A vocabulary with gaps counts fewer entries than its highest id, and new tokens would share ids with old ones.
        raise MismatchError(
            f"The tokenizer gave the SID tokens ids from {min(token_ids)} to {max(token_ids)}, not the "
            f"{len(tokens)} that follow its last id {first - 1}.",
            hint="its vocabulary has gaps: fill them with placeholder entries before it is extended",
        )
    return token_ids


def _resize(model: PreTrainedModel, old_rows: int, new_rows: int) -> None:
    import torch

    if new_rows == old_rows:
        return
    # Resizing draws random rows (all overwritten here); the caller's random state must not depend on that.
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.resize_token_embeddings(new_rows, mean_resizing=False)
