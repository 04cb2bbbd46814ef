import pytest

from compressor.formats import count, duration, megabytes, milliseconds, percent, percent_interval, points_change, times


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.871), "87.1%"),
        (percent_interval([0.85, 0.89]), "85.0–89.0%"),
        (percent_interval([-0.12, -0.0001]), "−12.0–0.0%"),
        (points_change(-0.006), "−0.6"),
        (points_change(-0.0004), "±0.0"),
        (milliseconds(1.234), "1.23 ms"),
        (times(6.31), "6.3×"),
        (times(1.08), "1.08×"),
        (megabytes(17.23), "17.2 MB"),
        (duration(59.97), "1 min 00 s"),
        (duration(3900), "1 h 05 min"),
        (count(8451), "8,451"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected
