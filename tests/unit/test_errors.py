"""The tree of errors, pinned: names, parents, exit codes, HTTP status, and one-line messages."""

import pickle
import re

import pytest

from crumb import errors
from crumb.errors import CheckpointError, CrumbError, UsageError

TREE = {
    # name: (parent, exit code, HTTP status)
    "CrumbError": ("Exception", 1, 500),
    "UsageError": ("CrumbError", 2, 400),
    "ContextExceeded": ("UsageError", 2, 400),
    "BodyTooLarge": ("UsageError", 2, 413),
    "KeyRefused": ("UsageError", 2, 401),
    "OriginRefused": ("UsageError", 2, 403),
    "GateFailed": ("CrumbError", 3, 422),
    "DoesNotFit": ("CrumbError", 3, 507),
    "ModelNotFound": ("CrumbError", 4, 404),
    "CheckpointError": ("CrumbError", 1, 422),
    "UnknownFamily": ("CheckpointError", 1, 422),
    "TextError": ("CrumbError", 1, 422),
    "OutputConflict": ("CrumbError", 1, 409),
    "RequestCancelled": ("CrumbError", 1, 499),
    "QueueFull": ("CrumbError", 1, 503),
    "ModelBusy": ("QueueFull", 1, 503),
    "TimeExceeded": ("CrumbError", 1, 504),
    "SolveError": ("CrumbError", 1, 500),
}


def classes():
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, CrumbError)
    }


def test_the_tree_is_as_pinned():
    found = {
        name: (kind.__base__.__name__, kind.exit_code, kind.http_status)
        for name, kind in classes().items()
    }
    assert found == TREE


def test_the_drawing_at_the_top_of_the_file_shows_the_tree():
    rows = re.findall(r"(\w+) +exit (\d), HTTP (\d+)", errors.__doc__)
    drawn = {name: (int(exit_code), int(status)) for name, exit_code, status in rows}
    assert drawn == {name: row[1:] for name, row in TREE.items()}


@pytest.mark.parametrize("kind", classes().values(), ids=classes())
def test_every_class_says_what_it_means(kind):
    assert kind.__doc__
    assert kind("it failed").exit_code in (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "it failed"),
        ({"where": "a.safetensors"}, "a.safetensors: it failed"),
        ({"expected": 3}, "it failed (expected 3)"),
        ({"found": 0}, "it failed (found 0)"),
        ({"expected": "3", "found": "4"}, "it failed (expected 3, found 4)"),
        ({"do": "Try again"}, "it failed. Try again"),
        (
            {"where": "q[3, 4]", "expected": "a number", "found": "nan", "do": "Look at it"},
            "q[3, 4]: it failed (expected a number, found nan). Look at it",
        ),
    ],
)
def test_a_message_says_where_what_expected_found_and_what_to_do(facts, message):
    assert str(CrumbError("it failed", **facts)) == message


def test_a_message_is_one_line_whatever_is_in_it():
    error = UsageError(
        "it\nfailed", where="a\r\nb", expected="\t3", found="4\n\n5", do="Try\nagain"
    )
    assert str(error) == "a b: it failed (expected 3, found 4 5). Try again"


def test_the_parts_of_a_message_stay_readable_to_programs():
    error = CheckpointError("it failed", where="a", expected=3, found=4, do="Try")
    parts = (error.what, error.where, error.expected, error.found, error.do)
    assert parts == ("it failed", "a", 3, 4, "Try")


def test_an_error_survives_a_process_boundary():
    error = CheckpointError("it failed", where="a", expected=3, found=4)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CheckpointError
    assert str(again) == str(error)
