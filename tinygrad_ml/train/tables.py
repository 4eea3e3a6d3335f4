"""Tables and the texts that tell them: readers of the E2E and WebNLG data sets.

A record is linearised as in Li & Liang 2021: `slot : value | slot : value` for E2E,
`subject : property : object | ...` for WebNLG. All texts of one record are its references.
"""

import csv
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """A linearised record, the texts that tell it, and its category, if the data set has any."""

    source: str
    texts: tuple[str, ...]
    category: str | None = None


def read_tables(path):
    """Tables of either data set's files, by their names' ends."""
    return read_webnlg(path) if Path(path).suffix in (".jsonl", ".xml") else read_e2e(path)


def read_e2e(path):
    """Tables of `slot : value | ...||text` lines, or of the cleaned .csv (columns mr and ref)."""
    path = Path(path)
    with path.open(encoding="utf-8", newline="") as file:
        pairs = list(_cleaned(path, file) if path.suffix == ".csv" else _lines(path, file))
    texts: dict[str, list[str]] = {}
    for source, text in pairs:
        texts.setdefault(source, []).append(text)
    return [Table(source, tuple(told)) for source, told in texts.items()]


def _lines(path, file):
    for number, line in enumerate(file, 1):
        source, found, text = line.partition("||")
        if not found:
            raise ValueError(f"{path}, line {number}: no '||' between record and text")
        yield source.strip(), text.strip()


def _cleaned(path, file):
    rows = csv.DictReader(file)
    if not {"mr", "ref"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{path}: got columns {rows.fieldnames}, expected mr and ref among them")
    for row in rows:
        slots = re.findall(r"([^,\[\]]+)\[([^\]]*)\]", row["mr"])
        yield " | ".join(f"{name.strip()} : {value}" for name, value in slots), row["ref"].strip()


def read_webnlg(path):
    """Tables of a .jsonl (category, triples, texts) or of WebNLG's own .xml, in order."""
    path = Path(path)
    return list(_entries(path) if path.suffix == ".xml" else _json_lines(path))


def _json_lines(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            yield Table(_joined(entry["triples"]), tuple(entry["texts"]), entry["category"])
        except (ValueError, KeyError, TypeError) as error:
            expected = "expected category, triples [[s, p, o]] and texts"
            raise ValueError(f"{path}, line {number}: {error!r}; {expected}") from error


def _entries(path):
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise ValueError(f"{path}: not XML: {error}") from error
    for entry in root.iter("entry"):
        triples = [
            [part.strip() for part in (triple.text or "").split(" | ")]
            for triple in entry.iterfind("modifiedtripleset/mtriple")
        ]
        texts = tuple((lex.text or "").strip() for lex in entry.iterfind("lex"))
        yield Table(_joined(triples), texts, entry.get("category"))


def _joined(triples):
    return " | ".join(f"{s} : {p} : {o}".replace("_", " ") for s, p, o in triples)


def bleu(texts, tables):
    """The corpus BLEU, 0 to 100, of one text for each table against all of its own.

    Papineni et al. 2002, as sacrebleu computes it. ModuleNotFoundError without sacrebleu.
    """
    try:
        from sacrebleu import corpus_bleu
    except ModuleNotFoundError as error:
        needed = "BLEU needs sacrebleu: pip install 'tinygrad_ml[eval]'"
        raise ModuleNotFoundError(needed, name="sacrebleu") from error
    if len(texts) != len(tables):
        raise ValueError(f"texts: got {len(texts)}, expected one for each of {len(tables)} tables")
    references = zip_longest(*(table.texts for table in tables))
    return corpus_bleu(list(texts), [list(column) for column in references]).score
