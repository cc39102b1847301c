"""Where the pages of an engine's cache outlive the process, if anywhere.

In: a checkpoint, EngineSettings, the caches. Out: a PageStore whose pages are those of this model
as it runs now. Refuses models that keep more of a text than pages, or pages of more than a text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crumb import __version__
from crumb.checkpoints.checkpoint import Checkpoint
from crumb.errors import UsageError
from crumb.kernels.dispatch import selected_set
from crumb.run.memory_plan import EngineSettings
from crumb.run.page_store import PageStore
from crumb.run.states import plan_states


def open_store(
    checkpoint: Checkpoint, settings: EngineSettings, caches: Sequence[NDArray[np.uint8]]
) -> PageStore | None:
    """Where pages outlive the process, if anywhere. Raises: UsageError."""
    if settings.cache_dir is None:
        return None
    keeps_state = plan_states(checkpoint.plan, 1).floats > 0
    if checkpoint.plan.inputs or keeps_state:
        raise UsageError(
            "what a model with a state keeps of a text does not outlive the process"
            if keeps_state
            else "pages of a model that reads a text before it writes do not outlive the process",
            where=checkpoint.plan.family,
            do="Leave --cache-dir out",
        )
    files = [(path.name, path.stat()) for path in sorted(checkpoint.weight_files)]
    identity = repr(
        (
            __version__,
            [(name, status.st_size, status.st_mtime_ns) for name, status in files],
            str(checkpoint.plan),
            settings.cache,
            settings.activations,
            settings.context(checkpoint.plan),
            selected_set(),
        )
    )
    page_bytes = sum(cache.shape[1] for cache in caches)
    return PageStore(settings.cache_dir, identity, page_bytes, settings.cache_disk_bytes)
