"""The process configuration: one YAML file holds the whole of lambda."""

from sp2dpo_ray.config.loading import load_config
from sp2dpo_ray.config.sections import (
    Config,
    DecodingSection,
    LoraSection,
    TeacherSection,
    TinySection,
    TrainSection,
)

__all__ = [
    "Config",
    "DecodingSection",
    "LoraSection",
    "TeacherSection",
    "TinySection",
    "TrainSection",
    "load_config",
]
