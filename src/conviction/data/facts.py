"""Single facts, as weight editing needs them: a statement about a subject, cut before its last words.

From a topic (``facts.jsonl``), from a user's rows, or in the formats of
CounterFact (Meng et al. 2202.05262) and of EasyEdit (2308.07269).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conviction.errors import InputError

FACT_FIELDS = (
    "subject",
    "target",
    "target_true",
    "paraphrases",
    "neighbours",
    "requested_rewrite",
    "paraphrase_prompts",
    "neighborhood_prompts",
    "target_new",
    "ground_truth",
    "rephrase_prompt",
    "locality_prompt",
    "locality_ground_truth",
    "attribute",
)
"""Fields of rows that hold facts, besides ``prompt``: ours, CounterFact's, EasyEdit's."""

SLOT = "{}"


@dataclass(frozen=True)
class Neighbour:
    """A statement about something else, and how it truly ends: what an edit must leave alone."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """One statement to be changed.

    prompt_template  the statement up to its last words, ``{}`` in the place of the subject
    target           how it is to end; target_true: how it ended before, None: not given
    paraphrases      the same statement in other words, subject included, cut before the same end
    """

    id: str
    prompt_template: str
    subject: str
    target: str
    target_true: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()

    @property
    def prompt(self) -> str:
        """The statement with its subject, up to its last words."""
        return self.prompt_template.replace(SLOT, self.subject)


def fact_from_row(id: str, row: Mapping[str, Any]) -> Fact:
    """A row with ``prompt``, ``subject``, ``target``; maybe ``target_true``, ``paraphrases``, ``neighbours``.

    Or one of CounterFact's or EasyEdit's. Raises InputError for a missing text, or a subject that
    does not occur in its prompt.
    """
    rewrite = row.get("requested_rewrite")
    if isinstance(rewrite, Mapping):
        true = _text(rewrite.get("target_true", {}), "str")
        return Fact(
            id=id,
            prompt_template=_template(_text(rewrite, "prompt"), _text(rewrite, "subject")),
            subject=_text(rewrite, "subject"),
            target=_text(rewrite.get("target_new", {}), "str"),
            target_true=true,
            paraphrases=_texts(row, "paraphrase_prompts"),
            neighbours=tuple(Neighbour(prompt, true) for prompt in _texts(row, "neighborhood_prompts")),
        )
    if row.get("target") is None and row.get("attribute") is not None:  # known_1000 of ROME's authors
        row = {"prompt": row.get("prompt"), "subject": row.get("subject"), "target": row.get("attribute")}
    if row.get("target") is None and row.get("target_new") is not None:
        row = _from_easyedit(row)
    if row.get("instead") is not None:
        raise InputError("a fact's field 'instead' is called 'target_true' now", hint="rename it")
    neighbours = row.get("neighbours") or ()
    if not all(isinstance(n, Mapping) for n in neighbours):
        raise InputError("'neighbours' is not a list of objects", hint='give {"prompt": …, "answer": …} for each')
    return Fact(
        id=id,
        prompt_template=_template(_text(row, "prompt"), _text(row, "subject")),
        subject=_text(row, "subject"),
        target=_text(row, "target"),
        target_true=_text(row, "target_true") if row.get("target_true") is not None else None,
        paraphrases=_texts(row, "paraphrases"),
        neighbours=tuple(Neighbour(_text(n, "prompt"), _text(n, "answer")) for n in neighbours),
    )


def _from_easyedit(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """One fact of EasyEdit's data sets, in our names."""
    beside = {"prompt": row.get("locality_prompt"), "answer": row.get("locality_ground_truth")}
    again = row.get("rephrase_prompt")
    return {
        "prompt": row.get("prompt"),
        "subject": row.get("subject"),
        "target": row.get("target_new"),
        "target_true": row.get("ground_truth"),
        "paraphrases": [again] if again is not None else [],
        "neighbours": [beside] if beside["prompt"] is not None else [],
    }


def _template(prompt: str, subject: str) -> str:
    """The prompt with ``{}`` for its subject, however it was written."""
    if prompt.count(SLOT) == 1:
        return prompt
    if prompt.count(subject) == 1:
        return prompt.replace(subject, SLOT)
    result = "several times" if subject in prompt else "not"
    raise InputError(
        f"the subject {subject[:40]!r} occurs {result} in its prompt {prompt[:60]!r}",
        hint="write {} once, where the subject stands, or the subject itself",
    )


def _text(row: Any, field: str) -> str:
    value = row.get(field) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"a fact's '{field}' is {value!r}", hint="give it a text: prompt, subject and target")
    return value.strip()


def _texts(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    values = row.get(field) or ()
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
        raise InputError(f"'{field}' is not a list of texts", hint="give a list, or leave it out")
    return tuple(v.strip() for v in values)
