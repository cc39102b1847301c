"""Room on a disk: asked where the files will lie, whose parents may not exist yet."""

from pathlib import Path

import pytest

from crumb.errors import DoesNotFit
from crumb.files.free_space import check_free_space


def test_a_disk_is_asked_where_the_output_will_lie(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "c"
    check_free_space(place, 1, "this", "Make room")
    with pytest.raises(DoesNotFit, match=r"too small for this .*expected 1000000000000.*Make room"):
        check_free_space(place, 10**18, "this", "Make room")
