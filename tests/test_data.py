"""Reading data: every form gives the same examples, and every flaw is named with its file, its row and a remedy."""

import csv
import dataclasses
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.classification import TextClassification
from compressor.data import Example, held_out, read_examples, seen_hash
from compressor.errors import RecipeError, UnfitError
from compressor.files import Columns

ROWS = [("a fine film", "1"), ('she said "no", twice', "0"), ("größer 🙂", "1")]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60).filter(str.strip)

TASK = TextClassification()


def read(path: Path, columns: Columns | None = None, **options: Any) -> list[Example]:
    """Read a file as the recipe beside it would."""
    return list(read_examples(path.name, columns or Columns(), TASK, root=path.parent, split="train", **options))


def refused(path: Path, columns: Columns | None = None) -> str:
    """Return the one line that a file is refused with; it begins with the file."""
    with pytest.raises(RecipeError) as caught:
        read(path, columns)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message.split(": ")[0]
    return message


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def write_tsv(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in [("text", "label"), *rows]), encoding="utf-8")


def write_jsonl(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("".join(json.dumps({"text": t, "label": x}, ensure_ascii=False) + "\n" for t, x in rows), encoding="utf-8")


def write_parquet(path: Path, rows: list[tuple[str, str]]) -> None:
    pq.write_table(pa.table({"text": [t for t, _ in rows], "label": [x for _, x in rows]}), path)


WRITERS = {"csv": write_csv, "tsv": write_tsv, "jsonl": write_jsonl, "parquet": write_parquet}


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Write one file and return its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


File = Callable[..., Path]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_form_gives_the_same_examples(kind: str, packed: bool, tmp_path: Path) -> None:
    path = tmp_path / f"train.{kind}"
    WRITERS[kind](path, ROWS)
    if packed:
        content, path = path.read_bytes(), tmp_path / f"train.{kind}.gz"
        path.write_bytes(gzip.compress(content))
    assert read(path) == [Example(text, None, label) for text, label in ROWS]


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(TEXTS, st.sampled_from(["0", "yes", "né"])), min_size=1, max_size=5))
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_any_unicode_text_comes_back_as_it_was_written(kind: str, rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"train.{kind}")
        WRITERS[kind](path, rows)
        expected = [(text.replace("\r\n", "\n") if kind == "csv" else text, label) for text, label in rows]
        assert [(e.text, e.label) for e in read(path)] == expected


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("length", [100_000, 1_000_000])
def test_very_long_texts_are_read(kind: str, length: int, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"long.{kind}", [("x" * length, "1")])
    assert len(read(tmp_path / f"long.{kind}")[0].text) == length


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_byte_order_mark_and_windows_line_ends_are_accepted(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"train.{kind}"
    WRITERS[kind](path, [("fine", "1"), ("dull", "0")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert read(path) == [Example("fine", None, "1"), Example("dull", None, "0")]


def test_blank_lines_are_skipped(file: File) -> None:
    assert len(read(file("train.csv", "\n\ntext,label\n\nfine,1\n\n"))) == 1
    assert len(read(file("train.jsonl", '\n{"text": "fine", "label": 1}\n  \n'))) == 1


def test_quotes_in_tsv_are_text(file: File) -> None:
    assert [e.text for e in read(file("train.tsv", 'text\tlabel\n"good\t1\nsays "so"\t0\n'))] == ['"good', 'says "so"']


def test_suffixes_are_read_in_any_case(file: File) -> None:
    assert read(file("TRAIN.CSV", "text,label\nfine,1\n")) == [Example("fine", None, "1")]


def test_columns_choose_pairs_and_unlabelled_texts(file: File) -> None:
    path = file("pairs.csv", "first,second,score\nhello,world,2\n")
    assert read(path, Columns("first", "second", "score")) == [Example("hello", "world", "2")]
    assert read(path, Columns("first", label=None)) == [Example("hello")]


def test_limit_reads_the_first_rows_only(file: File) -> None:
    path = file("train.csv", "text,label\nfine,1\ndull,0\nbroken row\n")
    assert [e.text for e in read(path, limit=2)] == ["fine", "dull"]


def test_a_row_that_lacks_a_column_is_left_out_as_any_that_is_no_example(file: File) -> None:
    path, skipped = file("train.jsonl", '{"text": "fine", "label": 1}\n{"text": "dull"}\n'), list[str]()
    assert [e.text for e in read(path, skipped=skipped)] == ["fine"]
    assert ["row 2 has no column 'label', only 'text'" in told for told in skipped] == [True]
    only = file("other.jsonl", '{"text": "dull", "lable": 1}\n')
    with pytest.raises(RecipeError, match=r"no examples for train, 1 rows are none; the first: .* did you mean 'lable'\? set data.label"):
        read(only, skipped=[])


@pytest.mark.parametrize(
    ("name", "content", "wrong"),
    [
        ("train.jsonl", '{"text": "fine", "label": 1}\n{"text": "du\n[1]\n{"text": "dull", "label": 0}\n', ["is not JSON", "is a list"]),
        ("train.csv", "text,label\nfine,1\nwell, well,1\ndull,0\n", ["row 3 has 3 columns, the header 2"]),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_too(name: str, content: str, wrong: list[str], file: File) -> None:
    path, skipped = file(name, content), list[str]()
    assert [e.text for e in read(path, skipped=skipped)] == ["fine", "dull"]
    assert all(part in told for part, told in zip(wrong, skipped, strict=True))
    assert wrong[0] in refused(path)


def test_spread_reads_as_many_from_all_over_the_file_and_the_same_every_time(file: File) -> None:
    path = file("train.csv", "text,label\n" + "".join(f"text {n},{n // 100}\n" for n in range(400)))
    found = read(path, limit=40, spread=True)
    assert [int(e.text[5:]) for e in found] == sorted(int(e.text[5:]) for e in found)
    assert {e.label for e in found} == {"0", "1", "2", "3"}
    assert (len(found), read(path, limit=40, spread=True)) == (40, found)
    assert len(read(path, limit=1000, spread=True)) == 400
    assert {e.label for e in read(path, limit=40, spread=True, within=200)} == {"0", "1"}


@pytest.mark.parametrize(("value", "label"), [("0", "0"), ("1.0", "1"), ("2.5", "2.5"), ('" yes "', "yes"), ("true", "True")])
def test_labels_are_strings(value: str, label: str, file: File) -> None:
    assert read(file("train.jsonl", f'{{"text": "fine", "label": {value}}}'))[0].label == label


def test_examples_come_from_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reviews_package").mkdir()
    write_csv(tmp_path / "reviews_package" / "train.csv", ROWS)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(list(read_examples("package:reviews_package/train.csv", Columns(), TASK, root=Path("/"), split="train"))) == 3


def test_a_missing_file_names_its_neighbours(file: File) -> None:
    path = file("train.csv", "text,label\nfine,1\n")
    assert "did you mean train.csv?" in refused(path.with_name("trian.csv"))


@pytest.mark.parametrize("name", ["train.xlsx", "train", "train.gz", "train.txt.gz"])
def test_an_unknown_form_names_the_known_ones(name: str, file: File) -> None:
    message = refused(file(name, "text,label\n"))
    assert "unknown form" in message
    assert message.endswith("use .csv, .tsv, .jsonl, .parquet, also with .gz")


def test_a_folder_is_not_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "a folder; use .csv" in refused(tmp_path / "data")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_column_names_those_that_are_there_and_the_nearest(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"train.{kind}", ROWS)
    message = refused(tmp_path / f"train.{kind}", Columns(label="labels"))
    assert "has no column 'labels', only 'text', 'label'; did you mean 'label'? set data.label" in message
    assert ("row 1" in message) == (kind != "parquet")  # parquet's schema has no row


def test_a_header_without_rows_still_needs_its_columns(file: File) -> None:
    assert "row 1, the header, has no column 'text', only 'review', 'label'; set data.text" in refused(file("a.csv", "review,label\n"))


def test_a_column_named_twice_is_refused(file: File) -> None:
    assert "row 1, the header, has column 'text' 2 times; rename" in refused(file("train.csv", "text,label,text\na,1,b\n"))


@pytest.mark.parametrize("content", ["text,label\nfine,1\ndull\n", 'text,label\n"fi\nne"\n', "text,label\nfine,1\ndull,0,\n"])
def test_a_row_of_another_width_is_named(content: str, file: File) -> None:
    assert re.search(r"row 3 has (1 column|3 columns), the header 2; mend the row", refused(file("train.csv", content)))


def test_an_open_quote_is_named_by_the_row_that_opens_it(file: File) -> None:
    message = refused(file("train.csv", 'text,label\nfine,1\n"dull,0\nfine,1\nfine,1\n'))
    assert "row 3: " in message
    assert "mend the quotes" in message


def test_a_stray_carriage_return_in_tsv_is_named(file: File) -> None:
    assert "row 2: " in refused(file("train.tsv", "text\tlabel\nfi\rne\t1\n"))


def test_a_row_without_a_json_key_is_named(file: File) -> None:
    path = file("train.jsonl", '{"text": "fine", "label": 1}\n{"text": "dull"}\n')
    assert "row 2 has no column 'label', only 'text'; set data.label" in refused(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "row 2 is not JSON"),
        ('["dull", 0]', "row 2 is a list, not an object; write one object a line"),
        ("9" * 5000, "row 2 cannot be read"),
        ("[" * 100_000, "row 2 cannot be read"),
        ('{"text": 3, "label": 0}', "row 2: column 'text' is a int, not a text; give it a text or remove the row"),
        ('{"text": null, "label": 0}', "row 2: column 'text' is empty"),
        ('{"text": "dull", "label": null}', "row 2: column 'label' has no label; label the row or remove it"),
        ('{"text": "dull", "label": NaN}', "row 2: column 'label' has no label"),
        ('{"text": "dull", "label": " "}', "row 2: column 'label' has no label"),
        ('{"text": "dull", "label": [1]}', "row 2: column 'label' is a list, not a label"),
        ('{"text": "dull \\ud83d", "label": 0}', "row 2: column 'text' has half a character"),
        ('{"text": "dull", "label": "\\ud83d"}', "row 2: column 'label' has half a character"),
    ],
)
def test_a_flawed_json_line_is_named(line: str, message: str, file: File) -> None:
    assert message in refused(file("train.jsonl", f'{{"text": "fine", "label": 1}}\n{line}\n'))


@pytest.mark.parametrize("kind", WRITERS)
def test_blank_text_is_refused_with_its_row(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"train.{kind}", [("fine", "1"), (" \u2003", "0")])
    row = 2 if kind in ("jsonl", "parquet") else 3
    assert f"row {row}: column 'text' is empty; give it a text or remove the row" in refused(tmp_path / f"train.{kind}")


def test_null_and_foreign_columns_of_parquet_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["fine", None], "label": [1.0, 0.0]}), path)
    assert "row 2: column 'text' is empty" in refused(path)
    pq.write_table(pa.table({"text": ["fine", "dull"], "label": [1.0, None]}), path)
    assert "row 2: column 'label' has no label" in refused(path)
    pq.write_table(pa.table({"text": [b"fine"], "label": [1]}), path)
    assert "row 1: column 'text' is a bytes, not a text" in refused(path)


