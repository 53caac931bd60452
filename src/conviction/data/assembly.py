"""What comes before an answer, put together from the columns that hold it: prompt, input, messages, history, system.

An answer's words never become the prompt where a prompt is there, and nothing that an answer depends on is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from conviction.core.protocols import Message
from conviction.data.columns import BESIDE, EMPTY, Layout, Row, RowError
from conviction.data.training_data import Messages

__all__ = ["assemble", "is_transcript", "opened"]

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool", "function_call": "tool"}
_TURNS = ("prompt", "chosen", "rejected", "completion", "messages", "history")
_BOTH = "make them agree, or leave one out: --columns {}="


def assemble(row: Row, layout: Layout) -> dict[str, Any]:
    """A row as it is parsed: under our names, with ``role`` and ``content`` in messages, the whole prompt in one.

    Raises RowError for columns that contradict each other, or that an answer depends on in a form that is unknown.
    """
    fields = layout.fields(row)
    for name in _TURNS:
        if isinstance(fields.get(name), Mapping | list):
            fields[name] = _turns(fields[name], name)
    for name in BESIDE:
        if _filled(fields, name):
            hint = f"if answers depend on it, read it behind the prompt: --columns input={name}; else --columns {name}="
            raise RowError(f"field '{name}': what stands beside the prompt is not read", hint)
    if layout.names.get("chosen") and layout.names["chosen"] not in {"chosen", "chosen_response"}:
        _split_chosen(fields)
    if _is_whole(fields.get("chosen")):
        _check_whole(fields)
    elif "chosen" in fields and "messages" in layout.has:
        _ask_messages(fields)
    if _filled(fields, "input"):
        _join_input(fields)
    return fields


def opened(row: Row, start: Messages) -> Messages:
    """The turns before an answer, behind those of the fields ``system`` and ``history``."""
    history = tuple(_message(turn) for turn in row["history"]) if _filled(row, "history") else ()
    if not _filled(row, "system"):
        return history + start
    system = _text(row, "system")
    if start[:1] and start[0].role == "system":
        if start[0].content.strip() != system.strip():
            raise RowError("field 'system' and the conversation's own system turn differ", _BOTH.format("system"))
        return start[:1] + history + start[1:]
    return Message("system", system), *history, *start


def is_transcript(text: str) -> bool:
    """Whether it is written as in Anthropic's HH data: ``Human: … Assistant: …``."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def _filled(row: Row, name: str) -> bool:
    value = row.get(name)
    return (value.strip() if isinstance(value, str) else value) not in EMPTY


def _text(row: Row, name: str) -> str:
    if not isinstance(row[name], str):
        raise RowError(f"field '{name}' is of type {type(row[name]).__name__}, not a text", "write it in quotes")
    return str(row[name])


def _turns(value: Any, name: str) -> Any:
    """Messages with ``role`` and ``content``; one that stands alone is a list of one."""
    if isinstance(value, Mapping):
        return [_turn(value)] if {"role", "from"} & value.keys() else value
    if name == "history" and all(isinstance(t, Sequence) and len(t) == 2 and not isinstance(t, str) for t in value):
        roles = ("user", "assistant")
        return [{"role": r, "content": text} for turn in value for r, text in zip(roles, turn, strict=True)]
    return [_turn(turn) for turn in value]


