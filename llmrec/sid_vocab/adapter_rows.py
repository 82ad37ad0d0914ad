"""SID rows inside a LoRA adapter (flow B): which rows PEFT trains, and a repair for TRL's fused head.

PEFT's ``trainable_token_indices`` keeps the base matrix as it is and stores trained values for the rows named. What it
does with tied and untied heads was measured, see ``docs/decisions/0002-where-sid-rows-live.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmrec.errors import InputError, MismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmrec.sid_vocab.table import SIDTable


def trainable_rows_config(model: PreTrainedModel, table: SIDTable) -> dict[str, list[int]]:
    """The SID rows by module, for ``LoraConfig(trainable_token_indices=...)``.

    A tied model names its input embeddings alone: PEFT lets the head follow. An untied model names both matrices; the
    list form of PEFT would train the input rows and leave the head's as they are, without a word.

    Args:
        model: the extended model, before it is wrapped by PEFT.
        table: the table that `extend_vocabulary` returned, with token ids.

    Raises:
        InputError: the table has no token ids, or the head has a bias (PEFT 0.21 drops it where it trains head rows).
        MismatchError: the model has no rows for the table's tokens.
    """
    from torch import nn

    if table.token_ids is None:
        raise InputError("This SID table has no token ids yet.", hint="use the table that extend_vocabulary returned")
    ids = np.sort(np.concatenate(table.token_ids)).tolist()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if ids[-1] >= embedding.weight.shape[0]:
        raise MismatchError(
            f"The SID tokens have ids up to {ids[-1]}, the model only {embedding.weight.shape[0]} rows.",
            hint="extend the model with extend_vocabulary before the adapter is made",
        )
    names = {id(module): name for name, module in model.named_modules()}
    if head.weight.data_ptr() == embedding.weight.data_ptr():
        trained = [embedding]
    else:
        trained = [embedding, head]
    if isinstance(head, nn.Linear) and head.bias is not None:
        raise InputError(
            f"The output head of {type(model).__name__} has a bias, which PEFT drops where it trains rows of a head.",
            hint="train the rows in a full or merged model instead (flow A)",
        )
    return {names[id(module)]: ids for module in trained}


def patch_trainable_tokens_bias() -> None:
    """Give PEFT's wrapper of a head the ``bias`` that TRL's fused head loss reads; safe to call more than once.

    SFT, DPO and GRPO of TRL 1.16 take ``lm_head.weight, lm_head.bias`` (``trl.trainer.utils.add_fused_lm_head``) and
    PEFT 0.21's ``TrainableTokensWrapper`` forwards only the weight, so a tied or trained head raises AttributeError.
    The property forwards to the wrapped layer. Call it before training flow B; a test says when it is needed no more.
    """
    from peft.utils.other import TrainableTokensWrapper

    def bias(wrapper: Any) -> Any:
        return wrapper.original_module.bias

    TrainableTokensWrapper.bias = property(bias)
