"""The process configuration: one YAML file holds the whole of lambda."""

from sp2dpo_ray.config.loading import load_config
from sp2dpo_ray.config.panel import (
    AnnotateSection,
    DecodingSection,
    LimitsSection,
    PriceSection,
    TeacherSection,
)
from sp2dpo_ray.config.sections import Config
from sp2dpo_ray.config.training import LoraSection, TinySection, TrainSection

__all__ = [
    "AnnotateSection",
    "Config",
    "DecodingSection",
    "LimitsSection",
    "LoraSection",
    "PriceSection",
    "TeacherSection",
    "TinySection",
    "TrainSection",
    "load_config",
]
