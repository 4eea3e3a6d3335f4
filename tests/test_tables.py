"""E2E and WebNLG records, in each of their forms."""

import json
import os
from pathlib import Path

import pytest

from tinygrad_ml.train.tables import Table, bleu, read_e2e, read_webnlg

DATA = os.environ.get("TINYGRAD_ML_DATA")


def test_e2e_groups_the_texts_of_a_record(tmp_path):
    (tmp_path / "a.txt").write_text("name : X | area : y||One . \nname : X | area : y||Two . \n")
    (tmp_path / "a.csv").write_text('mr,ref\n"name[X], area[y]",One .\n"name[X], area[y]",Two .\n')
    expected = [Table("name : X | area : y", ("One .", "Two ."))]
    assert read_e2e(tmp_path / "a.txt") == read_e2e(tmp_path / "a.csv") == expected


def test_webnlg_is_the_same_from_json_lines_and_from_xml(tmp_path):
    entry = {"category": "Airport", "triples": [["A_B", "runwayLength", "2.0"]], "texts": ["Long."]}
    (tmp_path / "a.jsonl").write_text(json.dumps(entry) + "\n")
    (tmp_path / "a.xml").write_text(
        '<benchmark><entries><entry category="Airport" eid="Id1"><modifiedtripleset>'
        "<mtriple>A_B | runwayLength | 2.0</mtriple></modifiedtripleset>"
        '<lex lid="Id1">Long.</lex></entry></entries></benchmark>'
    )
    expected = [Table("A B : runwayLength : 2.0", ("Long.",), "Airport")]
    assert read_webnlg(tmp_path / "a.jsonl") == read_webnlg(tmp_path / "a.xml") == expected


def test_damaged_files_are_refused_with_their_place(tmp_path):
    (tmp_path / "a.txt").write_text("no separator\n")
    with pytest.raises(ValueError, match=r"a\.txt, line 1: no '\|\|'"):
        read_e2e(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_text('{"category": "x"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: KeyError"):
        read_webnlg(tmp_path / "a.jsonl")


@pytest.mark.skipif(not DATA, reason="TINYGRAD_ML_DATA names no folder of real data")
def test_real_files_have_their_published_sizes():
    tables = read_e2e(Path(DATA) / "e2e" / "valid.txt")
    assert (len(tables), sum(len(t.texts) for t in tables)) == (547, 4672)
    tables = read_webnlg(Path(DATA) / "webnlg" / "dev.jsonl")
    assert (len(tables), sum(len(t.texts) for t in tables)) == (872, 2268)


def test_bleu_is_that_of_all_references():
    pytest.importorskip("sacrebleu", reason="BLEU is sacrebleu's")
    told = "the cat sat on the mat"
    tables = [Table("a : b", ("a dog ran off in the rain", told)), Table("c : d", (told,))]
    assert bleu([told, told], tables) == pytest.approx(100)
    # by the formula: 11 of 12 words, 8 of 10 pairs, 5 of 8, 3 of 6; as long as the references
    expected = 100 * (11 / 12 * 8 / 10 * 5 / 8 * 3 / 6) ** 0.25
    assert bleu([told, "the cat sat at the mat"], tables) == pytest.approx(expected)
    with pytest.raises(ValueError, match="texts: got 1, expected one for each of 2 tables"):
        bleu([told], tables)
