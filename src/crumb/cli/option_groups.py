"""The groups that --help shows options in, in their order.

In: the annotation of an option, such as Annotated[int, FORMAT]. Out: its place in --help and in
docs/cli.md. A verb of few options needs none.
"""

from __future__ import annotations

from cyclopts import Group, Parameter

FORMAT = Parameter(group=Group("Format", sort_key=1))
BUDGET = Parameter(group=Group("Budget", sort_key=2))
CALIBRATION = Parameter(group=Group("Calibration", sort_key=3))
SOLVER = Parameter(group=Group("Solver", sort_key=4))
TEXT = Parameter(group=Group("Text", sort_key=5))
WORK = Parameter(group=Group("Work", sort_key=6))
PROMPT = Parameter(group=Group("Prompt", sort_key=7))
SAMPLING = Parameter(group=Group("Sampling", sort_key=8))
TASKS = Parameter(group=Group("Tasks", sort_key=9))
ENGINE = Parameter(group=Group("Engine", sort_key=9))
OUTPUT = Parameter(group=Group("Output", sort_key=10))
ACCESS = Parameter(group=Group("Access", sort_key=11))
LIMITS = Parameter(group=Group("Limits", sort_key=12))

ONE_WAY = Parameter(negative=())
"""An option without a --no- or --empty- form."""
