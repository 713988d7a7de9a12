"""Students: transformers and peft behind a few plain functions."""

from transformers.utils import logging

# every load would draw a bar of its own into the stage's one
logging.disable_progress_bar()
