"""Plain values: classes that are made of their fields alone.

The only module that imports msgspec. To define such a class costs a twentieth of what a data class does, and a run that
has nothing to do consists of little else; to make one, compare it or hash it costs less as well (decision 25).
"""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec import Struct, field
from msgspec.structs import replace

__all__ = ["Hiding", "Struct", "field", "replace"]


class Hiding(Struct, frozen=True):
    """What is shown of it leaves out the fields named in HIDDEN: a secret must not reach a log or a traceback."""

    HIDDEN: ClassVar[tuple[str, ...]] = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name not in self.HIDDEN]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
