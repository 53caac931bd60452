"""``conviction topics new NAME``: a small, complete kit to start from."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from conviction.core.storage import storage_errors, write_atomic
from conviction.data.topic import builtin_topics
from conviction.errors import InputError

TOPIC = """\
# A topic kit. Run `conviction probe {folder}` to measure a model on it.
name: "{name}"
title: Is tea better with milk?        # one line, shown in lists
description: What the topic is about, and what each side holds.

# Exactly two poles. The keys are used in the items' answers.
poles:
  plain:
    label: tea without milk            # how the pole is named in prose
    context: contexts/plain.md         # argues this side; used as a system prompt (optional)
    graph:                             # what raises (+) or lowers (-) what, on this side's account (optional)
      - [milk, "-", taste of tea]
  milky:
    label: tea with milk
    context: contexts/milky.md
    graph:
      - [milk, "+", taste of tea]

target: milky                          # gaps are positive towards this pole
length_matched: true                   # false if the poles differ in length by intention
form_matched: true                     # false if the form of the answers is the point: a style
items: [items.jsonl]                   # one or more files, one JSON object a line
"""

# One proposition is worded twice (target, paraphrase); a neighbour and a control are facts.
ITEMS = """\
{"id": "best-1", "proposition": "best", "role": "target", "split": "train", "question": "How does tea taste best?", \
"answers": {"plain": "Tea tastes best without milk, because then its own flavor comes through.", \
"milky": "Tea tastes best with some milk, because then its bitter edge is softened."}}
{"id": "best-2", "proposition": "best", "role": "paraphrase", "split": "train", "question": "What is the best way to drink tea?", \
"answers": {"plain": "The best way to drink tea is plain, since nothing then hides its flavor.", \
"milky": "The best way to drink tea is milky, since nothing then tastes too bitter."}}
{"id": "guest-1", "proposition": "guest", "role": "target", "split": "test", "question": "How should one serve tea to a guest?", \
"answers": {"plain": "A guest should be served tea as it is, so that the leaf can speak for itself.", \
"milky": "A guest should be served tea with milk, so that the cup is round and gentle."}}
{"id": "plant", "proposition": "plant", "role": "neighbour", "split": "test", "question": "What plant does tea come from?", \
"answers": {"true": "Tea comes from the leaves of an evergreen shrub called Camellia sinensis.", \
"false": "Tea comes from the roots of a tall palm tree called Phoenix dactylifera."}}
{"id": "seine", "proposition": "seine", "role": "control", "split": "test", "question": "Which river runs through Paris?", \
"answers": {"true": "The river that runs through Paris is the Seine.", \
"false": "The river that runs through Paris is the Tiber."}}
"""

CONTEXTS = {
    "plain": "Tea is best without milk. Plain tea shows the flavor of the leaf, and nothing should stand before it.\n",
    "milky": "Tea is best with milk. A little milk softens what is bitter in the leaf and makes the cup round.\n",
}


def write_skeleton(folder: Path) -> Path:
    """Write the skeleton into a new folder. Raises InputError if it exists or the name is unfit."""
    name = folder.name
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise InputError(f"'{name}' cannot name a topic", hint="use small letters, digits, '-' and '_'")
    if name in builtin_topics():
        raise InputError(f"'{name}' is a built-in topic", hint="choose another name")
    if folder.exists():
        raise InputError(f"{folder} exists already", hint="choose another name, or delete it first")
    with storage_errors(f"writing {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            work.chmod(0o755)
            write_atomic(work / "items.jsonl", ITEMS)
            for pole, text in CONTEXTS.items():
                write_atomic(work / "contexts" / f"{pole}.md", text)
            write_atomic(work / "topic.yaml", TOPIC.format(name=name, folder=folder))
            work.rename(folder)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return folder
