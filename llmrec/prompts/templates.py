"""Template files: YAML with Jinja strings, checked as a whole before any use and compiled to typed pieces.

A folder holds one ``<task>.yaml`` per task and ``chat_fallback.yaml``. Values of items and users never pass through
Jinja: each variable is rendered as an unguessable marker and the result is split at the markers. That is why a template
may print a variable or ask whether it is there (``{% if second %}``), and may not filter, join or slice it.
"""

from __future__ import annotations

import difflib
import hashlib
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from llmrec.config import Config, build_config, parse_yaml
from llmrec.errors import ConfigError, InputError
from llmrec.prompts.task import Task
from llmrec.prompts.tasks import TASKS

CHAT_FALLBACK = "chat_fallback"
_MARK = secrets.token_hex(16)
_ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


class Phrasing(Config):
    """One way to put a task into words."""

    prompt: str
    """Jinja text before the answer (the user's turn of a chat)."""
    answer: str = Field(min_length=1)
    """Jinja text that carries loss."""
    system: str | None = None
    """The system message of a chat; None leaves it to the checkpoint's chat template."""


class TaskTemplate(Config):
    """The file of one task."""

    form: Literal["plain", "chat"]
    """Plain text that the model continues, or a chat with the tokenizer's chat template."""
    phrasings: tuple[Phrasing, ...] = Field(min_length=1)
    """Training chooses one per row by a seeded hash; evaluation and serving use the first."""
    closing: str | None = Field(default=None, min_length=1)
    """Of tasks that think: the words between the thought and the item; when they are written, the thought is over."""


class FallbackTemplate(Config):
    """The chat template of tokenizers that have none."""

    chat_template: str = Field(min_length=1)
    """A Hugging Face chat template over ``messages`` and ``eos_token``."""


@dataclass(frozen=True)
class Piece:
    """A literal of the template, or the place of a variable."""

    literal: str = ""
    variable: str = ""


class _Marked:
    """What a template sees instead of a value: prints a marker, is false where the value is empty."""

    def __init__(self, name: str, present: bool) -> None:
        self._name = name
        self._present = present

    def __str__(self) -> str:
        return mark(self._name)

    def __bool__(self) -> bool:
        return self._present


def mark(name: str) -> str:
    """The marker of a variable or a message; no text can contain it by accident or intent."""
    return f"\x02{_MARK}:{name}\x03"


def split_marks(text: str) -> tuple[Piece, ...]:
    """Undo `mark`: literals and variables in order, empty literals left out."""
    first, *rest = text.split(f"\x02{_MARK}:")
    pieces = [Piece(literal=first)]
    for part in rest:
        name, _, literal = part.partition("\x03")
        pieces += [Piece(variable=name), Piece(literal=literal)]
    return tuple(piece for piece in pieces if piece.literal or piece.variable)


def compile_text(source: str, present: Mapping[str, bool]) -> tuple[Piece, ...]:
    """Render `source` to pieces; `present` says of each variable whether its value is non-empty, for ``{% if %}``."""
    values = {name: _Marked(name, found) for name, found in present.items()}
    return split_marks(_ENVIRONMENT.from_string(source).render(values))


