"""U3: questions of general knowledge, each with its right answer and wrong ones, from a file of the deployer's.

JSON Lines, one question a line: {"question": "...", "right": "...", "wrong": ["...", ...]}. Nothing here is about a
person; whoever brings a public benchmark brings it in this form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ml.digests import verify_file
from ml.errors import EmptySetError, SpecError
from ml.specs import FileRef


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question, its right answer, and at least one wrong one."""

    question: str
    right: str
    wrong: tuple[str, ...]


def read_choices(ref: FileRef) -> tuple[ChoiceQuestion, ...]:
    """Read and check such a file.

    Raises:
        DigestMismatchError: it is not the file that was named.
        SpecError: a line is no question, or its right answer is among the wrong ones; the message names the line.
        EmptySetError: there is no question.
    """
    path = Path(ref.path)
    verify_file(path, ref.sha256)
    lines = path.read_text(encoding="utf-8").splitlines()
    found = tuple(_question(line, number) for number, line in enumerate(lines, 1) if line.strip())
    if not found:
        raise EmptySetError("the file of general questions holds none")
    return found


def _question(line: str, number: int) -> ChoiceQuestion:
    where = f"general questions, line {number}"
    try:
        document = json.loads(line)
    except ValueError as exc:
        raise SpecError(f"{where}: not JSON") from exc
    if not isinstance(document, dict) or set(document) != {"question", "right", "wrong"}:
        raise SpecError(f"{where}: an object with question, right and wrong is expected")
    wrong = document["wrong"]
    if not isinstance(wrong, list) or not wrong:
        raise SpecError(f"{where}: wrong is an array with at least one answer")
    texts = [document["question"], document["right"], *wrong]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise SpecError(f"{where}: question and answers are texts")
    if document["right"] in wrong:
        raise SpecError(f"{where}: the right answer stands among the wrong ones")
    return ChoiceQuestion(document["question"], document["right"], tuple(wrong))
