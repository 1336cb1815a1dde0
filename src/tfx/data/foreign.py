"""The tokenizer of a model folder of `transformers`, and what its tokens are for."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import tokenizers

from tfx.data.token_roles import Roles
from tfx.errors import UserError

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
# Where the names of special tokens are; the later file is the newer one.
NAMES = ("special_tokens_map.json", "tokenizer_config.json")


def read_foreign(folder: Path) -> tuple[str, Roles]:
    """The text of tokenizer.json, and the roles of its tokens. Raises `UserError` for files that are no tokenizer,

    where a role that the model needs has no token, or where the tokenizer puts other tokens around a text than models
    here do: an end token behind a source; nothing, or a begin token, before a text to continue.
    """
    text = _tokenizer_text(folder)
    file = folder / TOKENIZER
    backend = _backend(file, text)
    generation = read_generation(folder)
    names: dict[str, Any] = {}
    for name in NAMES:
        if (folder / name).is_file():
            names |= read_object(folder / name)
    family = _family(generation)
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
        raise UserError(f"{folder / CONFIG}: eos_token_id is missing: no output would ever end")
    if family == "seq2seq" and begin is None:
        raise UserError(f"{folder / CONFIG}: decoder_start_token_id is missing: no output could begin")
    expected: dict[str, tuple[list[list[int | None]], list[int | None]]] = {
        "seq2seq": ([[]], [end]),
        "lm": ([[], [begin]], []),
        "encoder": ([[begin]], [end]),
    }
    starts, ending = expected[family]
    if before not in starts or behind != ending:
        framed = " ".join(str(backend.id_to_token(i)) if i is not None else "text" for i in (*before, None, *behind))
        raise UserError(f"{file}: its post_processor makes '{framed}' of a text, which is not supported")
    unknown = _unknown(backend, text, names.get("unk_token"))
    begins = family == "lm" and bool(before)
    return text, Roles(begin, end, pad, unknown, _never(generation), begins)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `UserError` where there is none."""
    try:
        text = file.read_text(encoding="utf-8")
        # Written by Python's json for infinite numbers, which JSON does not have.
        value = json.loads(re.sub(r"\b-?Infinity\b|\bNaN\b", "null", text))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object")
    return value


def read_generation(folder: Path) -> dict[str, Any]:
    """The content of generation_config.json over that of config.json, where earlier versions kept the same fields."""
    own = read_object(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    return {**read_object(folder / CONFIG), **{name: value for name, value in own.items() if value is not None}}


def _tokenizer_text(folder: Path) -> str:
    file = folder / TOKENIZER
    if not file.is_file():
        return _converted(folder)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def sentencepieces(folder: Path) -> list[Path]:
    """The files of sentencepiece in a folder."""
    return sorted(folder.glob("*.spm")) + sorted(folder.glob("*.model"))


def _converted(folder: Path) -> str:
    """The text of a tokenizer.json made of the files of sentencepiece, as `transformers` makes it for their class."""
    files = sentencepieces(folder)
    names = ", ".join(file.name for file in files)
    if len(files) > 1:
        raise UserError(f"{folder} has {names} and no {TOKENIZER}: a tokenizer for each side is not supported")
    if not files:
        raise UserError(
            f"{folder} has no {TOKENIZER}: make one where the tokenizer was made, with save_pretrained of its fast "
            "tokenizer"
        )
    if any(importlib.util.find_spec(module) is None for module in ("transformers", "sentencepiece")):
        raise UserError(
            f"{folder} has no {TOKENIZER}, only {names}: to convert that, pip install 'path/to/tfx[sentencepiece]'"
        )
    import sentencepiece
    import transformers

    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        backend = found.backend_tokenizer
        # It makes an empty tokenizer where the class of the folder does not read this file.
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(files[0]))
        if any(backend.token_to_id(pieces.id_to_piece(index)) is None for index in range(pieces.get_piece_size())):
            raise ValueError("its tokens are not those of the file")
        return str(backend.to_str())
    except Exception as error:  # of any kind: it has a reader for each class
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(
            f"{folder} has no {TOKENIZER}, only {names}, which the `tokenizers` library has no like for ({reason})"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(before)


def _family(config: dict[str, Any]) -> str:
    """Whether the model translates, continues or only reads a text."""
    if config.get("is_encoder_decoder"):
        return "seq2seq"
    return "encoder" if config.get("model_type") in ("bert", "roberta", "xlm-roberta") else "lm"


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
