"""glm: GLM-4 of 2024: glm4 with norms before alone."""

from dataclasses import replace

from crumb.architectures.block import SEQUENTIAL
from crumb.architectures.glm4 import FAMILY as GLM4

AFTER = ("attention_post_norm", "mlp_post_norm")

FAMILY = replace(
    GLM4,
    model_type="glm",
    tensors={role: name for role, name in GLM4.tensors.items() if role not in AFTER},
    block=SEQUENTIAL,
)
