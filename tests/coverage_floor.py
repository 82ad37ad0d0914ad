"""Print the coverage of every file and fail below the floors: 85 % in all, 60 % in each file.

python tests/coverage_floor.py .coverage.json   (written by `coverage json`; `make coverage` does both)
"""

import json
import sys
from pathlib import Path

TOTAL_FLOOR = 85.0
FILE_FLOOR = 60.0


def judge(report: dict) -> tuple[list[str], list[str]]:
    """Return the lines to print and those that miss a floor, from coverage.py's JSON report."""
    files = {name: data["summary"]["percent_covered"] for name, data in report["files"].items()}
    total = report["totals"]["percent_covered"]
    lines = [f"{percent:6.1f} %  {name}" for name, percent in sorted(files.items(), key=lambda pair: pair[1])]
    lines.append(f"{total:6.1f} %  in all")
    missed = [f"{name} {percent:.1f} % < {FILE_FLOOR} %" for name, percent in files.items() if percent < FILE_FLOOR]
    if total < TOTAL_FLOOR:
        missed.append(f"in all {total:.1f} % < {TOTAL_FLOOR} %")
    return lines, missed


def main() -> int:
    """Read the report named on the command line; 1 if a floor is missed."""
    lines, missed = judge(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    sys.stdout.write("\n".join(lines) + "\n")
    for line in missed:
        sys.stderr.write(f"coverage floor missed: {line}\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
