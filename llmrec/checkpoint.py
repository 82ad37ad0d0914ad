"""`Checkpoint`: a folder that describes itself, so that nothing which does not belong together is ever loaded together.

=========================  =============================================================================================
``llmrec.json``            the card (`llmrec.checkpoint_card.Card`): kind, flow, base, lineage, recipe, file hashes
``*.safetensors`` …        a full SID-extended model, or PEFT adapter files on the base that the card names
``tokenizer.json`` …       the extended tokenizer
``sid_table.*`` …          the SID table (`SIDTable.save`)
``templates/``             the prompt templates it was trained with
``catalog.parquet``        ids, titles, texts and attributes, so that recommendations can be shown
=========================  =============================================================================================

A checkpoint is written beside its place and renamed: it is there as a whole or not at all. No file is a pickle.

    Checkpoint.write(folder, model=..., tokenizer=..., table=..., ...)
    checkpoint = Checkpoint.load(folder)
    model = checkpoint.load_model()
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from llmrec.checkpoint_card import (
    COPY_AGAIN,
    BaseCard,
    Card,
    CatalogCard,
    DataCard,
    FingerprintsCard,
    Flow,
    Kind,
    LineageEntry,
    ServingCard,
    fingerprint,
    hash_files,
    verify_files,
)
from llmrec.checkpoint_checks import (
    check_base,
    check_tokens,
    describe_base,
    from_here,
    is_adapter,
    placed,
    require_descendant,
    require_flow,
    tokenizer_vocabulary,
)
from llmrec.data.catalog import Catalog
from llmrec.errors import InputError, MismatchError
from llmrec.folders import written_beside
from llmrec.models import DTypeName, load_weights, model_folder, neutral_generation_config, torch_dtype
from llmrec.prompts.renderer import Renderer
from llmrec.prompts.templates import TemplateSet
from llmrec.quantized import Quantize, packing, unpacked
from llmrec.sid_vocab.table import SIDTable

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "BaseCard",
    "Card",
    "Checkpoint",
    "DataCard",
    "Flow",
    "LineageEntry",
    "ServingCard",
    "describe_base",
    "require_descendant",
    "require_flow",
]

_CATALOG, _TEMPLATES = "catalog.parquet", "templates"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A verified checkpoint folder; weights and tokenizer are read on demand."""

    folder: Path
    card: Card
    table: SIDTable
    """The checkpoint's own table, or the descendant that `load` was given."""
    templates: TemplateSet
    catalog: Catalog
    fingerprint: str
    """SHA-256 of the card, and through it of everything here: what `LineageEntry.parent` holds."""

    # -- writing -------------------------------------------------------------------------------------------------

    @classmethod
    def write(
        cls,
        folder: Path,
        *,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        table: SIDTable,
        templates: TemplateSet,
        catalog: Catalog,
        flow: Flow,
        base: BaseCard | None,
        lineage: Sequence[LineageEntry],
        recipe: dict[str, Any],
        data: DataCard,
        serving: ServingCard,
        overwrite: bool = False,
    ) -> Checkpoint:
        """Write a checkpoint and return it, loaded and verified.

        Args:
            folder: its place; the parents are made. An existing one is kept unless `overwrite`.
            model: a full extended model, or a PeftModel, of which the adapter ``default`` is saved without the
                embedding matrix (its trained SID rows included).
            tokenizer: the extended tokenizer.
            table: with the token ids of `tokenizer`.
            templates: all templates that training used.
            catalog: with a row for every item that shall have a title.
            flow: see `require_flow`.
            base: from `describe_base`; None for a model made from a config. An adapter needs one; how it was packed
                while it learned is added here.
            lineage: oldest stage first, this one last.
            recipe: the resolved recipe, as JSON holds it.
            data: the data it was trained on.
            serving: defaults for recommending.
            overwrite: replace what is at `folder`, once the new checkpoint is complete.

        Raises:
            InputError: the folder exists, flow and model contradict each other, or an adapter has no base.
            MismatchError: tokenizer, table and model do not belong together.
            EnvironmentProblem: not enough disk space, before or while writing; nothing is left behind.
        """
        require_flow(flow, model)
        return cls._write(
            folder,
            model=model,
            tokenizer=tokenizer,
            table=table,
            templates=templates,
            catalog=catalog,
            flow=flow,
            base=base,
            lineage=tuple(lineage),
            recipe=recipe,
            data=data,
            serving=serving,
            overwrite=overwrite,
        )

    @classmethod
    def _write(
        cls,
        folder: Path,
        *,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        table: SIDTable,
        templates: TemplateSet,
        catalog: Catalog,
        overwrite: bool,
        base: BaseCard | None,
        **card_fields: Any,
    ) -> Checkpoint:
        from llmrec import __version__

        folder = folder.absolute()
        kind: Kind = "adapter" if is_adapter(model) else "model"
        if kind == "adapter" and base is None:
            raise InputError("An adapter checkpoint needs its base.", hint="pass base=describe_base(reference)")
        check_tokens(tokenizer.get_vocab(), table, str(folder))
        rows = model.get_input_embeddings().weight.shape[0]
        if rows <= table.sid_token_ids().max(initial=0):
            raise MismatchError(
                f"The model has {rows} rows, the SID tokens have ids up to {table.sid_token_ids().max()}.",
                hint="extend the model with the table (llmrec.sid_vocab.extend) before it is trained",
            )
        base = base and placed(base.model_copy(update={"quantize": packing(model)}), folder)
        with written_beside(folder, needed_bytes=_bytes_of(model, kind), overwrite=overwrite) as work:
            if kind == "adapter":
                _save_adapter(model, work, base)
            else:
                _save_model(model, work)
            tokenizer.save_pretrained(work)
            table.save(work)
            templates.save(work / _TEMPLATES)
            catalog.frame.write_parquet(work / _CATALOG)
            Card(
                llmrec_version=__version__,
                kind=kind,
                base=base,
                vocabulary_rows=rows,
                fingerprints=FingerprintsCard(vocabulary=table.vocabulary_fingerprint, rows=table.rows_fingerprint),
                templates_sha256=templates.hash,
                catalog=CatalogCard(text_fields=catalog.text_fields, attributes=catalog.attributes),
                files=hash_files(work),
                **card_fields,
            ).write(work)
        return cls.load(folder)

    def export_merged(self, folder: Path, *, dtype: DTypeName = "float32", overwrite: bool = False) -> Checkpoint:
        """Write this checkpoint as one full model that needs neither PEFT nor its base.

        Raises:
            InputError: it is a full model already, or `folder` exists.
        """
        if self.card.kind == "model":
            raise InputError(f"{self.folder} is a full model already: there is nothing to merge.", hint="copy it")
        merged = LineageEntry(stage="merged", config_hash="", parent=self.fingerprint)
        return self._write(
            folder,
            model=self.load_model(dtype),
            tokenizer=self.tokenizer,
            table=self.table,
            templates=self.templates,
            catalog=self.catalog,
            flow=self.card.flow,
            base=self.card.base and from_here(self.card.base, self.folder),
            lineage=(*self.card.lineage, merged),
            recipe=self.card.recipe,
            data=self.card.data,
            serving=self.card.serving,
            overwrite=overwrite,
        )

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, folder: Path, *, table: SIDTable | None = None, catalog: Catalog | None = None) -> Checkpoint:
        """Open a checkpoint and verify it: files, tokenizer, table, templates, and the base of an adapter.

        Args:
            folder: what `write` made.
            table: a descendant of the checkpoint's table (same vocabulary, items added or retired) to use instead.
            catalog: a newer catalogue, with titles of the items that were added.

        Raises:
            InputError: no checkpoint, an unreadable one, or the base of an adapter is not there.
            MismatchError: something does not belong to it; both sides are named.
            EnvironmentProblem: the base has to be fetched and cannot.
        """
        folder = folder.absolute()
        card = Card.read(folder)
        verify_files(folder, card)
        own = SIDTable.load(folder)
        if card.fingerprints.vocabulary != own.vocabulary_fingerprint:
            raise MismatchError(
                f"The card of {folder} names the SID vocabulary {card.fingerprints.vocabulary}, "
                f"its table is {own.vocabulary_fingerprint}.",
                hint=COPY_AGAIN,
            )
        check_tokens(tokenizer_vocabulary(folder), own, str(folder))
        if table is not None:
            require_descendant(own, table)
        templates = TemplateSet.load(folder / _TEMPLATES)
        if templates.hash != card.templates_sha256:
            raise MismatchError(
                f"The card of {folder} names the templates {card.templates_sha256}, they are {templates.hash}.",
                hint=COPY_AGAIN,
            )
        if catalog is None:
            frame = pl.read_parquet(folder / _CATALOG)
            catalog = Catalog(frame, card.catalog.text_fields, card.catalog.attributes)
        if card.kind == "adapter":
            check_base(folder, card)
        return cls(folder, card, table or own, templates, catalog, fingerprint(folder))

    def load_model(self, dtype: DTypeName = "auto") -> PreTrainedModel:
        """The full model in evaluation mode on the CPU; an adapter is merged into its base in float32, then cast."""
        if self.card.kind == "model":
            return load_weights(self.folder, dtype=dtype)
        merged: PreTrainedModel = self._on_base(unpacked(self._extended_base("float32"))).merge_and_unload()
        merged.generation_config = neutral_generation_config(merged)
        return merged.to(torch_dtype(dtype)).eval()

    def load_peft(
        self, dtype: DTypeName = "auto", *, trainable: bool = False, quantize: Quantize | None = None
    ) -> PeftModel:
        """The adapter on its base, not merged: for going on with training.

        Args:
            dtype: of the base's weights; of those that are not packed.
            trainable: whether the adapter learns.
            quantize: how to pack the base.

        Raises:
            InputError: this is a full model, or its base is packed already and `quantize` is given.
            EnvironmentProblem: the package that packs or unpacks the base is missing.
        """
        return self._on_base(self._extended_base(dtype, quantize), trainable=trainable)

    def _on_base(self, base: PreTrainedModel, *, trainable: bool = False) -> PeftModel:
        from peft import PeftModel

        return PeftModel.from_pretrained(base, self.folder, is_trainable=trainable)

    def _extended_base(self, dtype: DTypeName, quantize: Quantize | None = None) -> PreTrainedModel:
        """An adapter's base with rows for the SID tokens, which only the adapter fills."""
        import torch

        if self.card.kind == "model" or self.card.base is None:
            raise InputError(f"{self.folder} is a full model, it has no adapter.", hint="use load_model()")
        folder = model_folder(from_here(self.card.base, self.folder).reference)
        model = load_weights(folder, dtype=dtype, quantize=quantize)
        old = model.get_input_embeddings().weight.shape[0]
        if self.card.vocabulary_rows > old:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                model.resize_token_embeddings(self.card.vocabulary_rows, mean_resizing=False)
                # The adapter brings the SID rows; rows of padding get the mean, as when they were added (`extend`).
                first = int(self.table.sid_token_ids().min())
                for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                    layer.weight[old:] = layer.weight[:first].float().mean(dim=0).to(layer.weight.dtype)
        return model

    @property
    def base_folder(self) -> Path | None:
        """The folder of an adapter's base; None for a full model."""
        if self.card.kind == "model" or self.card.base is None:
            return None
        return model_folder(from_here(self.card.base, self.folder).reference)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The extended tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)

    @cached_property
    def renderer(self) -> Renderer:
        """Renders prompts with this checkpoint's tokenizer, table and templates."""
        return Renderer(self.tokenizer, self.table, self.templates)


def _bytes_of(model: Any, kind: Kind) -> int:
    if kind == "adapter":
        from peft import get_peft_model_state_dict

        tensors = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False).values()
    else:
        tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _save_model(model: Any, work: Path) -> None:
    before = model.generation_config
    model.generation_config = neutral_generation_config(model)  # transformers refuses to save some of what it loads
    try:
        model.save_pretrained(work)
    finally:
        model.generation_config = before


def _save_adapter(model: Any, work: Path, base: BaseCard | None) -> None:
    model.save_pretrained(work, selected_adapters=["default"], save_embedding_layers=False)
    (work / "README.md").unlink(missing_ok=True)  # PEFT's card template, empty but for the base's path
    path = work / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base and base.reference
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT writes a set: equal adapters would have unequal fingerprints
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