@dataclass(frozen=True)
class TemplateSet:
    """All templates of a folder, checked.

    Attributes:
        files: file name to content, as read; `save` writes them beside a checkpoint.
        tasks: templates by task name.
        kinds: the task classes that the templates were checked against, by name.
        chat_fallback: chat template for tokenizers without one.
    """

    files: Mapping[str, str]
    tasks: Mapping[str, TaskTemplate]
    kinds: Mapping[str, type[Task]]
    chat_fallback: str

    @property
    def hash(self) -> str:
        """SHA-256 over file names and contents, in name order."""
        digest = hashlib.sha256()
        for name in sorted(self.files):
            for part in (name, self.files[name]):
                encoded = part.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()

    @classmethod
    def load(cls, folder: Path, tasks: Mapping[str, type[Task]] = TASKS) -> TemplateSet:
        """Read and check ``*.yaml`` of `folder`.

        Raises:
            InputError: there is no such folder, or a file is not YAML.
            ConfigError: with every problem of every file: a missing or unknown file, unknown keys, no phrasing, unknown
                variables, a filter on a value, an answer given away in its prompt.
        """
        if not folder.is_dir():
            raise InputError(f"the template folder {folder} does not exist", hint="see `llmrec recipes ls`")
        files = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
        return cls.from_files(files, tasks, source=str(folder))

    @classmethod
    def from_files(
        cls, files: Mapping[str, str], tasks: Mapping[str, type[Task]] = TASKS, *, source: str = "templates"
    ) -> TemplateSet:
        """Build from file contents; see `load` for what raises."""
        known = {f"{name}.yaml" for name in (*tasks, CHAT_FALLBACK)}
        optional = {f"{name}.yaml" for name, task in tasks.items() if task.thinks}
        problems = [f"{name}: missing" for name in sorted(known - files.keys() - optional)]
        for name in sorted(files.keys() - known):
            problems.append(f"{name}: no task has this name; {_near(name, known)}")
        templates: dict[str, TaskTemplate] = {}
        fallback = ""
        for name in sorted(known & files.keys()):
            stem = name.removesuffix(".yaml")
            values = parse_yaml(files[name], source=name)
            if not isinstance(values, dict):
                problems.append(f"{name}: holds no mapping of settings")
                continue
            try:
                if stem == CHAT_FALLBACK:
                    fallback = build_config(FallbackTemplate, values, source=name).chat_template
                    problems += [f"{name}: {line}" for line in _fallback_problems(fallback)]
                else:
                    templates[stem] = build_config(TaskTemplate, values, source=name)
                    problems += [f"{name}: {line}" for line in _task_problems(templates[stem], tasks[stem])]
            except ConfigError as error:
                problems += [f"{name}: {line}" for line in error.problems]
        if problems:
            raise ConfigError(f"The templates of {source} have problems:", problems, hint="see prompts/README.md")
        return cls(MappingProxyType(dict(files)), MappingProxyType(templates), MappingProxyType(dict(tasks)), fallback)

    def save(self, folder: Path) -> None:
        """Write the files as they were read into `folder` (made if missing)."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")


def _task_problems(template: TaskTemplate, task: type[Task]) -> Iterator[str]:
    if task.name == "behaviour" and (len(template.phrasings) > 1 or template.form != "plain"):
        yield "needs exactly one phrasing of the form plain: training, evaluation and serving share its ids"
    if task.thinks:
        yield from _thought_problems(template)
    elif template.closing is not None:
        yield "closing belongs to tasks that think; this one does not"
    for number, phrasing in enumerate(template.phrasings, start=1):
        place = f"phrasing {number}"
        if phrasing.system is not None and template.form == "plain":
            yield f"{place}: a system message needs form: chat"
        if template.form == "plain" and phrasing.prompt.endswith(" "):
            yield f"{place}: the prompt ends with a space; begin the answer with it, as tokens hold leading spaces"
        yield from _text_problems(f"{place}, prompt", phrasing.prompt, task.prompt_variables, task.answer_variables)
        yield from _text_problems(
            f"{place}, system", phrasing.system or "", task.prompt_variables, task.answer_variables
        )
        allowed = task.answer_variables | (task.prompt_variables if task.worded_answer else frozenset())
        problems = list(_text_problems(f"{place}, answer", phrasing.answer, allowed, frozenset()))
        yield from problems
        if not problems and not task.worded_answer:
            pieces = compile_text(phrasing.answer, dict.fromkeys(allowed, True))
            if [piece.variable for piece in pieces if piece.variable or piece.literal.strip()] != sorted(allowed):
                yield f"{place}, answer: must be {{{{ {' '.join(sorted(allowed))} }}}} alone, or it cannot be read back"


def _thought_problems(template: TaskTemplate) -> Iterator[str]:
    """What serving relies on: markers that are the same words in every row."""
    if template.form != "plain":
        yield "needs the form plain: a thought continues the serving prompt"
    if template.closing is None:
        yield "needs closing, the words that end a thought"
    elif any(mark in template.closing for mark in ("{{", "{%")):
        yield "closing: holds Jinja; a thought ends with the same words everywhere"
    openings = {phrasing.prompt for phrasing in template.phrasings}
    if len(openings) > 1 or any(mark in opening for opening in openings for mark in ("{{", "{%")):
        yield "prompt: needs the same plain words in every phrasing: they are what begins a thought when serving"


def _text_problems(place: str, source: str, allowed: Collection[str], answers: Collection[str]) -> Iterator[str]:
    """Problems of one Jinja string; `answers` are variables that only the answer may use."""
    try:
        tree = _ENVIRONMENT.parse(source)
    except TemplateSyntaxError as error:
        yield f"{place}: line {error.lineno}: {error.message}"
        return
    unknown = sorted(meta.find_undeclared_variables(tree) - set(allowed))
    for name in unknown:
        if name in answers:
            yield f"{place}: {name!r} is part of the answer; the prompt would give it away"
        else:
            yield f"{place}: unknown variable {name!r}; {_near(name, allowed)}"
    plain = {id(name) for name in _printed_or_tested(tree)}
    misused = sorted({node.name for node in tree.find_all(nodes.Name) if id(node) not in plain} & set(allowed))
    for name in misused:
        yield f"{place}: {name!r} may be printed or tested with if, not filtered, combined or assigned"
    if not unknown and not misused:
        try:
            compile_text(source, dict.fromkeys(allowed, True))
        except TemplateError as error:  # what only shows in rendering, such as a step outside the sandbox
            yield f"{place}: {error}"


def _printed_or_tested(tree: nodes.Template) -> Iterator[nodes.Name]:
    for output in tree.find_all(nodes.Output):
        for child in output.nodes:
            yield from _names(child, (nodes.CondExpr,))
    conditions: list[nodes.If | nodes.CondExpr] = [*tree.find_all(nodes.If), *tree.find_all(nodes.CondExpr)]
    for condition in conditions:
        yield from _names(condition.test, (nodes.And, nodes.Or, nodes.Not))


def _names(node: nodes.Node | None, through: tuple[type[nodes.Node], ...]) -> Iterator[nodes.Name]:
    if isinstance(node, nodes.Name):
        yield node
    elif isinstance(node, nodes.CondExpr) and nodes.CondExpr in through:
        yield from _names(node.expr1, through)
        yield from _names(node.expr2, through)
    elif isinstance(node, through):
        for child in node.iter_child_nodes():
            yield from _names(child, through)


def _fallback_problems(source: str) -> Iterator[str]:
    try:
        unknown = meta.find_undeclared_variables(_ENVIRONMENT.parse(source)) - {"messages", "eos_token"}
    except TemplateSyntaxError as error:
        yield f"line {error.lineno}: {error.message}"
        return
    for name in sorted(unknown):
        yield f"unknown variable {name!r}; known here: messages, eos_token"


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known)) or 'nothing'}"
