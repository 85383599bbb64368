"""`Struct`, the base class of value types, and the conversion of values from and to JSON.

Only this module imports msgspec. Defining a Struct class takes a twentieth of the time that a dataclass takes, which
matters for a run that has nothing to copy. Creating, comparing and hashing values is also faster (docs/decisions.md,
decision 25).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, TypeVar

from msgspec import Meta, MsgspecError, Raw, Struct, convert, field, json, to_builtins
from msgspec.structs import replace

__all__ = [
    "AwareTime",
    "Count",
    "Raw",
    "RedactedStruct",
    "Seconds",
    "Struct",
    "check_years",
    "convert",
    "decode_json",
    "encode_json",
    "field",
    "replace",
    "to_builtins",
]

T = TypeVar("T")

# In a value that is read from JSON: a time with its offset from UTC, so that it can be compared with others.
AwareTime = Annotated[datetime, Meta(tz=True)]
# In a value that is read from JSON: numbers within limits, so that calculations with them cannot overflow.
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=-1e12, le=1e12)]

encode_json = json.encode


def decode_json(data: bytes | Raw, kind: type[T]) -> T:
    """Parse JSON into a value of the type `kind`. Raises ValueError if it is not JSON or does not have this type.

    Members of JSON objects for which `kind` has no field are ignored. A field of the type `Raw` gets a part of the
    document as bytes."""
    try:
        return json.decode(data, type=kind)
    except (MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def check_years(**times: datetime | None) -> None:
    """Raise ValueError if one of the times cannot be converted to every other time zone.

    times: by the name of the JSON member, for the text of the error. Called by `__post_init__` of values that are read
    from JSON."""
    for name, moment in times.items():
        if moment is not None and not 1 < moment.year < 9999:
            raise ValueError(f"`{name}` has the year {moment.year}; want 2 to 9998")


class RedactedStruct(Struct, frozen=True):
    """A value whose representation omits the fields in HIDDEN, so that secrets do not appear in logs or tracebacks."""

    HIDDEN: ClassVar[tuple[str, ...]] = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name not in self.HIDDEN]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
