"""Systematic damage to JSON: every node removed, and replaced by things of every other kind."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator
from typing import Any

ODD = ("null", "true", "-1", "1e400", "0.5", '"x"', "[]", "{}")
"""What stands where something else should, as JSON: 1e400 is no number that Python could write."""
HERE = "@here@"


def places(tree: Any, shallow: Collection[str] = (), path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every node; of a long list the first two, of the branches ``shallow`` the two upper floors."""
    yield path
    if path and path[0] in shallow and len(path) > 1:
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2]) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, shallow, (*path, key))


def mutants(tree: Any, shallow: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """(what was done, the text that is left)."""
    for path in places(tree, shallow):
        for odd in ("removed", *ODD):
            node = changed = {HERE: copy.deepcopy(tree)}
            *way, last = (HERE, *path)
            for key in way:
                node = node[key]
            if odd == "removed":
                del node[last]
            else:
                node[last] = HERE
            text = json.dumps(changed.get(HERE, {})).replace(f'"{HERE}"', odd)
            yield f"{'.'.join(map(str, path))}: {odd}", text
