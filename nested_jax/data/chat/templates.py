"""Templates: a conversation as one text, cut where its answers begin and end.

The parts are tokenized on their own. So what a model is asked in an evaluation has the tokens that
it was trained on, and the tokens of an answer are known by their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from nested_jax.errors import require

ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str  # of ROLES
    content: str


class Part(NamedTuple):
    """A stretch of the text of a conversation; `answer`: it is what an assistant wrote."""

    text: str
    answer: bool


class Template(NamedTuple):
    """How turns are written: ``HEAD GAP CONTENT CLOSE``, with `between` after each but the last."""

    heads: dict[str, str]  # by role
    gap: str
    close: str
    between: str
    stops: tuple[str, ...]  # what ends an answer, beside the end of the document

    def parts(self, messages: Sequence[Message]) -> list[Part]:
        """Return a conversation as parts that alternate: what is given, and an answer."""
        found: list[Part] = []
        given = ""
        for number, message in enumerate(messages):
            given += (self.between if number else "") + self.heads[message.role]
            body = self.gap + message.content + self.close
            if message.role == "assistant":
                found += [Part(given, False), Part(body, True)]
                given = ""
            else:
                given += body
        return [*found, Part(given, False)] if given else found

    def prompt(self, question: str) -> str:
        """Return what a model is given to answer a question."""
        (given, _) = self.parts([Message("user", question), Message("assistant", "")])
        return given.text


TEMPLATES = {
    "turns": Template(
        {"system": "System:", "user": "User:", "assistant": "Assistant:"},
        gap=" ",
        close="",
        between="\n",
        stops=("\nUser:", "\nSystem:"),
    ),
    "question": Template(
        {"system": "Instruction:", "user": "Question:", "assistant": "Answer:"},
        gap=" ",
        close="",
        between="\n",
        stops=("\nQuestion:", "\nInstruction:"),
    ),
    "chatml": Template(
        {role: f"<|im_start|>{role}" for role in ROLES},
        gap="\n",
        close="<|im_end|>",
        between="\n",
        stops=("<|im_end|>",),
    ),
}


def messages_of(row: Any, where: str) -> list[Message]:
    """Return the conversation of a line: ``messages``, or ``question`` and ``answer``.

    Instructions of the system come first, as templates have them.

    Raises:
      ValueError: a line of neither form, or without an answer; what is wrong, with FILE:LINE.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: is a JSON {type(row).__name__}; wants an object")
    if "messages" in row:
        turns = row["messages"]
        require(isinstance(turns, list), f"{where}: messages", turns, "wants a list of turns")
        messages = [message_of(turn, f"{where}: messages[{i}]") for i, turn in enumerate(turns)]
    elif "question" in row and "answer" in row:
        for name in ("question", "answer"):
            require(isinstance(row[name], str), f"{where}: {name}", row[name], "wants a string")
        messages = [Message("user", row["question"]), Message("assistant", row["answer"])]
    else:
        raise ValueError(
            f"{where}: fits no template; wants messages, or question and answer, and has "
            f"{', '.join(map(str, row)) or 'nothing'} (text without answers wants "
            "`python -m nested_jax.data shard`)"
        )
    answers = [m for m in messages if m.role == "assistant" and m.content.strip()]
    require(bool(answers), f"{where}: messages", [m.role for m in messages], "has no answer")
    return sorted(messages, key=lambda message: message.role != "system")


def message_of(turn: Any, where: str) -> Message:
    right = isinstance(turn, dict) and {"role", "content"} <= set(turn)
    require(right, where, turn, "wants {role, content}")
    role, content = turn["role"], turn["content"]
    require(role in ROLES, f"{where}: role", role, f"wants one of {', '.join(ROLES)}")
    require(isinstance(content, str), f"{where}: content", content, "wants a string")
    return Message(role, content)
