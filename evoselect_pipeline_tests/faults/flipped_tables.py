"""Read a table again and again, each time with another bit flipped: a program of its own.

On some damage Lance ends the process that reads. `HOME TABLE FIRST LAST` tells for each number in
the range, one a line: `same` rows, damage `found` by the reader, or `fewer` rows, which only the
check finds. Anything else fails.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from evoselect_pipeline.errors import ArtifactError
from evoselect_pipeline.stores.checksums import CHECKSUM
from evoselect_pipeline.stores.home import Home
from evoselect_pipeline.stores.integrity import table_problems
from evoselect_pipeline.stores.lance import LanceStore

LINE = "playground"


@contextmanager
def flipped(file: Path, draw: Random) -> Iterator[None]:
    """One bit of a file the other way round, for a while."""
    whole = file.read_bytes()
    place = draw.randrange(len(whole))
    changed = bytearray(whole)
    changed[place] ^= 1 << draw.randrange(8)
    file.write_bytes(changed)
    try:
        yield
    finally:
        file.write_bytes(whole)


def files_in(folder: Path) -> list[Path]:
    """All files that hold something, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def read_table(home: Home, table: str) -> list[Any]:
    """All of it that belongs to round 0, as its users read it, in a form that can be compared."""
    store, represented = LanceStore(home), home.round_dir(LINE, 0) / "projected_gradients"
    facts, ids = (
        json.loads((represented / f"{name}.json").read_text()) for name in ("facts", "ids")
    )
    kind, _, width = table.partition("_")
    if kind == "samples":
        is_old = CHECKSUM not in store.tables.open(table).schema.names  # has but the ids
        found = store.get_samples(ids)
        return [sample.messages for sample in found] if is_old else found
    if kind == "gradients":
        features = store.read_gradients(ids, facts["fingerprint"], int(width))
        return [row.tobytes() for column in features for row in column]
    if kind == "coordinates":
        return [row.tobytes() for row in store.read_coordinates(ids, facts["span"], int(width))]
    return (store.read_scores if kind == "scores" else store.read_decisions)(LINE, 0).rows()


def outcome(home: Home, table: str, whole: list[Any]) -> str:
    """What came of reading a table."""
    try:
        found = read_table(home, table)
        if found == whole:
            return "same"
        told = "fewer"
        assert [row for row in whole if row in found] == found, "rows were changed, unseen"
    except ArtifactError:
        told = "found"
    assert table in [problem.table for problem in table_problems(home)], "unseen by the check"
    return told


def main() -> None:
    """Tell what comes of each flip."""
    home, table, first, last = Home(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
    folder, whole = home.lance_dir / f"{table}.lance", read_table(home, table)
    files = [*files_in(folder / "data"), *files_in(folder / "_versions")]
    for number in range(first, last):
        draw = Random(number)
        with flipped(draw.choice(files), draw):
            print(outcome(home, table, whole), flush=True)


if __name__ == "__main__":
    main()
