"""Languages of prompts: clear ones, ones that do not tell, and a column that is kept."""

from __future__ import annotations

import pytest

from sp2dpo_ray.core.languages import UNKNOWN, languages_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is the capital of Australia, and why is it not Sydney?", "en"),
        ("Wie geht es dir heute, und was hast du gestern gemacht?", "de"),
        ("Quelle est la capitale de la France ?", "fr"),
        ("¿Cuál es la capital de Francia?", "es"),
        ("写一首关于海的诗歌", "zh"),
        ("Привет, как дела? Расскажи мне сказку.", "ru"),
        ("", UNKNOWN),
        ("2+2=?", UNKNOWN),
        ("ok", UNKNOWN),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert languages_of([text, "Hello, who are you?"]) == [language, "en"]
