"""Questions with answers, as the field's benchmarks hold them, and the prompt they are asked in.

The split between prompt and answer is the token length of the prompt alone, as in the reference code (verification
section 2.2, trap 3); where a tokenizer joins characters across it, the first answer tokens count as prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml.data.collate import EncodedText
from ml.errors import ContextLengthError, EmptySequenceError


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """What stands around a question and its answer.

    With `chat` the tokenizer's own chat template is used, with `system_prompt` and `variables` (a fixed date, say);
    otherwise the four tags.
    """

    user_start: str = "Question: "
    user_end: str = "\n"
    assistant_start: str = "Answer: "
    chat: bool = False
    system_prompt: str = ""
    variables: Mapping[str, str] | None = None

    def prompt_ids(self, tokenizer: Any, question: str) -> list[int]:
        """Token ids of everything before the answer."""
        if self.chat:
            return self._chat(tokenizer, self._messages(question), answering=True)
        return list(tokenizer(self._asked(question), add_special_tokens=True)["input_ids"])

    def full_ids(self, tokenizer: Any, question: str, answer: str) -> list[int]:
        """Token ids of question and answer, without the end that `encode_answer` appends."""
        if self.chat:
            messages = [*self._messages(question), {"role": "assistant", "content": answer}]
            return self._chat(tokenizer, messages, answering=False)
        return list(tokenizer(self._asked(question) + answer, add_special_tokens=True)["input_ids"])

    def _asked(self, question: str) -> str:
        return f"{self.system_prompt}{self.user_start}{question}{self.user_end}{self.assistant_start}"

    def _messages(self, question: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": question}]

    def _chat(self, tokenizer: Any, messages: list[dict[str, str]], *, answering: bool) -> list[int]:
        # Rendered first: what `tokenize=True` returns differs between versions of the library.
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answering, **(self.variables or {})
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_answer(tokenizer: Any, template: PromptTemplate, question: str, answer: str, *, context: int) -> EncodedText:
    """Tokenise a question with its answer; labels are the answer's tokens and the end-of-sequence token.

    Raises:
        ContextLengthError: longer than the model takes. Nothing is cut: half an answer has another loss.
        EmptySequenceError: the answer has no token of its own.
    """
    ids = template.full_ids(tokenizer, question, answer)
    if ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    if len(ids) > context:
        raise ContextLengthError(f"a question with its answer has {len(ids)} tokens, the model takes {context}")
    first = max(1, len(template.prompt_ids(tokenizer, question)))
    if len(ids) - first < 2:
        raise EmptySequenceError("an answer has no token of its own; check the template and the tokenizer")
    return EncodedText(tuple(ids), first, ())
