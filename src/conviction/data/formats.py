"""Rows with the fields that TRL knows, in all the forms that they come in.

Prompts and answers may be texts, lists of messages, or transcripts as in
Anthropic's HH data; the prompt may be what both answers begin with. Texts are
taken as they are; a row that cannot be used is an error, never dropped.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast, get_args, get_type_hints

from conviction.core.protocols import Message, chat
from conviction.core.segmentation import unspaced
from conviction.data.assembly import assemble, is_transcript, opened
from conviction.data.columns import (
    EMPTY,
    FIELDS,
    MEDIA,
    NO_COLUMNS,
    PROMPT_NAMES,
    Kind,
    Layout,
    Row,
    RowError,
    find_layout,
)
from conviction.data.facts import Fact, fact_from_row, is_fact
from conviction.data.training_data import Document, Example, Messages, PreferencePair, TrainingData
from conviction.errors import InputError, nearest

ROLES: tuple[str, ...] = get_args(get_type_hints(Message)["role"])
FORMATS = (
    "a row holds chosen + rejected (with or without prompt), prompt + completion, messages, text, "
    "or prompt + subject + target (a fact); "
    "prompt, completion, chosen and rejected may be texts or lists of messages"
)
_ADD = "add the field 'prompt', or name its column: --columns prompt=COLUMN"
_OWN = '; columns of other names: --columns prompt=Question,chosen="Better answer",rejected=…'
_TRANSCRIPT = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ANSWER_MARK = re.compile(
    r"(?:答案?|回答|答复|回复|助手|助理|アシスタント|答え|คำตอบ|ตอบ|ผู้ช่วย|\bAI|\b[Aa]ssistant|\b[Aa]nswer|\bA)\s*[:：]\s*"
)
_SHOWN = 3


def training_data_from_rows(
    rows: Sequence[Row],
    *,
    name: str,
    where: str = "",
    numbers: Sequence[int] | None = None,
    columns: Mapping[str, str] = NO_COLUMNS,
    records: Mapping[int, int] | None = None,
) -> TrainingData:
    """Rows with the fields that TRL knows; which ones decides what they become.

    ::

        chosen, rejected, maybe prompt   pairs      without prompt: what both begin with is the prompt
        prompt, completion               examples
        messages                         examples   the last turn is the answer
        text                             documents
        prompt, subject, target          facts      also as CounterFact and EasyEdit write them

    ``where`` and ``numbers`` are the file and the line of each row for errors and
    ids; the row's index from 1 if not given. ``columns`` maps fields to columns of
    other names ('' for a field that is to be left out), ``records`` lines to records
    where they are not the same. Raises InputError for rows that cannot be used: all
    of them are counted, the first few named.
    """
    where = where or name
    numbers = range(1, len(rows) + 1) if numbers is None else numbers
    if not rows:
        raise InputError(f"{where}: holds no rows", hint=FORMATS)
    layout = find_layout(filled_columns(rows), columns, where)
    field, parse = find_format(layout, where)
    media = [m for m in MEDIA if m in layout.has]
    parts: list[Any] = []
    faults: dict[tuple[str, str], list[int]] = {}
    for number, row in zip(numbers, rows, strict=True):
        try:
            if media:
                refuse_media(row, media)
            parts.append(parse(f"{name}:{number}", row))
        except RowError as error:
            faults.setdefault(layout.named(error).args, []).append(number)
    if faults:
        raise _summary(faults, where, records or {})
    parted: dict[str, Any] = {field: tuple(parts)}
    return TrainingData(name, notes=layout.notes(field), **parted)


def _fact(name: str, row: Row) -> Fact:
    try:
        return fact_from_row(name, row)
    except InputError as error:
        raise RowError(error.message, error.hint) from error


def filled_columns(rows: Iterable[Row]) -> list[str]:
    """Their fields. One that is null in all rows is not there: readers fill up with nulls."""
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if value is not None))


def _summary(faults: Mapping[Any, Sequence[int]], where: str, records: Mapping[int, int]) -> InputError:
    """One error for all rows: ``file:line: problem (4 rows: 3, 7, 9, …); also …``."""
    ((problem, hint), numbers), *others = faults.items()
    labels = {n: f"{n} (record {records[n]})" if n in records else str(n) for many in faults.values() for n in many}
    message = f"{where}:{labels[numbers[0]]}: {problem}"
    message += f" ({_count([labels[n] for n in numbers])})" if len(numbers) > 1 else ""
    for (also, _), more in others[:_SHOWN]:
        message += f"; also {also} ({_count([labels[n] for n in more])})"
    return InputError(message, hint=hint)


def _count(numbers: Sequence[str]) -> str:
    shown = ", ".join(numbers[:_SHOWN])
    return f"{len(numbers)} row{'s' * (len(numbers) > 1)}: {shown}{', …' * (len(numbers) > _SHOWN)}"


def find_format(layout: Layout, where: str) -> tuple[Kind, Callable[[str, Row], Any]]:
    """Which field of TrainingData the rows fill, and how one row is parsed.

    Raises InputError if no format has these columns: which were found, and which formats there are.
    """
    has, columns = layout.has, layout.columns
    if has >= {"chosen", "rejected"}:
        return "pairs", lambda name, row: _different_pair(name, assemble(row, layout), prompted="prompt" in has)
    if has >= {"prompt", "completion", "label"}:
        raise InputError(
            f"{where}: fields prompt, completion, label are unpaired preferences, one judged answer a row",
            hint="pairs are needed: put a good and a bad answer to one prompt into a row as prompt, chosen, rejected",
        )
    if not has & {"chosen", "rejected"}:
        if is_fact(has):
            return "facts", lambda name, row: _fact(name, layout.fields(row))
        if has >= {"prompt", "completion"}:
            return "examples", lambda name, row: _completion(name, assemble(row, layout))
        if "messages" in has:
            return "examples", lambda name, row: _dialogue(name, assemble(row, layout))
        if "text" in has:
            return "documents", lambda name, row: Document(name, _given(layout.fields(row), "text"))
    missing = "'chosen'" if "rejected" in has else "'rejected'" if "chosen" in has else "that can be trained on"
    guess = ""
    for column in columns:
        if column not in FIELDS:
            # stricter than `nearest`: 'question' is not a misspelt 'completion'
            close = difflib.get_close_matches(column.strip().lower(), set(FIELDS) - has, n=1, cutoff=0.7)
            guess = guess or (f"did you mean '{close[0]}'? found '{column}'; " if close else "")
    raise InputError(
        f"{where}: no field {missing}; found: {', '.join(columns[:12]) or 'none'}", hint=guess + FORMATS + _OWN
    )


def refuse_media(row: Row, media: Sequence[str] = MEDIA) -> None:
    """Raise RowError for a row that holds more than text."""
    for field in media:
        if row.get(field) not in EMPTY:
            hint = "only text is trained on: remove these rows, or the field if the texts stand without it"
            raise RowError(f"field '{field}': rows with images, sound or tools are not supported", hint)


def _different_pair(name: str, row: Row, *, prompted: bool) -> PreferencePair:
    """A pair that says something."""
    if row.get("chosen") == row.get("rejected") and row.get("chosen"):
        raise RowError("chosen and rejected are the same", "remove these rows: they say nothing")
    pair = parse_pair(name, row, prompted=prompted)
    if pair.chosen == pair.rejected:
        raise RowError("chosen and rejected end in the same answer", "remove these rows: they say nothing")
    return pair


def parse_pair(name: str, row: Row, *, prompted: bool) -> PreferencePair:
    """A pair, whatever it says. Raises RowError.

    prompted  some row has a prompt, so that all must; else it is what the answers share
    """
    chosen, rejected = _given(row, "chosen"), _given(row, "rejected")
    prompt = _given(row, "prompt") if prompted or row.get("prompt") is not None else None
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowError("one of chosen and rejected is a text, the other a list", "write both in the same way")
    if not isinstance(chosen, str):
        start, ends = _shared_turns(_messages(chosen, "chosen"), _messages(rejected, "rejected"), prompt)
    elif is_transcript(chosen) or is_transcript(rejected):
        start, ends = _shared_turns(_transcript(chosen, "chosen"), _transcript(rejected, "rejected"), None)
    elif prompt is None:
        _refuse_other_prompt(row)
        start, ends = _shared_text(chosen, rejected)
    else:
        start, ends = _prompt(row), (chosen, rejected)
        if isinstance(prompt, str) and is_transcript(prompt):
            ends = (chosen.strip(), rejected.strip())  # the space after 'Assistant:'
    return PreferencePair(name, _ends_with_user(opened(row, start)), *ends)


def _refuse_other_prompt(row: Row) -> None:
    """A prompt under another name must not be passed over for what the answers happen to share."""
    for field in (f for f, value in row.items() if f not in FIELDS and value is not None):
        if difflib.get_close_matches(field.lower(), ("prompt", *PROMPT_NAMES), cutoff=0.85):
            hint = f"did you mean 'prompt'? rename the field, or give --columns prompt={field}"
            raise RowError(f"no field 'prompt', but '{field}'", hint)


def _completion(name: str, row: Row) -> Example:
    start, answer = _prompt(row), _given(row, "completion")
    if not isinstance(answer, str):
        answer = _one_answer(_messages(answer, "completion"), "completion")
    elif isinstance(row["prompt"], str) and is_transcript(row["prompt"]):
        answer = answer.strip()
    return Example(name, _ends_with_user(opened(row, start)), answer)


def _dialogue(name: str, row: Row) -> Example:
    turns = _messages(_given(row, "messages"), "messages")
    answer = _one_answer(turns[-1:], "messages")
    return Example(name, _ends_with_user(opened(row, turns[:-1])), answer)


def _given(row: Row, field: str) -> Any:
    """A field that must be there: a text with something in it, or a list that is not empty."""
    value = row.get(field)
    if value is None:
        raise RowError(f"field '{field}' is missing", f"remove these rows or add the field; {FORMATS}")
    if isinstance(value, str):
        return _text(value, field)
    if not isinstance(value, list) or field == "text":
        kind = type(value).__name__
        raise RowError(f"field '{field}' is of type {kind}, not a text", "write it in quotes, or as a list of messages")
    if not value:
        raise RowError(f"field '{field}' is empty", "remove these rows or fill the field")
    return value


def _text(value: str, field: str) -> str:
    if not value.strip():
        raise RowError(f"field '{field}' is empty", "remove these rows or fill the field")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = ascii(value[error.start]).strip("'")
            raise RowError(f"field '{field}' holds {half}, half a character", "write the text as UTF-8") from None
    return value


def _messages(value: Sequence[Any], field: str) -> Messages:
    return tuple(_message(turn, field) for turn in value)


def _message(turn: Any, field: str) -> Message:
    form = 'a message is {"role": "user" or "assistant" or "system", "content": "a text"}'
    if not isinstance(turn, dict):
        raise RowError(f"field '{field}': a list that holds something else than messages", form)
    role, content = turn.get("role"), turn.get("content")
    if turn.get("tool_calls") or role in ("tool", "function"):
        raise RowError(f"field '{field}': a message calls or answers a tool", "tools are not supported: remove the row")
    for key, value in (("role", role), ("content", content)):
        if value is None:
            old = "from → role, value → content, human → user, gpt → assistant; " if "from" in turn else ""
            raise RowError(f"field '{field}': a message has no '{key}'", old + form)
    if role not in ROLES:
        guess = nearest(str(role), ROLES)
        raise RowError(f"field '{field}': unknown role '{role}'", f"{guess}roles: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise RowError(f"field '{field}': the content of a message is not a text", f"images are not supported; {form}")
    return Message(role, _text(content, field))


def _prompt(row: Row) -> Messages:
    """The field ``prompt``: a text is one user turn, or a transcript that ends before the answer."""
    prompt = _given(row, "prompt")
    if not isinstance(prompt, str):
        return _messages(prompt, "prompt")
    return _transcript(prompt, "prompt") if is_transcript(prompt) else chat(prompt)


def _ends_with_user(turns: Messages) -> Messages:
    if not turns or turns[-1].role != "user":
        what = f"the turn before the answer is {turns[-1].role}'s" if turns else "no turn comes before the answer"
        raise RowError(f"{what}, it must be the user's", "end the prompt with what the user says")
    return turns


def _one_answer(turns: Messages, field: str) -> str:
    if turns[-1].role != "assistant":
        last = turns[-1].role
        raise RowError(f"field '{field}': the last turn is {last}'s, not the assistant's", "end it with an answer")
    if len(turns) > 1:
        rule = "one answer of the assistant must follow what chosen and rejected share, or the field prompt"
        raise RowError(f"field '{field}': {len(turns)} turns after the prompt", rule)
    return turns[0].content


def _shared_turns(chosen: Messages, rejected: Messages, prompt: Any) -> tuple[Messages, tuple[str, str]]:
    """The turns before the answers, and the answers, of two message lists.

    As in TRL, a prompt given as text beside whole conversations is a copy of what they begin with.
    """
    start: Messages = ()
    if prompt is not None:
        start = _prompt({"prompt": prompt})
    if start and chosen[0].role != "assistant" and (isinstance(prompt, str) or chosen[: len(start)] == start):
        start = ()
    if not start:
        differ = (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b)
        shared = next(differ, min(len(chosen), len(rejected)) - 1)
        start, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    return start, (_one_answer(chosen, "chosen"), _one_answer(rejected, "rejected"))


def _shared_text(chosen: str, rejected: str) -> tuple[Messages, tuple[str, str]]:
    """The prompt that two texts begin with, cut between words, and the two ends.

    TRL cuts at the first character that differs, within a word if it so happens.
    """
    a, b = chosen.rstrip(), rejected.rstrip()
    low = _shared_length(a, b)
    attached = "" if a[low - 1 : low].isspace() else "".join(a[:low].rsplit(maxsplit=1)[-1:])
    if attached and unspaced(attached + a[low : low + 1] + b[low : low + 1]):
        mark = list(_ANSWER_MARK.finditer(a, 0, low))[-1:]
        if not mark:
            problem = "no prompt: nothing such as 答： marks in texts without spaces where the answers begin"
            raise RowError(problem, f"{_ADD}; or write such a mark before both answers")
        low = mark[0].end()
    elif low and not a[low - 1].isspace() and not (a[low : low + 1].isspace() and b[low : low + 1].isspace()):
        low -= len(a[:low].rsplit(maxsplit=1)[-1])
    if not a[:low].strip():
        raise RowError("no prompt: chosen and rejected do not begin with the same words", _ADD)
    return chat(a[:low].strip()), (chosen[low:].lstrip(), rejected[low:].lstrip())


def _shared_length(a: str, b: str) -> int:
    """How many characters two texts begin with in common, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def _transcript(text: str, field: str) -> Messages:
    """Turns of a transcript, without the spaces around them; who speaks twice in a row has one turn.

    The end of a prompt, an ``Assistant:`` with nothing after it, is no turn.
    """
    if not is_transcript(text):
        raise RowError(f"field '{field}' is no transcript, the other is", "write both as Human: … Assistant: …")
    _, *parts = _TRANSCRIPT.split(text)
    turns: list[tuple[str, str]] = []
    for speaker, message in zip(parts[::2], map(str.strip, parts[1::2]), strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{message}".strip())
        else:
            turns.append((role, message))
    if field == "prompt" and turns[-1] == ("assistant", ""):
        turns.pop()
    return tuple(Message(cast("Any", role), _text(message, field)) for role, message in turns)