def test_integral_and_dictionary_labels_of_parquet_are_strings(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["fine", "dull"], "n": [1.0, 0.0], "name": pa.array(["yes", "no"]).dictionary_encode()}), path)
    assert [e.label for e in read(path, Columns(label="n"))] == ["1", "0"]
    assert [e.label for e in read(path, Columns(label="name"))] == ["yes", "no"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_byte_that_is_not_utf8_is_named_with_row_and_offset(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"train.{kind}"
    WRITERS[kind](path, [("fine", "1"), ("caf#", "0")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"#", b"\xe9"))
    row, offset = (3 if kind == "csv" else 2), path.read_bytes().index(b"\xe9")
    message = refused(path)
    assert f"row {row}: byte 0xe9 at offset {offset} is not UTF-8" in message
    assert message.endswith("iconv -f latin1 -t utf-8")


def test_utf16_is_told_from_latin1(file: File) -> None:
    message = refused(file("train.csv", "text,label\nfine,1\n".encode("utf-16")))
    assert "row 1: byte 0xff at offset 0" in message
    assert message.endswith("iconv -f utf-16 -t utf-8")


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_gzip_is_refused(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"train.{kind}", [(f"text {i}", str(i)) for i in range(5000)])
    packed, path = gzip.compress((tmp_path / f"train.{kind}").read_bytes()), tmp_path / f"train.{kind}.gz"
    torn = bytearray(packed)
    torn[len(packed) // 2 : len(packed) // 2 + 50] = b"\xff" * 50
    for content in (b"not gzip", packed[: len(packed) // 2], bytes(torn), packed[:10] + b"\xff" * 50):
        path.write_bytes(content)
        message = refused(path)
        assert re.search("damaged gzip .*; compress it again|not a readable parquet file .*; write it again|row ", message)


@pytest.mark.parametrize("keep", [0, 3, 200])
def test_damaged_parquet_is_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    WRITERS["parquet"](path, ROWS)
    path.write_bytes(path.read_bytes()[:keep])
    assert re.search("not a readable parquet file .*; write it again", refused(path))


def test_parquet_pages_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["unmistakable"], "label": ["1"]}), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"unmistakable", b"unm\xff\xfetakable"))
    assert "not a readable parquet file" in refused(path)


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", ""), ("a.csv", "text,label\n"), ("a.tsv", "\n"), ("a.jsonl", "\n\n"), ("a.csv.gz", b"")]
)
def test_an_empty_file_is_refused(name: str, content: str | bytes, file: File) -> None:
    assert "no examples; add rows, or name another file for train" in refused(file(name, content))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """A real data set with class labels in place of the Hub's answer; returns what was asked for."""
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["fine", "dull", "unknown"], "label": [1, 0, -1]}, features=features)
    asked: list[tuple[object, ...]] = []

    def load_dataset(name: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, config, split, revision))
        if split == "nope":
            raise ValueError("Unknown split 'nope'.\nShould be one of ['train'].")
        if name == "no/such":
            raise ConnectionError("Couldn't reach 'no/such'")
        return data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_ids_name_configuration_revision_and_split(hub: list[tuple[object, ...]], tmp_path: Path) -> None:
    for source in ("owner/set", "owner/set:sst2@refs/pr/1#validation", "owner/set@abc"):
        list(read_examples(source, Columns(), TASK, root=tmp_path, split="test", limit=1))
    assert hub == [("owner/set", None, "test", None), ("owner/set", "sst2", "validation", "refs/pr/1"), ("owner/set", None, "test", "abc")]


