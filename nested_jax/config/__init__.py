"""The typed, frozen configuration, and the strict conversion into it.

An unknown field, a wrong type and a combination that cannot work are ``ValueError`` before anything
is allocated.
"""

from nested_jax.config.blocks import BLOCKS, KINDS, BlockKind
from nested_jax.config.load import from_config_dict, from_saved, load_config, parse_overrides
from nested_jax.config.model import CMSConfig, MemoryConfig, ModelConfig
from nested_jax.config.run import (
    Config,
    DataConfig,
    MeshConfig,
    OptimConfig,
    TaskConfig,
    TeachConfig,
    TrainConfig,
    check_teach,
)

__all__ = [
    "BLOCKS",
    "KINDS",
    "BlockKind",
    "CMSConfig",
    "Config",
    "DataConfig",
    "MemoryConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "TaskConfig",
    "TeachConfig",
    "TrainConfig",
    "check_teach",
    "from_config_dict",
    "from_saved",
    "load_config",
    "parse_overrides",
]
