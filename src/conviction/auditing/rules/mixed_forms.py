"""PD102 mixed-forms: rows written in more than one way

## What it does
Tells rows of plain texts, of message lists and of transcripts (`Human: … Assistant: …`)
apart, and finds sets that hold more than one of them.

## Why it is bad
Each form takes another way through a trainer: TRL decides by the first row whether a
data set is conversational and whether its prompt is explicit, and treats all others
alike. Rows of the minority then get a second chat template, or none: the model
learns the difference in form, not the preference.

## Example
    {"prompt": "Tea?", "chosen": "Yes, please.", "rejected": "No."}
    {"prompt": [{"role": "user", "content": "Tea?"}], "chosen": [{"role": "assistant", "content": "Yes."}], …}

## What to do
Write all rows in one form. `conviction` itself reads each of them rightly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from conviction.auditing.row import AuditRow
from conviction.auditing.rule import SHOWN, AuditContext, Rule, RuleFinding
from conviction.core.wording import counted


class _Check:
    def __init__(self, _: AuditContext) -> None:
        self.forms: dict[str, list[int]] = {}

    def observe(self, row: AuditRow, /) -> None:
        self.forms.setdefault(row.form, []).append(row.number)

    def findings(self) -> Iterable[RuleFinding]:
        if len(self.forms) < 2:
            return
        commonest = max(self.forms, key=lambda form: len(self.forms[form]))
        others = {form: rows for form, rows in self.forms.items() if form != commonest}
        rows = sorted(number for numbers in others.values() for number in numbers)
        message = ", ".join(f"{counted(len(numbers), 'row')} of {form}" for form, numbers in others.items())
        yield RuleFinding(
            message=f"most rows are {commonest}, but there are {message}",
            advice="write all rows in one form",
            rows=rows,
            evidence=[{"row": number, "form": form} for form, numbers in others.items() for number in numbers[:SHOWN]],
        )

    def metrics(self) -> Mapping[str, Any]:
        return {form: len(rows) for form, rows in self.forms.items()}


RULE = Rule(code="PD102", name="mixed-forms", since="0.1.0", begin=_Check)
