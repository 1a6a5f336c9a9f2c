"""Reading tables that users write: CSV with a header, as spreadsheets save them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError, OsktError

DELIMITERS = (",", ";", "\t")
"""Between cells; where a comma marks decimals, spreadsheets write semicolons."""
WIDE = (b"\xff\xfe", b"\xfe\xff")  # how text in UTF-16 begins


class Line(dict[str, str]):
    """The cells of a line by their columns.

    Attributes:
        number: of the line in the file, from 1.
    """

    def __init__(self, cells: dict[str, str], number: int) -> None:
        super().__init__(cells)
        self.number = number


def read_table(path: str | Path, columns: Sequence[str], what: str, error: type[OsktError] = ConfigError) -> list[Line]:
    """The lines of a CSV, each a cell per column as text without spaces around it; missing cells are empty.

    Args:
        path: of the file. Cells are apart by commas, semicolons or tabs, whichever the header has; a byte order mark
            and further columns are allowed, and columns in capitals.
        columns: that have to be there, in small letters.
        what: the table is of, for messages, such as `latencies`.
        error: type of the error for a file that cannot be read.

    Raises:
        OsktError: of the type `error`, for no such file or no text.
        ConfigError: a column that is missing or there twice, a line with more cells than columns, or one
            that is no text.
    """
    path = Path(path)
    text = _text_of(path, what, error)
    stream = io.StringIO(text, newline=None)  # line ends of any system
    header = stream.readline()
    stream.seek(0)
    lines = csv.reader(stream, delimiter=max(DELIMITERS, key=header.count), skipinitialspace=True)
    try:
        numbered = [(cells, lines.line_num) for cells in lines]
    except csv.Error as reason:
        raise ConfigError(f"line {lines.line_num} of '{path}' cannot be read ({reason}); mend it") from reason
    found = [name.strip().lower() for name in numbered[0][0]] if numbered else []
    if not set(columns) <= set(found):
        raise ConfigError(
            f"'{path}' has the columns {found}; it needs {' and '.join(map(repr, columns))}: mend its first line"
        )
    if twice := sorted({name for name in found if name and found.count(name) > 1}):
        raise ConfigError(f"'{path}' has the column '{twice[0]}' twice; leave one of them out")
    return [_line(path, found, cells, number) for cells, number in numbered[1:] if cells]


def _line(path: Path, columns: Sequence[str], cells: Sequence[str], number: int) -> Line:
    if any(cell.strip() for cell in cells[len(columns) :]):
        raise ConfigError(
            f"line {number} of '{path}' has {len(cells)} cells for {len(columns)} columns; put a cell that has the "
            "delimiter in it into quotation marks"
        )
    padded = [*cells, *[""] * (len(columns) - len(cells))]
    return Line({name: cell.strip() for name, cell in zip(columns, padded, strict=False) if name}, number)


def _text_of(path: Path, what: str, error: type[OsktError]) -> str:
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise error(f"no table of {what} can be read at '{path}' ({reason.strerror}); check the path") from reason
    try:
        return content.decode("utf-16" if content.startswith(WIDE) else "utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(
            f"the table of {what} '{path}' is not text in UTF-8 ({reason.reason} at byte {reason.start}); save it "
            "as 'CSV UTF-8'"
        ) from reason
