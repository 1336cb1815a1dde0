"""The merges of a byte-pair encoding as pairs of ids.

In a tokenizer's JSON each merge spells out both its parts, and the vocabulary what they make: two thirds of a
small file's tokenizer are text that the pairs of ids imply.
"""

from __future__ import annotations

import json

import numpy as np

_PLANES = 4  # bytes of an id
MOST_MERGES_BYTES = 2 * _PLANES << 20
# Each merge may double a piece, so a forged file could ask for any memory; 250,000 real pieces have 2 M characters.
_MOST_CHARACTERS = 4 << 20
MOST_TEXT_BYTES = 32 << 20


def split_merges(text: str) -> tuple[str, bytes]:
    """A tokenizer's JSON without what its merges imply, and the merges as planes of bytes (docs/FORMAT.md).

    Where that does not give back the same JSON, or the tokenizer has no merges, the text as it is, and no bytes.
    """
    content = json.loads(text)
    model = content["model"]
    if model["type"] != "BPE" or not model["merges"]:
        return text, b""
    ids = model["vocab"]
    try:
        pairs = np.array([[ids[left], ids[right]] for left, right in model["merges"]], dtype=">u4")
    except (KeyError, ValueError):  # a merge of a piece that is none, or one written as a single string
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
    """The tokenizer's whole JSON; raises `ValueError` where the bytes are not merges of its pieces, or too many."""
    if len(text) > MOST_TEXT_BYTES:
        raise ValueError("it is too long to have merges beside it")
    content = json.loads(text)
    model = content["model"]
    count, rest = divmod(len(planes), 2 * _PLANES)
    if rest or len(planes) > MOST_MERGES_BYTES or model["merges"]:
        raise ValueError("its merges are not pairs")
    pairs = np.frombuffer(planes, np.uint8).reshape(_PLANES, -1).T.copy().view(">u4").reshape(2, count).T.tolist()
    pieces: dict[int, str] = {index: piece for piece, index in model["vocab"].items()}
    number = characters = 0
    for left, right in pairs:
        while number in pieces:
            number += 1
        if left not in pieces or right not in pieces:
            raise ValueError("a merge of pieces that are not there before it")
        characters += len(pieces[left]) + len(pieces[right])
        if characters > _MOST_CHARACTERS:
            raise ValueError("its merges make pieces of no sensible length")
        pieces[number] = pieces[left] + pieces[right]
        model["merges"].append([pieces[left], pieces[right]])
    model["vocab"] = {piece: index for index, piece in sorted(pieces.items())}
    return _dump(content)


def _dump(content: object) -> str:
    """JSON as the `tokenizers` library writes it."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
