"""What a checkpoint checks: flow, base, tokenizer and SID table belong together; each mismatch names both sides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmrec.checkpoint_card import COPY_AGAIN, BaseCard, Card, Flow
from llmrec.errors import InputError, MismatchError
from llmrec.models import model_folder, weights_sha256
from llmrec.sid_vocab.table import SIDTable


def describe_base(reference: str | Path) -> BaseCard:
    """Name a base model by its reference and the hash of its weights (fetched where it is not cached).

    Raises:
        InputError: there is no such model, or it is an adapter.
        EnvironmentProblem: it cannot be fetched.
    """
    return BaseCard(reference=str(reference), weights_sha256=weights_sha256(model_folder(reference)))


def is_adapter(model: Any) -> bool:
    """Whether `model` is a PeftModel."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def require_flow(flow: Flow, model: Any) -> None:
    """Check that SID rows live where the flow says; call it before training, `Checkpoint.write` calls it again.

    Raises:
        InputError: flow ``adapter`` with a full model, or an adapter with token rows on an ``extended_base``.
    """
    if not is_adapter(model):
        if flow == "adapter":
            raise InputError(
                'A full model was given for the flow "adapter", which keeps all that it learns in one adapter.',
                hint='use method: lora, or flow: "extended_base"',
            )
        return
    config = model.peft_config["default"]
    if flow == "extended_base" and (config.trainable_token_indices or config.modules_to_save):
        raise InputError(
            'The adapter trains token rows, but in the flow "extended_base" they belong to the base, frozen.',
            hint='set train_sid_rows: false for this stage, or flow: "adapter"',
        )


def require_descendant(own: SIDTable, other: SIDTable) -> None:
    """Check that `other` may stand in for the table `own` that a model was trained with.

    It must have the same vocabulary and give every item of `own` the same codes; items may be added and retired.

    Raises:
        MismatchError: otherwise; both are named.
    """
    own.require_same_vocabulary(other)
    known = set(other.item_ids)
    missing = [item_id for item_id in own.item_ids if item_id not in known]
    moved = [
        item_id
        for item_id, codes in zip(own.item_ids, own.codes, strict=True)
        if item_id in known and (other.codes[other.row(item_id)] != codes).any()
    ]
    if missing or moved:
        raise MismatchError(
            f"The SID table {other.rows_fingerprint} is no descendant of the checkpoint's {own.rows_fingerprint}: "
            f"{len(moved)} items have other codes and {len(missing)} are missing "
            f"(for example {(moved + missing)[0]!r}).",
            hint="use a table that was made from the checkpoint's own, in which items are added or retired only",
        )


def check_tokens(vocabulary: dict[str, int], table: SIDTable, where: str) -> None:
    """Check that every SID token of `table` has its id in a tokenizer's `vocabulary`.

    Raises:
        InputError: the table has no token ids.
        MismatchError: ids differ or tokens are missing; the first one is shown.
    """
    if table.token_ids is None:
        raise InputError("The SID table has no token ids.", hint="use the table that extend_vocabulary returned")
    wrong = [
        f"{token} is {vocabulary.get(token)} in the tokenizer and {token_id} in the table"
        for level, ids in enumerate(table.token_ids)
        for code, token_id in enumerate(ids.tolist())
        if vocabulary.get(token := table.token(level, code)) != token_id
    ]
    if wrong:
        raise MismatchError(
            f"Tokenizer and SID table of {where} do not belong together: {len(wrong)} of {table.num_tokens} SID tokens "
            f"have other ids; {wrong[0]}.",
            hint="use the table and the tokenizer that one extend_vocabulary returned",
        )


def tokenizer_vocabulary(folder: Path) -> dict[str, int]:
    """Ids by token of the tokenizer in `folder`."""
    from tokenizers import Tokenizer  # reads one JSON file; transformers would take seconds to import

    vocabulary: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return vocabulary


def check_base(folder: Path, card: Card) -> None:
    """Check that the base of the adapter in `folder` is there and has the weights that the card names.

    Raises:
        InputError: there is no such base.
        MismatchError: its weights are others.
        EnvironmentProblem: it has to be fetched and cannot.
    """
    if card.base is None:
        raise InputError(f"The adapter {folder} names no base.", hint=COPY_AGAIN)
    reference = from_here(card.base, folder).reference
    base = model_folder(reference)
    found = weights_sha256(base)
    if found != card.base.weights_sha256:
        raise MismatchError(
            f"The adapter {folder} was trained on {card.base.reference} with weights {card.base.weights_sha256}; "
            f"{base} now holds {found}.",
            hint="an adapter works only on the weights that it was trained on: bring those back",
        )


def placed(base: BaseCard, folder: Path) -> BaseCard:
    """The reference as the card keeps it: of a checkpoint relative to `folder`, so that runs can be moved whole."""
    path = Path(base.reference).expanduser()
    if not path.exists():
        return base
    path = path.absolute()
    if (path / "llmrec.json").is_file():
        relative = Path(os.path.relpath(path, folder)).as_posix()
        return base.model_copy(update={"reference": relative if relative.startswith(".") else f"./{relative}"})
    return base.model_copy(update={"reference": str(path)})


def from_here(base: BaseCard, folder: Path) -> BaseCard:
    """The inverse of `placed`."""
    if not base.reference.startswith(("./", "../")):
        return base
    return base.model_copy(update={"reference": os.path.normpath(folder / base.reference)})
