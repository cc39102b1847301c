"""How a model's own files say that its answers are to be chosen.

In: a model's files, with generation_config.json or without. Out: a Sampling, which holds where the
user says nothing. Refuses values outside their range, naming the file.
"""

from __future__ import annotations

from crumb.errors import placed
from crumb.files.model_files import ModelFiles, optional_json
from crumb.requests.generate_request import Sampling

OF_GENERATION_CONFIG = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""What a model's generation_config.json may say of sampling, by our names."""


def read_chat_sampling(files: ModelFiles) -> Sampling:
    """A model's own sampling. `do_sample: false` is greedy. Raises: UsageError."""
    content = optional_json(files, "generation_config.json")
    values = {name: content[name] for name in OF_GENERATION_CONFIG if content.get(name) is not None}
    is_drawn = content.get("do_sample", "temperature" in values)
    values["temperature"] = values.get("temperature", 1.0) if is_drawn else 0.0
    with placed(files.path / "generation_config.json"):
        return Sampling(**values)
