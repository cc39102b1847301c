"""gemma3_text: Gemma 3 without its eyes: norms of heads, five windows to one full block."""

from dataclasses import replace

from crumb.architectures.configuration import read_flag, read_window, refuse
from crumb.architectures.family import RMS_OF_ONE_MORE, BlockKind, HeadNorm
from crumb.architectures.gemma2 import FAMILY as GEMMA2
from crumb.architectures.gemma2 import caps_and_scales
from crumb.architectures.kinds import KINDS, all_but_every, ropes_by_kind
from crumb.architectures.reader import Reader

THETAS = {KINDS[0]: ("rope_theta", 1e6), KINDS[1]: ("rope_local_base_freq", 1e4)}


def _kinds(reader: Reader) -> tuple[BlockKind, ...]:
    if read_flag(reader.configuration, "use_bidirectional_attention", False):
        raise refuse("use_bidirectional_attention", "false: text is read forwards here", True)
    window = read_window(reader.configuration, "sliding_window", 4096)
    kinds = {
        False: BlockKind(reader.rope(KINDS[0])),
        True: BlockKind(reader.rope(KINDS[1]), window),
    }
    return tuple(kinds[each] for each in all_but_every(reader, 6))


FAMILY = replace(
    GEMMA2,
    model_type="gemma3_text",
    defaults={**GEMMA2.defaults, "positions": 131072, "logit_cap": None},
    tensors={
        **GEMMA2.tensors,
        "query_norm": "model.layers.{block}.self_attn.q_norm",
        "key_norm": "model.layers.{block}.self_attn.k_norm",
    },
    head_norm=HeadNorm(RMS_OF_ONE_MORE.kind, offset=RMS_OF_ONE_MORE.offset),
    kinds=_kinds,
    multipliers=lambda reader: replace(caps_and_scales(reader), score_cap=None),
    restate=lambda configuration: ropes_by_kind(configuration, THETAS),
)
