"""What the tokens of another tool's tokenizer are for: no token is added to it, and a role may have none."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Roles:
    """Ids of special tokens, None where there is none.

    ``begin`` starts the output of an encoder-decoder, and a text where ``begins_texts``; ``end`` ends it; ``unknown``
    stands for what has no token. ``never`` are ids that no output has.
    """

    begin: int | None = None
    end: int | None = None
    pad: int | None = None
    unknown: int | None = None
    never: tuple[int, ...] = ()
    begins_texts: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The roles as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Roles:
        """The inverse of `to_dict`; raises `ValueError` or `TypeError` for a record that is none."""
        found = cls(**{**values, "never": tuple(values.get("never", ()))})
        ids = [getattr(found, f.name) for f in fields(cls) if f.name not in ("never", "begins_texts")]
        ids = [i for i in [*ids, *found.never] if i is not None]
        if not all(type(i) is int and i >= 0 for i in ids) or type(found.begins_texts) is not bool:
            raise ValueError("a role is not the number of a token")
        return found

    @property
    def ids(self) -> set[int]:
        """All tokens with a role."""
        named = {i for i in (self.begin, self.end, self.pad, self.unknown) if i is not None}
        return named | set(self.never)

    def renumbered(self, numbers: dict[int, int]) -> Roles:
        """The roles where tokens have other ids, those that are gone have none."""

        def new(old: int | None) -> int | None:
            return None if old is None else numbers.get(old)

        never = tuple(numbers[i] for i in self.never if i in numbers)
        return replace(
            self, begin=new(self.begin), end=new(self.end), pad=new(self.pad), unknown=new(self.unknown), never=never
        )
