"""Texts by name, in the ways that people keep them."""

from pathlib import Path

import pytest

from experiments.verbs.prompt_texts import read_texts

WAYS = {
    "a.json": '{"a": "a red circle", "b": {"prompt": "two, of them", "category": "x"}}',
    "a.jsonl": '{"id": "a", "prompt": "a red circle"}\n\n{"id": "b", "prompt": "two, of them"}\n',
    "a.csv": '\ufeffprompt,id\na red circle,a\n"two, of them",b\n',
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_is_read_alike(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(WAYS[name], encoding="utf-8")
    assert read_texts(tmp_path / name) == {"a": "a red circle", "b": "two, of them"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[1]"),
        ("a.json", '{"a": 3}'),
        ("a.jsonl", '{"prompt": "a"}'),
        ("a.csv", "name,text\na,b\n"),
        ("a.jsonl", "nothing"),
    ],
)
def test_what_is_none_of_them_is_told_how(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"a\.\w+: .*give a JSON object of names and texts"):
        read_texts(tmp_path / name)
    with pytest.raises(ValueError, match="no such file of prompts"):
        read_texts(tmp_path / "none.json")
