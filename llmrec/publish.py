"""Push a checkpoint to the Hugging Face Hub: what is sent, what is changed in it, and the page that people see.

An adapter is a few MB and needs its base wherever it is loaded. A base from the Hub or among the packaged assets is
named as it is. One that lies in a local folder, such as the run's ``cpt``, is pushed to a repository of its own first,
and the adapter names the commit; or the two are merged into one model.

    plan = prepare(Path("runs/games/sft"), "me/games", work, base_repo="me/games-base")
    plan.push(private=True)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrec import hub
from llmrec.checkpoint import BaseCard, Card, Checkpoint
from llmrec.checkpoint_card import CARD_FILE
from llmrec.checkpoint_checks import from_here
from llmrec.data.assets import PREFIX as ASSET_PREFIX
from llmrec.data.assets import sha256_file
from llmrec.errors import InputError
from llmrec.eval.result import EvalResult

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ADAPTER_CONFIG, _PAGE = "adapter_config.json", "README.md"
_METRICS = ("NDCG@10", "Recall@10")
UNPUBLISHED = "unpublished:"
"""Before the name of a folder that a full model was made from, and that stays on the machine."""


@dataclass(eq=False)
class Plan:
    """What goes to one repository, and its base's plan where that is pushed before."""

    repo: str
    card: Card
    files: dict[str, Path]
    """By path in the repository; llmrec.json and README.md are rewritten in `work`."""
    work: Path
    """A folder for what is rewritten."""
    base: Plan | None
    """Of the adapter's base; None where there is none to push."""
    evaluation: EvalResult | None
    license: str | None
    notes: list[str]
    """What a person should know before it is sent."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files.values())

    def push(
        self,
        *,
        private: bool,
        message: str | None = None,
        api: HfApi | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> hub.Uploaded:
        """Send it, the base first; see `llmrec.hub.upload` for what is raised.

        Args:
            private: of new repositories; existing ones must be so already.
            message: of the commits.
            api: the client.
            say: takes a line before each upload.
        """
        if self.base is not None:
            sent = self.base.push(private=private, message=message, api=api, say=say)
            self._name_base(f"{self.base.repo}@{sent.commit}")
        self._write()
        say(f"sending {len(self.files)} files, {self.size / 1e6:,.1f} MB, to {self.repo}")
        told = message or f"{self.card.stage} checkpoint, written by llmrec {self.card.llmrec_version}"
        return hub.upload(self.files, self.repo, message=told, private=private, api=api)

    def _name_base(self, reference: str) -> None:
        """Let card and adapter config name the base as `reference`, ``OWNER/NAME@COMMIT``."""
        assert self.card.base is not None
        self.card = self.card.model_copy(update={"base": self.card.base.model_copy(update={"reference": reference})})
        place = self.work / _ADAPTER_CONFIG
        config = json.loads(self.files[_ADAPTER_CONFIG].read_text(encoding="utf-8"))
        repo, _, revision = reference.partition("@")
        config |= {"base_model_name_or_path": repo, "revision": revision}  # what PEFT alone loads
        place.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        self.files[_ADAPTER_CONFIG] = place
        self.card = self.card.model_copy(update={"files": {**self.card.files, _ADAPTER_CONFIG: sha256_file(place)}})

    def _write(self) -> None:
        self.card.write(self.work)
        (self.work / _PAGE).write_text(page(self), encoding="utf-8")
        self.files |= {name: self.work / name for name in (CARD_FILE, _PAGE)}


def prepare(
    folder: Path,
    repo: str,
    work: Path,
    *,
    base_repo: str | None = None,
    merged: bool = False,
    evaluation: EvalResult | None = None,
    license: str | None = None,
) -> Plan:
    """Verify a checkpoint and say what would be pushed; nothing is sent.

    Args:
        folder: of the checkpoint.
        repo: ``OWNER/NAME`` on the Hub.
        work: an empty folder for what is rewritten or merged; keep it until the push.
        base_repo: where the base of an adapter goes if it is a local checkpoint.
        merged: push adapter and base as one full model.
        evaluation: shown on the page.
        license: identifier for the page, such as ``apache-2.0``.

    Raises:
        InputError: a wrong name, a base that no one else could load, or options that contradict each other.
        LLMRecError: as `Checkpoint.load` raises.
    """
    hub.require_repo(repo)
    if base_repo is not None:
        hub.require_repo(base_repo)
        if merged or base_repo == repo:
            raise InputError(
                f"--base {base_repo} gives the base a repository, "
                + ("but --merged makes one model of both." if merged else "but the adapter is to go to the same one."),
                hint="leave --base out" if merged else "give the base another name",
            )
    checkpoint = Checkpoint.load(folder)
    notes: list[str] = []
    if merged:
        if checkpoint.card.kind == "model":
            raise InputError(f"{folder} is a full model: there is nothing to merge.", hint="leave --merged out")
        checkpoint = checkpoint.export_merged(work / "merged")
    base = _base_plan(checkpoint, repo, work, base_repo, license)
    card, shortened = _for_others(checkpoint)
    if shortened:
        notes.append(f"local paths in the recipe, shortened to their last part: {len(shortened)}")
    notes.append(
        f"the catalogue goes along: titles and attributes of {checkpoint.table.num_items:,} items; no user's events do"
    )
    if card.base and card.base.reference.startswith(ASSET_PREFIX) and card.kind == "adapter":
        notes.append(f"the base is {card.base.reference}: llmrec finds it everywhere, PEFT alone does not")
    own = work / repo.replace("/", "--")
    own.mkdir(parents=True)
    files = {name: checkpoint.folder / name for name in card.files}
    plan = Plan(repo, card, files, own, base, evaluation, license, notes)
    plan._write()
    return plan


def page(plan: Plan) -> str:
    """The model card, ``README.md``: the Hub's metadata, what it is, how to use it, where it comes from."""
    from huggingface_hub import ModelCardData

    card = plan.card
    base = card.base.reference.partition("@")[0] if card.base else None
    known = base if base and not base.startswith((ASSET_PREFIX, UNPUBLISHED)) else None
    data = ModelCardData(
        base_model=known,
        library_name="peft" if card.kind == "adapter" else "transformers",
        license=plan.license,
        model_name=plan.repo.split("/")[1],
        pipeline_tag="text-generation",
        tags=["llmrec", "recommendation", "generative-recommendation", "semantic-ids"],
        eval_results=_eval_results(plan) or None,
        ignore_metadata_errors=False,
    )
    recipe = card.recipe.get("sid") or {}
    stages = " → ".join(entry.stage for entry in card.lineage)
    what = "a PEFT adapter" if card.kind == "adapter" else "a full causal language model"
    lines = [
        "---", data.to_yaml(), "---", "",
        f"# {plan.repo.split('/')[1]}", "",
        f"A recommender that generates the next item: {what} whose vocabulary holds a Semantic ID for every item "
        "of its catalogue. Searches are bound to the catalogue, so it can only name items that exist. Made with "
        f"llmrec {card.llmrec_version}.", "",
        "```bash",
        f'llmrec recommend hub:{plan.repo} "A title" "Another one" -k 10',
        f"llmrec serve hub:{plan.repo}",
        "```", "",
        "```python",
        "from llmrec import Recommender", "",
        f'recommender = Recommender.load("hub:{plan.repo}")  # add @COMMIT to get the same files every time',
        'recommender.recommend(["an item id"], k=10)',
        "```", "",
        "| | |", "|---|---|",
        f"| base | {_told_base(card)} |",
        f"| stages | {stages} |",
        f"| data | {card.data.name}, check value of its leave-one-out split `{card.data.loo_sha256}` |",
        f"| Semantic IDs | {_told_quantizer(recipe)} vocabulary `{card.fingerprints.vocabulary[:16]}` |",
        f"| prompt | the last {card.serving.window} items, {card.serving.num_beams} beams |",
        "",
    ]  # fmt: skip
    if plan.evaluation is not None:
        lines += [*_table(plan.evaluation), ""]
    lines += [
        "The licences of the base and of the data hold for what is made of them." if plan.license is None else
        f"Licence of this repository: {plan.license}; those of the base and the data hold as well.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _base_plan(
    checkpoint: Checkpoint, repo: str, work: Path, base_repo: str | None, license: str | None
) -> Plan | None:
    """The plan of an adapter's local base; None where it needs no push."""
    card = checkpoint.card
    if card.kind == "model" or card.base is None:
        if base_repo is not None:
            raise InputError(f"{checkpoint.folder} is a full model, it needs no base.", hint="leave --base out")
        return None
    folder = Path(from_here(card.base, checkpoint.folder).reference).expanduser()
    if not folder.is_dir():  # an asset or a hub id
        if base_repo is not None:
            raise InputError(f"The base {card.base.reference} is there for everyone.", hint="leave --base out")
        return None
    if not (folder / CARD_FILE).is_file():
        raise InputError(
            f"The adapter's base is the folder {folder}, which no one else has.",
            hint="push both as one model with --merged, or train on the base's hub id",
        )
    if base_repo is None:
        raise InputError(
            f"The adapter needs the base {folder}, which no one else has.",
            hint=f"add --base {repo}-base to push it beside, or --merged for one full model",
        )
    return prepare(folder, base_repo, work, license=license)


