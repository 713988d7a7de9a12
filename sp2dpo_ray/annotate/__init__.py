"""Annotation: teachers asked over Ray Data, every attempt in the journal."""
