"""`Struct`, the base class of all value types, which consist only of their fields.

Only this module imports msgspec. Defining a Struct class takes a twentieth of the time that a dataclass takes, which
matters for a run that has nothing to copy. Creating, comparing and hashing values is also faster (docs/decisions.md,
decision 25).
"""

from __future__ import annotations

from typing import Any, ClassVar

from msgspec import Struct, field
from msgspec.structs import replace

__all__ = ["RedactedStruct", "Struct", "field", "replace"]


class RedactedStruct(Struct, frozen=True):
    """A value whose representation omits the fields in HIDDEN, so that secrets do not appear in logs or tracebacks."""

    HIDDEN: ClassVar[tuple[str, ...]] = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name not in self.HIDDEN]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