def _for_others(checkpoint: Checkpoint) -> tuple[Card, list[str]]:
    """The card without paths of this machine, and the paths that were shortened."""
    shortened: list[str] = []
    recipe = _without_paths(checkpoint.card.recipe, shortened)
    base = checkpoint.card.base
    if base is not None and checkpoint.card.kind == "model":
        base = _origin(base, checkpoint.folder)
    return checkpoint.card.model_copy(update={"recipe": recipe, "base": base}), shortened


def _origin(base: BaseCard, folder: Path) -> BaseCard:
    """What a full model was made from, named as others know it: bases of local checkpoints are followed."""
    reference = from_here(base, folder).reference
    place = Path(reference).expanduser()
    if not place.is_absolute() and not place.is_dir():
        return base
    if (place / CARD_FILE).is_file():
        further = Card.read(place).base
        if further is not None:
            return _origin(further, place)
    return base.model_copy(update={"reference": f"{UNPUBLISHED}{place.name}"})


def _without_paths(value: Any, shortened: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(child, shortened) for key, child in value.items()}
    if isinstance(value, list):
        return [_without_paths(child, shortened) for child in value]
    if isinstance(value, str) and value.startswith(("/", "~/", "../")):
        shortened.append(value)
        return Path(value).name
    return value


def _told_base(card: Card) -> str:
    if card.base is None:
        return "made from a config"
    return f"{card.base.reference}, weights `{card.base.weights_sha256[:16]}`"


