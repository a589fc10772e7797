"""Sentences from a file and from a pipe are the same ones."""

import io

import pytest

from promptreid.cli.output import Output
from promptreid.cli.typed_sentences import read_sentences, typed_sentences


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_sentences_of_a_file_and_of_a_pipe_end_with_their_line_and_nowhere_else(tmp_path, monkeypatch, end):
    sentences = ["a man\u2028in red", "a woman\x0c\x85with a bag"]
    content = f"{sentences[0]}{end}{end}  {sentences[1]} {end}".encode()
    (tmp_path / "asked.txt").write_bytes(b"\xef\xbb\xbf" + content)
    assert read_sentences(tmp_path / "asked.txt") == sentences
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    assert list(typed_sentences(Output(as_json=True), 1)) == sentences
