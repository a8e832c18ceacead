"""Writes the golden curve anew: `python -m tests.golden.make`."""

import json
from pathlib import Path

PATH = Path(__file__).with_name("curve.json")

if __name__ == "__main__":
    from tests.golden.run import curve

    PATH.write_text(json.dumps(curve(), indent=1) + "\n")
    print(f"wrote {PATH}")
