"""Reading a config.json of another library: each field is read, known to be harmless, or refused by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tfx.errors import UserError

Value = TypeVar("Value")

# Fields that change nothing of what a model computes, or that only its training or its decoding reads.
_HARMLESS = frozenset(
    """
    _name_or_path _num_labels architectures auto_map dtype torch_dtype id2label label2id num_labels model_type
    problem_type return_dict task_specific_params tokenizer_class transformers_version use_cache

    activation_dropout attention_dropout attention_probs_dropout_prob attn_pdrop classif_dropout classifier_dropout
    decoder_layerdrop dropout dropout_rate embd_pdrop encoder_layerdrop gradient_checkpointing hidden_dropout_prob
    init_std initializer_factor initializer_range resid_pdrop

    bad_words_ids bos_token_id decoder_start_token_id do_sample early_stopping eos_token_id forced_eos_token_id
    length_penalty max_length min_length no_repeat_ngram_size num_beams pad_token_id prefix repetition_penalty
    temperature top_k top_p unk_token_id
    """.split()  # noqa: SIM905 (a list would be sixty lines)
)


class Fields:
    """The fields of a config.json; `finish` refuses those that nothing has read."""

    def __init__(self, values: Mapping[str, Any], file: Path) -> None:
        self.file = file
        self._values = values
        self._read: set[str] = set()

    def take(self, name: str, default: Value) -> Value:
        """The value of a field, of the type of its default; raises `UserError` for another type."""
        self._read.add(name)
        value = self._values.get(name)
        if value is None:
            return default
        kinds = (int, float) if type(default) is float else (type(default),)
        if type(value) not in kinds:
            raise self.refused(name, f"it must be of type {type(default).__name__}")
        return type(default)(value)  # type: ignore[call-arg]

    def number(self, *names: str) -> int:
        """The whole number of the first of these fields that is there; raises `UserError` where none is."""
        for name in names:
            self._read.add(name)
        for name in names:
            if self._values.get(name) is not None:
                return self.take(name, 0)
        raise UserError(f"{self.file}: {names[0]} is missing")

    def has(self, name: str) -> bool:
        """Whether a field is there, and not null."""
        return self._values.get(name) is not None

    def must(self, name: str, value: Any) -> None:
        """Raises `UserError` where a field has another value than the only one supported, which is its default."""
        self._read.add(name)
        found = self._values.get(name)
        if found is not None and found != value:
            raise self.refused(name, f"only {value!r} is")

    def choose(self, name: str, choices: Mapping[str, str], default: str) -> str:
        """What a field's value is called here; raises `UserError` for one that has no name here."""
        value = self.take(name, default)
        if value not in choices:
            raise self.refused(name, f"supported are {', '.join(choices)}")
        return choices[value]

    def skip(self, *names: str) -> None:
        """Marks fields that change nothing for this family."""
        self._read.update(names)

    def refused(self, name: str, why: str) -> UserError:
        """The error for a field whose value is not supported."""
        return UserError(f"{self.file}: {name}={self._values.get(name)!r} is not supported: {why}")

    def finish(self) -> None:
        """Raises `UserError` for a field that nothing has read, unless its value says that it is off."""
        for name, value in self._values.items():
            if value and name not in self._read and name not in _HARMLESS:
                raise UserError(f"{self.file}: {name}={value!r} is not supported: tfx does not know this field")