def _told_quantizer(sid: dict[str, Any]) -> str:
    quantizer = sid.get("quantizer") or {}
    if not quantizer:
        return ""
    return (
        f"{quantizer.get('name', 'rq-kmeans')}, {quantizer.get('num_levels')} × {quantizer.get('codebook_size')} codes;"
    )


def _table(evaluation: EvalResult) -> list[str]:
    summary = evaluation.summary
    mode = evaluation.modes[0]
    lines = [
        f"{summary['split'].capitalize()} targets of {summary['users']:,} users of {summary['dataset']}, ranked "
        f"against the whole catalogue, {mode}:",
        "",
        f"| | {' | '.join(_METRICS)} |",
        f"|---|{'---|' * len(_METRICS)}",
    ]
    for model in evaluation.models:
        values = [summary["modes"][mode][model][metric] for metric in _METRICS]
        told = (f"{one['value']:.4f} ± {one['se']:.4f}" for one in values)
        lines.append(f"| {model} | {' | '.join(told)} |")
    return lines


def _eval_results(plan: Plan) -> list[Any]:
    from huggingface_hub import EvalResult as HubResult

    evaluation = plan.evaluation
    if evaluation is None:
        return []
    summary, mode, model = evaluation.summary, evaluation.modes[0], evaluation.models[0]
    return [
        HubResult(
            task_type="other",
            task_name="Next-item recommendation",
            dataset_type=summary["dataset"],
            dataset_name=f"{summary['dataset']}, {summary['split']}, {mode}",
            metric_type=metric.lower(),
            metric_name=metric,
            metric_value=round(evaluation.value(model, metric), 4),
        )
        for metric in _METRICS
    ]
