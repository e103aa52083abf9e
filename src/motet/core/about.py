"""What a docstring says, by its paragraphs."""

from __future__ import annotations

import inspect


def paragraphs(doc: str | None) -> dict[str, str]:
    """A docstring by paragraph: "summary", each "Word:" paragraph in lower case, "notes"."""
    summary, *others = inspect.cleandoc(doc or "").split("\n\n")
    parts = {"summary": summary}
    for paragraph in others:
        word, colon, text = paragraph.partition(":")
        if colon and word.isalpha():
            parts[word.lower()] = " ".join(text.split())
        else:
            parts["notes"] = f"{parts.get('notes', '')}\n\n{paragraph}".strip()
    return parts


def one_line(text: str | None) -> str:
    """The first paragraph of a docstring as one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
