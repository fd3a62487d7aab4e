"""What a load has recorded, and what can be said of it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Record = tuple[int, float, float, str]
"""Kind (index in :attr:`Result.kinds`), sent at, ended at, why it failed ("" where it did not)."""


@dataclass(frozen=True)
class Result:
    """All requests of one load. Times are seconds of the monotonic clock, which all processes of a machine share."""

    kinds: tuple[str, ...]
    origin: float
    ended: float
    records: tuple[Record, ...]
    late_worst: float
    late_usual: float
    """How late the client itself was in sending: at most, and in 99 of 100 cases."""

    def write(self, file: Path) -> None:
        """Write it as JSON: milliseconds since the origin, reasons by their index."""
        reasons = sorted({record[3] for record in self.records} | {""})
        index = {reason: number for number, reason in enumerate(reasons)}
        records = [
            [
                kind,
                round((sent - self.origin) * 1000, 1),
                round((ended - self.origin) * 1000, 1),
                index[reason],
            ]
            for kind, sent, ended, reason in self.records
        ]
        file.write_text(
            json.dumps(
                {
                    "kinds": self.kinds,
                    "origin": self.origin,
                    "ended": self.ended,
                    "late": [self.late_worst, self.late_usual],
                    "reasons": reasons,
                    "records": records,
                }
            ),
            encoding="utf-8",
        )

    @classmethod
    def read(cls, file: Path) -> Result:
        """Read what :meth:`write` wrote."""
        data = json.loads(file.read_text(encoding="utf-8"))
        origin, reasons = data["origin"], data["reasons"]
        return cls(
            kinds=tuple(data["kinds"]),
            origin=origin,
            ended=data["ended"],
            records=tuple(
                (kind, origin + sent / 1000, origin + ended / 1000, reasons[reason])
                for kind, sent, ended, reason in data["records"]
            ),
            late_worst=data["late"][0],
            late_usual=data["late"][1],
        )

    @property
    def failures(self) -> list[Record]:
        """Every request that failed, in the order in which they were sent."""
        return sorted((record for record in self.records if record[3]), key=lambda record: record[1])

    def sent(self, kind: str) -> int:
        """Count the requests of a kind."""
        number = self.kinds.index(kind)
        return sum(record[0] == number for record in self.records)

    def failed(self, kind: str) -> int:
        """Count the requests of a kind that failed."""
        number = self.kinds.index(kind)
        return sum(record[0] == number and bool(record[3]) for record in self.records)

    def reasons(self, kind: str | None = None) -> Counter[str]:
        """Count why requests (of a kind) failed."""
        return Counter(
            record[3] for record in self.records if record[3] and kind in {None, self.kinds[record[0]]}
        )

    def rate(self, kind: str) -> float:
        """Count the requests of a kind a second, as really sent."""
        number = self.kinds.index(kind)
        times = sorted(record[1] for record in self.records if record[0] == number)
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0

    def longest_gap(self, since: float | None = None, until: float | None = None) -> float:
        """Give the longest time, in seconds, in which no request of any kind succeeded.

        Between ``since`` and ``until``, by default from the first request to the last one sent.
        """
        first = since if since is not None else self.origin
        last = until if until is not None else max((record[1] for record in self.records), default=first)
        good = sorted(record[2] for record in self.records if not record[3] and first <= record[2] <= last)
        times = [first, *good, last]
        return max(after - before for before, after in itertools.pairwise(times))

    def table(self) -> str:
        """Show the counts of every kind, one a line."""
        lines = [f"{'kind':<11}{'sent':>8}{'ok':>8}{'failed':>8}  why"]
        for kind in self.kinds:
            sent, failed = self.sent(kind), self.failed(kind)
            why = ", ".join(f"{count} x {reason}" for reason, count in self.reasons(kind).most_common())
            lines.append(f"{kind:<11}{sent:>8}{sent - failed:>8}{failed:>8}  {why}".rstrip())
        return "\n".join(lines)


def median(values: Sequence[float]) -> float:
    """Give the middle one of some values."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
