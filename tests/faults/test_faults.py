"""A fast sample of every fault, and docs/faults.md against its figures."""

import json

import pytest
from faults import report
from faults.catalogue import FAULTS
from faults.fault import attempt_all
from lengths import usually

# Every fifth attempt of a sample by default; where a sample is one attempt, nothing is slow
SAMPLES = [(name, every) for name, fault in FAULTS.items() for every in (5, 1) if fault.quick > (every == 1)]
USUAL = [(name, every) for name, every in SAMPLES if every == 5]


@pytest.mark.parametrize(("name", "every"), usually(USUAL, SAMPLES, True))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sample_holds(name, every, tmp_path):
    fault = FAULTS[name]
    attempts = range(0, fault.quick, every)
    result = attempt_all(fault, attempts, tmp_path)
    if result.not_tried is not None:
        pytest.skip(result.not_tried)
    assert not result.violations
    assert result.tries == len(attempts)


def test_the_document_is_that_of_the_figures():
    record = json.loads(report.FIGURES.read_text())
    assert report.TABLE.read_text() == report.table(record)
    assert {each["name"] for each in record["faults"]} == set(FAULTS)
    for each in record["faults"]:
        fault = FAULTS[each["name"]]
        assert (each["source"], each["done"], each["must_hold"]) == (fault.source, fault.done, fault.must_hold)
        assert each["not_tried"] is not None or each["tries"] >= fault.tries or each["violations"]


def test_every_point_of_the_lists_has_a_fault():
    """24 rows of the ecosystem's faults, and 18 points of those that broke earlier."""
    sources = " ".join(f"{fault.source};" for fault in FAULTS.values())
    numbers = sources.replace(",", ";").replace("ecosystem ", "").split(";")
    points = {part.strip() for part in numbers}
    of_ecosystem = {
        part.strip() for fault in FAULTS.values() for half in fault.source.split(";")
        if half.strip().startswith("ecosystem") for part in half.replace("ecosystem", "").split(",")
    }  # fmt: skip
    assert {str(number) for number in range(1, 25)} == of_ecosystem
    assert {f"2.{number}" for number in range(1, 19)} <= {point.replace("faults ", "") for point in points}
