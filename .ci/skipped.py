"""Fails when a test below one of the given folders was skipped, or when none of them ran: a green run must have tried them."""

import sys
import xml.etree.ElementTree
from pathlib import Path


def complaints(junit: Path, folders: list[str], root: Path = Path()) -> list[str]:
    """One sentence for each skipped test below `folders`, and for each folder that has test files of which none ran."""
    cases = list(xml.etree.ElementTree.parse(junit).getroot().iter("testcase"))
    found = []
    for folder in folders:
        prefix = folder.strip("/").replace("/", ".") + "."
        inside = [case for case in cases if (case.get("classname", "") + ".").startswith(prefix)]
        found += [
            f"{case.get('classname')}::{case.get('name')} was skipped: {skipped.get('message')}"
            for case in inside
            if (skipped := case.find("skipped")) is not None and skipped.get("type") != "pytest.xfail"
        ]
        if not inside and any((root / folder).rglob("test_*.py")):
            found.append(f"no test of {folder} ran")
    return found


if __name__ == "__main__":
    problems = complaints(Path(sys.argv[1]), sys.argv[2:])
    print("\n".join(problems))
    sys.exit(bool(problems))
