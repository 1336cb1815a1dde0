"""Tokenizers of the `tokenizers` library: trained on the training split, or given as a file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from tfx.config.schema import TokenizerConfig
from tfx.data.foreign import CONFIG, TOKENIZER, read_foreign, read_object
from tfx.data.token_roles import Roles
from tfx.errors import UserError
from tfx.system.stderr import silent_stderr

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)
NO_TOKEN = -1
# In place of the end of a token: it ends inside a character.
INSIDE = -1
# Beside the tokenizer.json of a run whose tokenizer came with a model.
ROLES = "tokenizer.roles.json"
# Names of the same tokens in tokenizers of other tools.
_ALIASES = {
    PAD: (PAD, "[PAD]", "<|pad|>"),
    BOS: (BOS, "<s>", "[BOS]", "[CLS]", "<|startoftext|>"),
    EOS: (EOS, "</s>", "[EOS]", "[SEP]", "<|endoftext|>"),
    UNK: (UNK, "[UNK]", "<|unk|>"),
}
# How BPE and unigram models with a byte fallback spell a byte.
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_SMALLEST_BPE = 256 + len(SPECIAL)
# A unigram model spells a space with the first. One in a text is the second inside, which no text holds: Unicode keeps
# it from interchange. Each is three bytes of UTF-8.
SPACE, _TYPED_SPACE = "\u2581", "\ufdd2"
# The library needs up to 300 bytes of memory per character while it works.
_PIECE_CHARACTERS = 1 << 15
_CALL_CHARACTERS = 1 << 20


class Tokenizer:
    """Text to token ids and back.

    ``pad``, ``bos``, ``eos`` and ``unk`` are ids. The first three never appear in decoded text, and text that
    happens to hold their names is ordinary text. ``ends_documents`` is true if an end token follows each document of a
    language model's training text; a single text has none.

    A tokenizer that came with a model has ``roles``, and no token is added to it. Where there is none for a role,
    ``eos`` is the begin token, ``bos`` and ``pad`` are ``eos``, and ``unk`` is -1, which no token has.
    """

    ends_documents = False

    def __init__(self, backend: tokenizers.Tokenizer, roles: Roles | None = None) -> None:
        if roles is None:
            missing = [token for token in SPECIAL if _special_id(backend, token) is None]
            _check_ids(backend)
            if missing:
                backend.add_special_tokens(missing)
        # Another tool's file may set truncation or padding, and "<eos>" in a text must not end it.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend, self.roles = backend, roles
        if roles is None:
            self.pad, self.bos, self.eos, self.unk = (_special_id(backend, token) or 0 for token in SPECIAL)
        else:
            self.pad, self.bos, self.eos, self.unk = _ids_of(roles, backend)
        self._specials = {self.pad, self.bos, self.eos}
        self._encoder = _without_special_names(backend, (self._specials | {self.unk}) - {NO_TOKEN})
        # A tokenizer that prepends a space to a text returns it when decoding.
        probe = backend.decode(backend.encode("x", add_special_tokens=False).ids)
        self._strips_space = probe.startswith(" ")

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str], *, word_initial_space: bool) -> Tokenizer:
        """Trains on ``texts``, which are read twice; ``word_initial_space`` makes a word the same token at the start as
        elsewhere.
        """
        if config.kind == "bpe":
            backend = _train_bpe(config, texts, word_initial_space)
        elif config.kind == "unigram":
            backend = _train_unigram(config, texts)
        else:
            backend = _train_char(config, texts)
        return cls(backend)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads a tokenizer.json, with the roles that lie beside it, or the tokenizer of a folder of transformers.

        Raises `UserError` if it is missing or not one.
        """
        if (path / CONFIG).is_file():
            return cls._named(path / TOKENIZER, *read_foreign(path))
        if not path.is_file():
            raise UserError(f"the tokenizer file {path} {'is not a file' if path.exists() else 'does not exist'}")
        beside = path.with_name(ROLES)
        try:
            roles = Roles.from_dict(read_object(beside)) if beside.is_file() else None
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the tokenizer file {path} cannot be read: {error}") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{beside}: {error}") from error
        return cls._named(path, text, roles)

    @classmethod
    def _named(cls, path: Path, text: str, roles: Roles | None) -> Tokenizer:
        try:
            return cls.from_json(text, roles)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: str, roles: Roles | None = None) -> Tokenizer:
        """The tokenizer that `to_json` wrote, or another tool's with roles; raises `UserError` for any other text."""
        try:
            with silent_stderr():  # where the library panics, it prints a backtrace before Python gets the error
                backend = tokenizers.Tokenizer.from_str(text)
            return cls(backend, roles)
        except BaseException as error:  # the library raises a bare Exception, or panics, which is not even one
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise UserError(f"not a tokenizer.json of the `tokenizers` library: {error}") from error

    def to_json(self) -> str:
        """The library's own format, compact."""
        return self._backend.to_str(pretty=False)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included; of another tool's, gaps between them too."""
        if self.roles is not None:
            return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides how text becomes ids."""
        roles = "" if self.roles is None else json.dumps(self.roles.to_dict(), sort_keys=True)
        return hashlib.sha256((self.to_json() + roles).encode()).hexdigest()

    @property
    def text_start(self) -> list[int]:
        """What a language model's texts begin with: a begin token if the model came with one, else nothing."""
        return [self.bos] if self.roles is not None and self.roles.begins_texts else []

    @property
    def never(self) -> tuple[int, ...]:
        """Ids that no output has, though the model may give them a probability."""
        return () if self.roles is None else self.roles.never

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens; a very long text is encoded in pieces of whole lines."""
        ids: list[list[int]] = [[] for _ in texts]
        # Row and piece of the pieces that begin their text, and of the others.
        begun: list[tuple[int, str]] = []
        continued: list[tuple[int, str]] = []
        characters = 0
        for row, text in enumerate(texts):
            for place, piece in enumerate(_pieces(text)):
                (continued if place else begun).append((row, piece))
                characters += len(piece)
                if characters >= _CALL_CHARACTERS:
                    self._encode_into(ids, begun, continued)
                    begun, continued, characters = [], [], 0
        self._encode_into(ids, begun, continued)
        return ids

    def _encode_into(
        self, ids: list[list[int]], begun: list[tuple[int, str]], continued: list[tuple[int, str]]
    ) -> None:
        for found, encoder in ((begun, self._encoder), (continued, self._continuing if continued else self._encoder)):
            try:
                encodings = encoder.encode_batch_fast([piece for _, piece in found], add_special_tokens=False)
            except TypeError:  # the library's error for a lone surrogate
                raise UserError("a text holds half of a surrogate pair (U+D800 to U+DFFF): it is not UTF-8") from None
            for (row, _), encoding in zip(found, encodings, strict=True):
                ids[row] += encoding.ids

    @cached_property
    def _continuing(self) -> tokenizers.Tokenizer:
        """The tokenizer of a piece that is not the first of its text: it puts no space before it."""
        content = json.loads(self._encoder.to_str())
        content["normalizer"], content["pre_tokenizer"] = map(
            _without_first_space, (content["normalizer"], content["pre_tokenizer"])
        )
        encoder = tokenizers.Tokenizer.from_str(json.dumps(content))
        encoder.encode_special_tokens = True
        return encoder

    def goes_on(self, characters: int) -> bool:
        """Whether a text of this length is encoded in pieces of which only the first may begin with a space."""
        if characters <= 2 * _PIECE_CHARACTERS:
            return False
        content = json.loads(self.to_json())
        return any(part != _without_first_space(part) for part in (content["normalizer"], content["pre_tokenizer"]))

    def spans(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text, and where each token ends: `INSIDE` if the next one has a part of the same character."""
        ids: list[int] = []
        ends: list[int] = []
        begin = 0
        for place, piece in enumerate(_pieces(text)):
            encoding = (self._continuing if place else self._encoder).encode(piece, add_special_tokens=False)
            ids += encoding.ids
            starts = [start for start, _ in encoding.offsets[1:]] + [len(piece)]
            for (_, end), start in zip(encoding.offsets, starts, strict=False):  # an empty text has no token
                ends.append(begin + end if start >= end else INSIDE)
            begin += len(piece)
        return ids, ends

    def unknown_bytes(self, text: str) -> list[int]:
        """UTF-8 bytes of the characters of each unknown token of a text, in order."""
        counts: list[int] = []
        for place, piece in enumerate(_pieces(text)):
            encoding = (self._continuing if place else self._encoder).encode(piece, add_special_tokens=False)
            spans = zip(encoding.ids, encoding.offsets, strict=True)
            counts += [len(piece[start:end].encode()) for token, (start, end) in spans if token == self.unk]
        return counts

    @cached_property
    def mistakes_sign(self) -> bool:
        """Whether it takes the sign by which it spells a space (U+2581), in a text, for a space."""
        ids = self.encode([SPACE])[0]
        return self.unk not in ids and not self.decode(ids).strip()

    def token_bytes(self, token_id: int) -> int:
        """UTF-8 bytes of the text of a token at the start of a text; a token may be part of a character.

        An unknown token has none, because it does not say which characters it stands for.
        """
        if token_id == self.unk:
            return 0
        text, piece = self.decode([token_id]), self.token(token_id)
        if "\ufffd" not in text or "\ufffd" in piece:
            return len(text.encode())
        # Part of a character: one byte, or one per letter of a byte-level piece.
        return 1 if _BYTE.fullmatch(piece) else len(piece) - (self._strips_space and piece.startswith("Ġ"))

    @property
    def kind(self) -> str:
        """Its kind in words: byte-level BPE, BPE, unigram, WordPiece, words or characters."""
        content = json.loads(self.to_json())
        model, text = content["model"]["type"], json.dumps(content["pre_tokenizer"])
        if model == "BPE":
            return "byte-level BPE" if '"ByteLevel"' in text else "BPE"
        if model == "WordLevel":
            return "characters" if '"Isolated"' in text else "words"
        return {"Unigram": "unigram"}.get(model, model)

    @property
    def changes(self) -> list[str]:
        """What it changes in a text before encoding (lower case, composed forms), by the library's names."""
        return _normalizers(json.loads(self.to_json())["normalizer"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; padding, begin and end tokens are left out."""
        text = self._backend.decode([i for i in ids if i not in self._specials], skip_special_tokens=False)
        return text.removeprefix(" ") if self._strips_space else text

    def reduced(self, used: Iterable[int]) -> tuple[Tokenizer, list[int]]:
        """A tokenizer without unneeded tokens, and the ids in this one of those that stay, in order.

        The tokens that stay are ``used``, those that their merges are made of, special and added tokens, and the
        alphabet, so that every text can still be encoded. A text whose tokens are all used is encoded the same by
        both: it needs no other merge (BPE), and no better segmentation is removed (unigram).
        """
        content = json.loads(self.to_json())
        model = content["model"]
        by_id = {index: piece for piece, index in self._backend.get_vocab(with_added_tokens=True).items()}
        stay = {by_id[index] for index in {*used, *self._specials, self.unk, *self.never} - {NO_TOKEN}}
        stay |= {token["content"] for token in content["added_tokens"]}
        if model["type"] == "BPE":
            merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
            stay |= {piece for piece in model["vocab"] if len(piece) == 1 or _BYTE.fullmatch(piece)}
            # The merges that make a piece come before those that use it.
            for left, right in reversed(merges):
                if left + right in stay:
                    stay |= {left, right}
            model["merges"] = [[left, right] for left, right in merges if left + right in stay]
        elif model["type"] == "Unigram":
            stay |= {piece for piece, _ in model["vocab"] if len(piece) == 1 or _BYTE.fullmatch(piece)}
            stay.add(by_id[model["unk_id"]])
        else:
            return self, sorted(by_id)  # each entry is one character: the alphabet
        kept = [index for index, piece in sorted(by_id.items()) if piece in stay]
        numbers = {by_id[old]: new for new, old in enumerate(kept)}
        if model["type"] == "BPE":
            model["vocab"] = {piece: numbers[piece] for piece in model["vocab"] if piece in stay}
        else:
            model["vocab"] = [entry for entry in model["vocab"] if entry[0] in stay]
            model["unk_id"] = numbers[by_id[model["unk_id"]]]
        content["added_tokens"] = [token | {"id": numbers[token["content"]]} for token in content["added_tokens"]]
        content["post_processor"] = None  # it holds ids, and adds special tokens that nothing here needs
        roles = None if self.roles is None else self.roles.renumbered({old: new for new, old in enumerate(kept)})
        smaller = Tokenizer.from_json(json.dumps(content), roles)
        smaller.ends_documents = self.ends_documents
        return smaller, kept

    def token(self, token_id: int) -> str:
        """The token's own spelling, for tables."""
        return self._backend.id_to_token(token_id) or "?"


def _ids_of(roles: Roles, backend: tokenizers.Tokenizer) -> tuple[int, int, int, int]:
    """Padding, begin, end and unknown token of a tokenizer with roles; raises `UserError` for a token that it lacks."""
    if gone := [index for index in sorted(roles.ids) if backend.id_to_token(index) is None]:
        raise UserError(f"it has no token {gone[0]}, which its roles name")
    unknown = NO_TOKEN if roles.unknown is None else roles.unknown
    end = roles.end if roles.end is not None else roles.begin if roles.begin is not None else NO_TOKEN
    begin = roles.begin if roles.begin is not None else end
    return (end if roles.pad is None else roles.pad), begin, end, unknown


def _without_special_names(backend: tokenizers.Tokenizer, special: set[int]) -> tokenizers.Tokenizer:
    """The tokenizer to encode with: special tokens, also ``special`` that a file does not mark, have names there that
    no text holds.

    The library ignores marked ones in a text (`encode_special_tokens`), but still finds other added tokens, and so do
    its models: to a unigram model ``<eos>`` is a piece like any other, and the likeliest one.
    """
    content = json.loads(backend.to_str())
    model, added = content["model"], content["added_tokens"]
    special = special | {token["id"] for token in added if token["special"]}
    hidden = {str(backend.id_to_token(index)): f"\ufdd0{index}\ufdd1" for index in special}
    vocabulary = model.get("vocab") or {}
    if isinstance(vocabulary, dict):
        model["vocab"] = {hidden.get(piece, piece): index for piece, index in vocabulary.items()}
    else:
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocabulary]
    if "merges" in model:
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in merges if not hidden.keys() & {*pair, "".join(pair)}]
    if "unk_token" in model:
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    for token in added:
        token["special"] = token["special"] or token["id"] in special
        token["content"] = hidden.get(token["content"], token["content"])
    content["post_processor"] = None  # it names special tokens, and is not used
    encoder = tokenizers.Tokenizer.from_str(json.dumps(content))
    encoder.encode_special_tokens = True
    return encoder


