"""docs/faults.md from docs/faults.json."""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIGURES, TABLE = ROOT / "docs" / "faults.json", ROOT / "docs" / "faults.md"
HEAD = """# Faults: what was tried, and what held

Every fault below is one declaration in `tests/faults/`, with the code that tries it. This page is written from
`docs/faults.json` by that code:

    make faults                                          # all of them; it goes on where it was interrupted
    python tests/faults/run.py --only "bit flips"        # those whose name holds these words
    python tests/faults/run.py --only "bit flips" --first 17 --tries 1    # one attempt again
    python tests/faults/run.py --quick                   # a few attempts at each

An attempt is a function of the fault's name and its number, so one that failed can be repeated. A fast sample of all
runs in the test suite (`tests/faults/test_faults.py`). "faults 2.4" and "ecosystem 12" in the second column are the
points of the two lists that the faults were collected from.
"""


def table(record: dict) -> str:
    """Return the page."""
    faults = record["faults"]
    tried = [each for each in faults if each["not_tried"] is None]
    tries, violations = sum(each["tries"] for each in tried), sum(each["violations"] for each in tried)
    minutes = sum(each["seconds"] for each in tried) / 60
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        HEAD,
        f"On {record['date']}, {record['cores']} cores, {versions}: {tries:,} tries of {len(tried)} faults in "
        f"{minutes:.0f} minutes of processes, {violations:,} violations.\n",
        "| fault | source | what is done | tries | what must hold | what held |",
        "|---|---|---|---:|---|---|",
    ]
    for each in faults:
        cells = [each["name"], each["source"], each["done"], f"{each['tries']:,}", each["must_hold"], held(each)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    broken = [each for each in tried if each["violations"]]
    if broken:
        lines.append("\n## Violations\n")
    for each in broken:
        lines.append(f"- **{each['name']}**, {each['violations']:,} of {each['tries']:,}; the first:")
        lines += [f"  - `{evidence.replace('`', chr(39))}`" for evidence in each["evidence"]]
    return "\n".join(lines) + "\n"


def held(each: dict) -> str:
    """Say how often a fault held, with its figures."""
    if each["not_tried"] is not None:
        return f"not tried: {each['not_tried']}"
    figures = "".join(f"; {name}: {value:,.10g}" for name, value in each["figures"].items())
    good = each["tries"] - each["violations"]
    return (f"all {good:,}" if not each["violations"] else f"**{good:,} of {each['tries']:,}**") + figures


def write(record: dict) -> None:
    """Write the figures and the page."""
    FIGURES.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    TABLE.write_text(table(record))
