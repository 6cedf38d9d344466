"""The plain types that messages are made of, with their bounds."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
UnitName = Annotated[str, Meta(min_length=1, max_length=128)]
Word = Annotated[str, Meta(max_length=64)]
