"""The text of every token of a vocabulary, for people to read."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from netspectra.errors import InputRefused
from netspectra.live.samples import tokenizer
from netspectra.weight import Source

__all__ = ["vocabulary"]


def vocabulary(source: Source, tokens: Any = None) -> tuple[list[str] | None, str]:
    """The text of every token id, and why there is none where there is none.

    Args:
        source: whose own tokenizer is taken: of its folder, or of a GGUF file's metadata.
        tokens: instead, a tokenizer (``tokenizers`` or ``transformers``), or the texts themselves.
    """
    if tokens is None:
        if source.root is None:
            return (
                None,
                "a live model, or a checkpoint at an address, brings no tokenizer (give tokens=): ids are shown",
            )
        if find_spec("transformers") is None:
            return (
                None,
                "a tokenizer needs transformers (pip install 'netspectra[transformers]'): ids are shown",
            )
        try:
            tokens = tokenizer(source)
        except InputRefused as wrong:
            return None, f"{wrong}; ids are shown"
    if isinstance(tokens, list | tuple):
        return [str(token) for token in tokens], ""
    if hasattr(tokens, "convert_ids_to_tokens"):
        pieces = tokens.convert_ids_to_tokens(list(range(len(tokens))))
    elif hasattr(tokens, "id_to_token"):
        pieces = [tokens.id_to_token(place) for place in range(tokens.get_vocab_size())]
    else:
        raise InputRefused(f"tokens={type(tokens).__name__}: give a tokenizer or the text of every token")
    return [_shown(tokens, place, piece) for place, piece in enumerate(pieces)], ""


def _shown(tokenizer: Any, place: int, piece: str | None) -> str:
    """A token as text: bytes and spaces decoded, the mark of a word's continuation kept."""
    if piece is None:
        return f"#{place}"
    return piece if piece.startswith("##") else tokenizer.decode([place]) or piece