def _without_first_space(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer, as the library writes it, that puts no space before a text."""
    if part is None or part["type"] == "Prepend":
        return None
    for inner in ("normalizers", "pretokenizers"):
        if inner in part:
            kept = (_without_first_space(each) for each in part[inner])
            return part | {inner: [each for each in kept if each is not None]}
    if part["type"] == "ByteLevel":
        return part | {"add_prefix_space": False}
    return part | {"prepend_scheme": "never"} if part["type"] == "Metaspace" else part


def _normalizers(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    if found["type"] == "Sequence":
        return [name for inner in found["normalizers"] for name in _normalizers(inner)]
    if found["type"] == "BertNormalizer":
        parts = {"lowercase": "Lowercase", "strip_accents": "StripAccents", "clean_text": "CleanText"}
        # Accents are stripped with the case unless the file says otherwise.
        stripped = found.get("strip_accents")
        found = found | {"strip_accents": found.get("lowercase") if stripped is None else stripped}
        return [name for key, name in parts.items() if found.get(key)]
    # What the decoder turns back is no change.
    undone = found["type"] == "Prepend" or found.get("content") == _TYPED_SPACE
    return [] if undone else [str(found["type"])]


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int | None:
    names = _ALIASES[token]
    if token == UNK:  # the model's own unknown token takes precedence over any name
        names = (*_unknown_name(backend), *names)
    for name in names:
        token_id = backend.token_to_id(name)
        if token_id is not None:
            return token_id
    return None


def _unknown_name(backend: tokenizers.Tokenizer) -> tuple[str, ...]:
    model = json.loads(backend.to_str())["model"]
    if model.get("unk_id") is not None:
        return (model["vocab"][model["unk_id"]][0],)
    return (model["unk_token"],) if model.get("unk_token") else ()


def _check_ids(backend: tokenizers.Tokenizer) -> None:
    """Refuses ids with gaps: the library numbers added tokens by count, so two tokens would share an id."""
    count = backend.get_vocab_size(with_added_tokens=True)
    if count and max(backend.get_vocab(with_added_tokens=True).values()) != count - 1:
        raise UserError(f"the ids of its {count:,} tokens are not the numbers 0 to {count - 1:,}")


def _pieces(text: str) -> Iterator[str]:
    """Pieces of whole lines, else of whole words, of about 32 kB: one long text would be encoded on one core."""
    start = 0
    while len(text) - start > 2 * _PIECE_CHARACTERS:
        middle, limit = start + _PIECE_CHARACTERS, start + 2 * _PIECE_CHARACTERS
        end = text.find("\n", middle, limit) + 1 or text.find(" ", middle, limit)
        if end <= 0:
            end = limit
        yield text[start:end]
        start = end
    yield text[start:]


def _train_bpe(config: TokenizerConfig, texts: Iterable[str], prefix_space: bool) -> tokenizers.Tokenizer:
    """Byte-level BPE (Sennrich 2016; Radford 2019): every byte is in the vocabulary, so nothing is unknown."""
    if config.vocab_size < _SMALLEST_BPE:
        raise UserError(
            f"dataset.tokenizer.vocab_size={config.vocab_size} is below {_SMALLEST_BPE}: "
            "byte-level BPE holds the 256 bytes and the special tokens"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    if config.lowercase:
        backend.normalizer = normalizers.Lowercase()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.pre_tokenizer = _with_digits(config, byte_level)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_batches(texts), trainer)
    return backend


def _train_unigram(config: TokenizerConfig, texts: Iterable[str]) -> tokenizers.Tokenizer:
    """Unigram language model (Kudo 2018); characters that are not in the training text become the unknown token."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = _with_digits(config, pre_tokenizers.Metaspace(replacement=SPACE))
    backend.decoder = decoders.Metaspace(replacement=SPACE)
    changes: list[normalizers.Normalizer] = [normalizers.Lowercase()] if config.lowercase else []
    # Only then, so that of all other texts the tokenizer is the one that it always was, and earlier runs go on.
    if any(SPACE in text for text in texts):
        changes.append(normalizers.Replace(SPACE, _TYPED_SPACE))
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Replace(_TYPED_SPACE, SPACE)])
    if changes:
        backend.normalizer = changes[0] if len(changes) == 1 else normalizers.Sequence(changes)
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size, special_tokens=list(SPECIAL), unk_token=UNK, show_progress=False
    )
    try:
        backend.train_from_iterator(_batches(texts), trainer)
    except Exception as error:  # the library raises a bare Exception where the vocabulary is below its alphabet
        raise UserError(f"dataset.tokenizer: unigram training failed ({error}): try a larger vocab_size") from error
    return backend


def _with_digits(config: TokenizerConfig, first: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    if not config.split_digits:
        return first
    return pre_tokenizers.Sequence([first, pre_tokenizers.Digits(individual_digits=True)])


def _train_char(config: TokenizerConfig, texts: Iterable[str]) -> tokenizers.Tokenizer:
    """One token per character of the training text, for the most frequent ones up to ``vocab_size``."""
    counts: dict[str, int] = {}
    for text in texts:
        for character in normalizers.Lowercase().normalize_str(text) if config.lowercase else text:
            counts[character] = counts.get(character, 0) + 1
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    kept = sorted(ranked[: config.vocab_size - len(SPECIAL)])
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *kept])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    if config.lowercase:
        backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens(list(SPECIAL))
    # (?m:) lets the dot match a line end in the regex dialect of the library.
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"(?m:.)"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _batches(texts: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        for piece in _pieces(text):
            batch.append(piece)
            if len(batch) == size:
                yield batch
                batch = []
    if batch:
        yield batch
