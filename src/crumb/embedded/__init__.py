"""What travels inside the package: a small trained model and an excerpt of WikiText-2.

In: nothing. Out: paths. Each folder holds its licence.
"""

from pathlib import Path

MODELS = {"novella-7m": Path(__file__).parent / "novella-7m"}
"""Models that `crumb` knows by name without any download."""
