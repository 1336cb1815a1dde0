"""What a process of a run says before it ends, and what that is to the others."""

from __future__ import annotations

import json
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tfx.errors import UserError
from tfx.system.signals import StoppedBySignal

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# The key in the store at which the process that fails first says why.
FAILURE = "failure"


class LostProcessError(Exception):
    """Another process of the run ended; ``failure`` is what it said before, None if it was killed."""

    def __init__(self, failure: Failure | None) -> None:
        super().__init__(
            "another process of the run ended without a word: it was killed, or its machine failed"
            if failure is None
            else f"process {failure.rank} failed: {failure.message}"
        )
        self.failure = failure


@dataclass(frozen=True)
class Failure:
    """The last word of a process: ``kind`` is ``user`` (its input is wrong), ``signal`` or ``error``."""

    rank: int
    kind: str
    message: str
    traceback: str
    status: int

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Failure:
        """What an error that ends a process says."""
        text = "".join(traceback.format_exception(error))
        if isinstance(error, UserError):
            return cls(rank, "user", str(error), text, 2)
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, "signal", str(error), text, getattr(error, "status", 130))
        return cls(rank, "error", f"{type(error).__name__}: {error}", text, 1)

    def tell(self, store: Store, key: str) -> None:
        """Writes it where the others look. The first word counts: what others say is its consequence."""
        with suppress(RuntimeError):  # the store is gone with its process
            store.compare_set(key, "", json.dumps(asdict(self)))

    def to_error(self) -> BaseException:
        """The error that ends the others."""
        if self.kind == "user":
            return UserError(self.message)
        if self.kind == "signal":
            return StoppedBySignal(self.status - 128)
        found = LostProcessError(self)
        found.add_note(self.traceback)
        return found


def last_word(store: Store, key: str) -> Failure | None:
    """What the process that failed first said before it ended; None if it said nothing."""
    with suppress(RuntimeError):  # the store is gone with its process
        if store.check([key]):
            return Failure(**json.loads(store.get(key)))
    return None
