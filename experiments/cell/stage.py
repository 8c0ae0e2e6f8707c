"""What a stage is: something made once, kept in a folder named by what it depends on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.store.digests import digest
from experiments.store.sources import code_digest

if TYPE_CHECKING:
    from pathlib import Path

    from experiments.cell.surroundings import Surroundings
    from experiments.store.folders import Finished


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a cell. A subclass, in a file of its own, says what decides it and makes it.

    The part of the key that stands for code is computed: the import closure of the subclass's own
    module and of those that `code` names. So a stage's module imports what decides its content, and
    what decides nothing (the store, progress, types) for type checkers alone.
    """

    kind: ClassVar[str]  # the folder below `stages`
    anywhere: ClassVar[bool] = False  # made of files alone: no matter on which machine
    around: Surroundings

    def fields(self) -> dict[str, Any]:
        """What decides the content, but for code; JSON's types."""
        raise NotImplementedError

    def code(self) -> tuple[str, ...]:
        """Modules, besides the stage's own, that decide the content."""
        return ()

    def make(self, folder: Path) -> dict[str, Any] | None:
        """Fills the folder, going on from what a killed call left there; returns notes to keep."""
        raise NotImplementedError

    def modules(self) -> tuple[str, ...]:
        """All modules whose closures the key holds."""
        return (type(self).__module__, *self.code())

    @cached_property
    def _key(self) -> dict[str, Any]:
        return {**self.fields(), "code": code_digest(*self.modules())}

    def key(self) -> dict[str, Any]:
        return self._key

    @cached_property
    def hash(self) -> str:
        """What names the folder."""
        return digest(self.key())

    @property
    def folder(self) -> Path:
        return self.around.store.folder(self.kind, self.hash)

    def find(self) -> Finished | None:
        """The finished stage, or None; looks at sizes and changes nothing."""
        return self.around.store.find(self.kind, self.hash)

    def build(self) -> Finished:
        """The finished stage, made if it is not there or damaged."""
        make = self.make if self.anywhere or self.around.makes else self._refuse
        finished = self.around.store.build(self.kind, self.key(), make)
        self.tidy()
        return finished

    def tidy(self) -> None:
        """Removes what is of no use any more, now that the stage is there."""

    def _refuse(self, folder: Path) -> None:
        raise RuntimeError(
            f"{folder.with_suffix('')} is gone or damaged, and this job only measures; give the "
            "same command again"
        )
