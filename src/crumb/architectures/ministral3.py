"""ministral3: mistral by yarn, queries growing with the lengths of the training before."""

from dataclasses import replace

from crumb.architectures.configuration import MISSING, Configuration, as_number
from crumb.architectures.family import BlockKind
from crumb.architectures.mistral import FAMILY as MISTRAL
from crumb.architectures.mistral import windows
from crumb.architectures.reader import Reader
from crumb.operations.places import Temperature
from crumb.operations.rope import ORIGINAL

GROWTH = "llama_4_scaling_beta"
UNSAID = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    ORIGINAL: 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    GROWTH: 0.1,
}


def _restate(configuration: Configuration) -> Configuration:
    said = any(configuration.get(key) for key in ("rope_scaling", "rope_parameters"))
    return configuration if said else {**configuration, "rope_parameters": UNSAID}


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    kinds = windows(reader, None)  # which refuses a scaling that is none
    scaling = reader.find("rope")[1]
    rate, span = (as_number(scaling.get(key, MISSING), key) for key in (GROWTH, ORIGINAL))
    growth = Temperature(rate, span)
    return tuple(replace(kind, temperature=growth) for kind in kinds)


FAMILY = replace(
    MISTRAL,
    model_type="ministral3",
    defaults={**MISTRAL.defaults, "epsilon": 1e-5, "positions": 262144, "head_dim": 128},
    kinds=_kinds,
    restate=_restate,
)
