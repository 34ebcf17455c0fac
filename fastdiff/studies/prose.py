"""Paragraphs of the documents that studies write."""

import textwrap


def paragraph(text: str) -> str:
    """Set a text, however it was broken, in lines of at most 118 characters."""
    return textwrap.fill(" ".join(text.split()), 118, break_on_hyphens=False, break_long_words=False)
