"""WikiText files: one article after the other, told apart by their titles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

TITLE = re.compile(r" = (?!= ).*(?<! =) = \s*")  # sections have " = = " and more on each side


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Yield the articles of a WikiText file; joined, they are the file.

    A title is a line ``= Title =`` with an empty line, or an end of the file, on each side. Legends
    of tables and formulas look like titles and stand among other lines. What is empty before the
    first title belongs to the first article.
    """
    article: list[str] = []
    before, held = "", ""  # `held` is the last line, whose next one is not known yet
    for line in [*lines, ""]:
        if held and is_title(before, held, line) and any(part.strip() for part in article):
            yield "".join(article)
            article = []
        article.append(held)
        before, held = held, line
    if any(part.strip() for part in article):
        yield "".join(article)


def is_title(before: str, line: str, after: str) -> bool:
    return not before.strip() and not after.strip() and TITLE.fullmatch(line) is not None
