"""Changes to files, by chance or malice, for fuzz tests."""

import re

from hypothesis import strategies as st


def changes(numbers, most):
    """Bytes at some place, or one of the file's numbers: where, what goes (None for the number), what comes."""
    where = st.floats(0, 1, exclude_max=True)
    anywhere = st.tuples(where, st.integers(0, 12), st.binary(max_size=6))
    number = st.tuples(where, st.none(), st.sampled_from(numbers))
    return st.lists(anywhere | number, min_size=1, max_size=most)


def damage(file, changes):
    content = file.read_bytes()
    for where, gone, new in changes:
        if gone is None:
            places = [match.span() for match in re.finditer(rb"[-+.\deE]*\d[-+.\deE]*", content)] or [(0, 0)]
            begin, end = places[int(where * len(places))]
        else:
            begin = int(where * len(content))
            end = begin + gone
        content = content[:begin] + new + content[end:]
    file.write_bytes(content)
