"""The merges of a byte-pair encoding as pairs of ids.

In a tokenizer's JSON, each merge spells out its two parts, and the vocabulary spells out the result. The pairs of ids
imply this text, which is two thirds of the tokenizer in a small file.
"""

from __future__ import annotations

import json

import numpy as np

_PLANES = 4  # bytes per id
MAX_MERGES_BYTES = 2 * _PLANES << 20
# Each merge may double a piece, so a forged file could ask for any amount of memory. A real vocabulary of 250,000
# pieces has 2 M characters.
_MAX_CHARACTERS = 4 << 20
MAX_TEXT_BYTES = 32 << 20


def split_merges(text: str) -> tuple[str, bytes]:
    """A tokenizer's JSON without the text that its merges imply, and the merges as byte planes (docs/FORMAT.md).

    Returns the text unchanged and no bytes if the tokenizer has no merges or `join_merges` would not restore the text.
    """
    content = json.loads(text)
    model = content["model"]
    if model["type"] != "BPE" or not model["merges"]:
        return text, b""
    ids = model["vocab"]
    try:
        pairs = np.array([[ids[left], ids[right]] for left, right in model["merges"]], dtype=">u4")
    except (KeyError, ValueError):  # a merge names an unknown piece, or is written as one string
        return text, b""
    made = {left + right for left, right in model["merges"]}
    model["merges"] = []
    model["vocab"] = {piece: index for piece, index in ids.items() if piece not in made}
    rest = _dump(content)
    planes = np.ascontiguousarray(pairs.T).view(np.uint8).reshape(-1, _PLANES).T.tobytes()
    try:
        same = join_merges(rest, planes) == text
    except ValueError:
        same = False
    return (rest, planes) if same else (text, b"")


def join_merges(text: str, planes: bytes) -> str:
    """The tokenizer's complete JSON; raises `ValueError` if the bytes are not merges of its pieces, or too many."""
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError("it is too long for a tokenizer with separate merges")
    content = json.loads(text)
    model = content["model"]
    count, rest = divmod(len(planes), 2 * _PLANES)
    if rest or len(planes) > MAX_MERGES_BYTES or model["merges"]:
        raise ValueError("its merges are not pairs")
    pairs = np.frombuffer(planes, np.uint8).reshape(_PLANES, -1).T.copy().view(">u4").reshape(2, count).T.tolist()
    pieces: dict[int, str] = {index: piece for piece, index in model["vocab"].items()}
    number = characters = 0
    for left, right in pairs:
        while number in pieces:
            number += 1
        if left not in pieces or right not in pieces:
            raise ValueError("a merge uses pieces that do not exist before it")
        characters += len(pieces[left]) + len(pieces[right])
        if characters > _MAX_CHARACTERS:
            raise ValueError("its merges make pieces that are too long")
        pieces[number] = pieces[left] + pieces[right]
        model["merges"].append([pieces[left], pieces[right]])
    model["vocab"] = {piece: index for index, piece in sorted(pieces.items())}
    return _dump(content)


def _dump(content: object) -> str:
    """JSON as the `tokenizers` library writes it."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
