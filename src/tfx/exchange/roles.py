"""Which token of a foreign tokenizer is for what, from the files of its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from tfx.data.roles import Roles
from tfx.errors import UserError
from tfx.exchange.folder import CONFIG, TOKENIZER, Folder


def read_roles(folder: Folder, text: str, family: str) -> Roles:
    """The roles of the tokens of a tokenizer.json for a model of a family (``seq2seq``, ``lm``, ``encoder``).

    Raises `UserError` where a role that the family needs has no token, or where the tokenizer puts other tokens around
    a text than the family does: an end token behind a source; nothing, or a begin token, before a text to continue.
    """
    backend = _backend(folder.path / TOKENIZER, text)
    generation, names = folder.generation, folder.tokenizer_config
    before, behind = _frame(backend)
    ends = generation.get("eos_token_id")
    end = ends[0] if isinstance(ends, list) and ends else ends
    pad = _named(backend, generation.get("pad_token_id"), names.get("pad_token"))
    begin: int | None
    if family == "encoder":
        begin, end = before[0] if before else None, behind[0] if behind else None
    elif family == "seq2seq":
        begin = generation.get("decoder_start_token_id")
        begin = pad if begin is None else begin
    else:
        begin = generation.get("bos_token_id")
    end = _named(backend, end, names.get("eos_token"))
    if family != "encoder" and end is None:
        raise UserError(f"{folder.path / CONFIG}: eos_token_id is missing: no output would ever end")
    if family == "seq2seq" and begin is None:
        raise UserError(f"{folder.path / CONFIG}: decoder_start_token_id is missing: no output could begin")
    expected: dict[str, tuple[list[list[int]], list[int]]] = {
        "seq2seq": ([[]], [end]) if end is not None else ([[]], []),
        "lm": ([[], [begin]] if begin is not None else [[]], []),
        "encoder": ([before], behind),
    }
    starts, ending = expected[family]
    if before not in starts or behind != ending:
        framed = " ".join(str(backend.id_to_token(i)) if i is not None else "text" for i in (*before, None, *behind))
        raise UserError(
            f"{folder.path / TOKENIZER}: its post_processor makes '{framed}' of a text, which is not supported"
        )
    return Roles(
        begin=begin,
        end=end,
        pad=pad,
        unknown=_unknown(backend, text, names.get("unk_token")),
        never=_never(generation),
        begins_texts=family == "lm" and bool(before),
    )


def _backend(file: Path, text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"{file} is not a tokenizer.json of the `tokenizers` library: {error}") from error


def _frame(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and behind a text."""
    backend.no_truncation()
    backend.no_padding()
    whole = backend.encode("a", add_special_tokens=True).ids
    bare = backend.encode("a", add_special_tokens=False).ids
    extra = len(whole) - len(bare)
    for start in range(extra + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return whole, []


def _named(backend: tokenizers.Tokenizer, index: Any, name: Any) -> int | None:
    """The token of a role: by its number, else by its name, which may be a record."""
    if type(index) is int:
        return index
    text = name.get("content") if isinstance(name, dict) else name
    return backend.token_to_id(text) if isinstance(text, str) else None


def _unknown(backend: tokenizers.Tokenizer, text: str, name: Any) -> int | None:
    """The token that the tokenizer's own model gives for what it does not know, else the one of that name."""
    model = json.loads(text)["model"]
    if type(model.get("unk_id")) is int:
        return int(model["unk_id"])
    if isinstance(model.get("unk_token"), str):
        return backend.token_to_id(model["unk_token"])
    # A byte-level model knows every text; its "unknown token" is one by name alone.
    return None if model["type"] == "BPE" else _named(backend, None, name)


def _never(generation: dict[str, Any]) -> tuple[int, ...]:
    words = [word for word in generation.get("bad_words_ids") or [] if isinstance(word, list) and len(word) == 1]
    return tuple(sorted({int(i) for i in [*(word[0] for word in words), *(generation.get("suppress_tokens") or [])]}))
