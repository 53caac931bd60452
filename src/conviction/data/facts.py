"""Single facts, as weight editing needs them: a statement about a subject, cut before its last words.

From a topic (``facts.jsonl``), from a user's rows, or in the formats of
CounterFact (Meng et al. 2202.05262), of EasyEdit (2308.07269), KnowEdit and ZsRE.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conviction.errors import InputError

_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "src"),
    "subject": ("subject",),
    "target": ("target", "target_new", "alt", "attribute"),  # attribute: known_1000 of ROME's authors
    "target_true": ("target_true", "ground_truth", "answers"),
    "paraphrases": ("paraphrases", "rephrase_prompt", "rephrase", "paraphrase_prompts"),
    "beside": ("locality_prompt", "loc"),
    "truth": ("locality_ground_truth", "loc_ans"),
}
"""Parts of a fact → what they are called: by us, by EasyEdit, in ZsRE, by CounterFact."""
FACT_FIELDS = (
    *dict.fromkeys(name for names in _NAMES.values() for name in names),
    "neighbours",
    "locality",
    "requested_rewrite",
    "neighborhood_prompts",
)
"""Fields of rows that hold facts: ours, CounterFact's, EasyEdit's (with KnowEdit and ZsRE)."""

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


def is_fact(columns: Collection[str]) -> bool:
    """Whether rows with these columns hold facts."""
    parts = ("prompt", "subject", "target")
    return "requested_rewrite" in columns or all(not set(_NAMES[part]).isdisjoint(columns) for part in parts)


def fact_from_row(id: str, row: Mapping[str, Any]) -> Fact:
    """A row with ``prompt``, ``subject``, ``target``; maybe ``target_true``, ``paraphrases``, ``neighbours``.

    Or one of CounterFact's, EasyEdit's, KnowEdit's or ZsRE's. Raises InputError, in the row's own names, for
    a missing text, or a subject that does not occur in its prompt.
    """
    rewrite = row.get("requested_rewrite")
    if isinstance(rewrite, Mapping):
        inner = {name: rewrite.get(name) for name in ("prompt", "subject")}
        for name in ("target_new", "target_true"):
            value = rewrite.get(name)
            inner[name] = value.get("str") if isinstance(value, Mapping) else value
        prompts = _texts(row, "neighborhood_prompts")
        row = {**inner, "paraphrase_prompts": row.get("paraphrase_prompts")}
        row["neighbours"] = [{"prompt": prompt, "answer": inner["target_true"]} for prompt in prompts]
    if row.get("instead") is not None:
        raise InputError("a fact's field 'instead' is called 'target_true' now", hint="rename it")
    prompt, subject, true = _name(row, "prompt"), _text(row, "subject"), _name(row, "target_true")
    return Fact(
        id=id,
        prompt_template=_template(_text(row, prompt), subject, prompt),
        subject=subject,
        target=_text(row, _name(row, "target")),
        target_true=_text(row, true) if row.get(true) is not None else None,
        paraphrases=_texts(row, _name(row, "paraphrases")),
        neighbours=_neighbours(row),
    )


def _name(row: Mapping[str, Any], part: str) -> str:
    """What a row calls a part of a fact: the first name that holds something, else the first that is there."""
    names = _NAMES[part]
    there = [name for name in names if name in row]
    return next((name for name in there if row[name] is not None), (there or [*names])[0])


def _neighbours(row: Mapping[str, Any]) -> tuple[Neighbour, ...]:
    """Ours, EasyEdit's one, ZsRE's question from another data set, KnowEdit's lists by kind."""
    given = row.get("neighbours") or ()
    if not all(isinstance(n, Mapping) for n in given):
        raise InputError("'neighbours' is not a list of objects", hint='give {"prompt": …, "answer": …} for each')
    result = [Neighbour(_text(n, "prompt"), _text(n, "answer")) for n in given]
    beside = _name(row, "beside")
    if row.get(beside) is not None:
        result.append(Neighbour(_text(row, beside).removeprefix("nq question: "), _text(row, _name(row, "truth"))))
    kinds = row.get("locality") or {}
    if not isinstance(kinds, Mapping):
        raise InputError("'locality' is not an object", hint='give {"a kind": [{"prompt": …, "ground_truth": …}]}')
    for kind in kinds.values():
        listed = [kind] if isinstance(kind, Mapping) else kind or ()
        result += [Neighbour(_text(one, "prompt"), _text(one, "ground_truth")) for one in listed]
    return tuple(result)


def _template(prompt: str, subject: str, name: str) -> str:
    """The prompt with ``{}`` for its subject, however it was written."""
    if prompt.count(SLOT) == 1:
        return prompt
    if prompt.count(subject) == 1:
        return prompt.replace(subject, SLOT)
    result = "several times" if subject in prompt else "not"
    raise InputError(
        f"the subject {subject[:40]!r} occurs {result} in its {name} {prompt[:60]!r}",
        hint="write {} once, where the subject stands, or the subject itself",
    )


def _text(row: Any, field: str) -> str:
    """A text; of a list of ways to say the same, as KnowEdit has them, the first."""
    value = given = row.get(field) if isinstance(row, Mapping) else None
    while isinstance(value, Sequence) and value and not isinstance(value, str):
        value = value[0]
    if not isinstance(value, str) or not value.strip():
        names = ", ".join(name if name == part else f"{part} ({name})" for part, name in _called(row).items())
        raise InputError(f"a fact's '{field}' is {given!r}", hint=f"give it a text: {names}")
    return value.strip()


def _called(row: Any) -> dict[str, str]:
    return {part: _name(row if isinstance(row, Mapping) else {}, part) for part in ("prompt", "subject", "target")}


def _texts(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    values = row.get(field) or ()
    values = [values] if isinstance(values, str) and field.startswith("rephrase") else values  # one, in EasyEdit
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
        raise InputError(f"'{field}' is not a list of texts", hint="give a list, or leave it out")
    return tuple(v.strip() for v in values)