@pytest.mark.usefixtures("hub")
def test_hub_class_labels_become_their_names(tmp_path: Path) -> None:
    assert [e.label for e in read_examples("owner/set", Columns(), TASK, root=tmp_path, split="train", limit=2)] == ["pos", "neg"]
    with pytest.raises(RecipeError, match="owner/set: row 3: column 'label' has no label"):
        list(read_examples("owner/set", Columns(), TASK, root=tmp_path, split="train"))


@pytest.mark.usefixtures("hub")
def test_hub_failures_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match=r"no/such: .*ConnectionError.*\./folder.*package:NAME/FOLDER"):
        list(read_examples("no/such", Columns(), TASK, root=tmp_path, split="train"))
    with pytest.raises(RecipeError, match=r"owner/set#nope: Unknown split 'nope'\. Should be one of \['train'\]"):
        list(read_examples("owner/set#nope", Columns(), TASK, root=tmp_path, split="train"))
    with pytest.raises(RecipeError, match="owner/set has no column 'txt', only 'text', 'label'; did you mean 'text'"):
        list(read_examples("owner/set", Columns("txt"), TASK, root=tmp_path, split="train"))


def test_split_is_decided_by_the_text_alone() -> None:
    examples = [Example(f"text {i}", None, str(i % 2)) for i in range(4000)]
    held = {e.text for e in examples if held_out(e, "labels", 0.25, "validation")}
    assert 900 < len(held) < 1100
    assert {e.text for e in examples if held_out(dataclasses.replace(e, label="x"), "labels", 0.25, "validation")} == held
    assert {e.text for e in examples if held_out(e, "labels", 0.25, "test")} != held


def test_questions_on_one_context_stand_for_the_same_text() -> None:
    who, when, other = Example("who?", "a context"), Example("when?", "a context"), Example("who?", "another context")
    assert seen_hash(who, "positions") == seen_hash(when, "positions") != seen_hash(other, "positions")
    assert seen_hash(who, "labels") != seen_hash(when, "labels")


def test_split_of_nothing_and_of_all() -> None:
    examples = [Example(f"text {i}", f"pair {i}") for i in range(50)]
    assert not any(held_out(e, "labels", 0.0, "test") for e in examples)
    assert all(held_out(e, "labels", 1.0, "test") for e in examples)


def test_reading_files_imports_nothing_heavy(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ROWS)
    heavy = ["torch", "transformers", "datasets", "pyarrow", "huggingface_hub"]
    code = (
        "import sys; "
        f"sys.modules.update(dict.fromkeys({heavy})); from pathlib import Path; from compressor.data import *\n"
        "from compressor.classification import *\nfrom compressor.files import Columns\n"
        f"assert len(list(read_examples('train.csv', Columns(), TextClassification(), root=Path({str(tmp_path)!r}), split='train'))) == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