def _turn(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    role, content = (  # Arrow fills keys that only other rows have with nulls
        next((turn[key] for key in keys if turn.get(key) is not None), None)
        for keys in (("role", "from"), ("content", "value"))
    )
    if role is None or content is None:
        return turn
    return {**turn, "role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": content}


def _message(turn: Any) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
    if role not in ("user", "assistant") or not isinstance(content, str) or not content.strip():
        hint = 'give messages of user and assistant, or pairs: [["a question", "its answer"], …]'
        raise RowError("field 'history' holds something else than turns", hint)
    return Message("user" if role == "user" else "assistant", content)


def _is_whole(answer: Any) -> bool:
    """Whether an answer is written with the conversation before it."""
    if isinstance(answer, str):
        return is_transcript(answer)
    return isinstance(answer, list) and len(answer) > 1 and _role(answer[0]) != "assistant"


def _role(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, Mapping) else None


def _content(turn: Any) -> str:
    content = turn.get("content") if isinstance(turn, Mapping) else turn
    return _flat(content) if isinstance(content, str) else ""


def _flat(text: str) -> str:
    return " ".join(text.split())


def _split_chosen(fields: dict[str, Any]) -> None:
    """A conversation whose last turn is the better answer, beside a text that is the worse one."""
    turns = fields.get("chosen")
    if isinstance(turns, list) and turns and isinstance(fields.get("rejected"), str):
        if _role(turns[-1]) != "assistant" or not isinstance(turns[-1].get("content"), str):
            raise RowError("field 'chosen' does not end with the assistant's turn", "end it with the better answer")
        fields["prompt"], fields["chosen"] = turns[:-1], turns[-1]["content"]


def _check_whole(fields: dict[str, Any]) -> None:
    """What stands beside whole conversations has to say what they say."""
    chosen = fields["chosen"]
    texts = [_flat(chosen)] if isinstance(chosen, str) else [_content(turn) for turn in chosen[:-1]]
    last = texts[-1].rpartition("Human:")[2].partition("Assistant:")[0].strip()
    prompt = fields.get("prompt")
    given = _flat(prompt) if isinstance(prompt, str) else ""
    if given and given not in " ".join(texts) and last not in given:
        raise RowError("field 'prompt' says something else than the conversation in 'chosen'", _BOTH.format("prompt"))
    turns = fields.get("messages")
    if _filled(fields, "messages"):
        asked = [_content(turn) for turn in turns if _role(turn) == "user"] if isinstance(turns, list) else [str(turns)]
        if not all(text in " ".join(texts) for text in asked):
            problem = "field 'messages' says something else than the conversation in 'chosen'"
            raise RowError(problem, _BOTH.format("messages"))
    if _filled(fields, "history"):
        raise RowError("field 'history' stands beside whole conversations", _BOTH.format("history"))


def _ask_messages(fields: dict[str, Any]) -> None:
    """The conversation beside two answers is their prompt; it may end with the better one."""
    turns, prompt = fields.get("messages"), fields.get("prompt")
    if not _filled(fields, "messages"):
        if not prompt:
            raise RowError("field 'messages' is missing", "remove these rows or add the field")
        return
    if isinstance(turns, list):
        answer = next(iter(fields["chosen"]), None) if isinstance(fields["chosen"], list) else fields["chosen"]
        if _role(turns[-1]) == "assistant" and _content(turns[-1]) == _content(answer):
            turns = turns[:-1]
        asked = [_content(turn) for turn in turns]
        copies = [*asked, " ".join(asked)] if isinstance(prompt, str) else [turns]
        if prompt and (_flat(prompt) if isinstance(prompt, str) else prompt) not in copies:
            raise RowError("fields 'prompt' and 'messages' say different things", _BOTH.format("messages"))
    fields["prompt"] = turns


def _join_input(fields: dict[str, Any]) -> None:
    """Behind the prompt, in a line of its own, as in Alpaca's data; not where the prompt holds it already."""
    extra, prompt = _text(fields, "input"), fields.get("prompt")
    whole = _is_whole(fields.get("chosen"))
    if not (whole or _filled(fields, "prompt")):
        return  # the missing prompt is the fault
    known = fields["chosen"] if whole else prompt or ""
    earlier = known if isinstance(known, str) else " ".join(map(_content, known))
    if _flat(extra) in _flat(earlier):
        return
    if whole or not isinstance(prompt, str) or is_transcript(prompt):
        raise RowError("field 'input' stands beside a whole conversation", _BOTH.format("input"))
    fields["prompt"] = f"{prompt}\n{extra}"
